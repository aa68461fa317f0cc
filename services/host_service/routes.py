"""Makes the routes of the peers' allowed-IPs, and behind each a guard route.

`Table = auto` puts each prefix into the main table, and a default route into a table of its own (`policy`). `Table = N`
puts all into table N; `off` makes no routes. A route is made only where no foreign route stands. Changes go to the kernel
in small batches, with packets in between: there may be 130,000 routes.

A guard route holds packets back while the route before it is away. Guard routes have our protocol, and a metric that no
other interface has: the greatest less our interface's number.
"""

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Final

from host_service.connected import Connected
from host_service.ground import Ground, NetworkRefused, Wanted
from host_service.ledger import GuardAdded
from host_service.rivals import Rivals
from host_service.route_messages import Change, Found, Network, Route
from host_service.rules import MAIN
from stagewire.limits import ROUTE_PROTOCOL

PIECE: Final = 128
"""Prefixes compared in one step."""
BATCH: Final = 32
"""Changes told to the kernel together."""
MAX_GUARDS: Final = 1024
"""Guard routes of an interface; 130,000 would double the time and the memory that routes take."""
_LAST_METRIC: Final = 0xFFFFFFFF
_OFF: Final = 0
_GONE: Final = {errno.ESRCH, errno.ENOENT, errno.ENODEV}
_LINK_DOWN: Final = {errno.ENETDOWN}


class Routes:
    """Makes one interface's routes. `prefixes` holds all wanted prefixes, whatever their table."""

    def __init__(self, ground: Ground, prefixes: dict[Network, None]) -> None:
        self._ground = ground
        self._prefixes = prefixes
        self.wanted: Wanted | None = None
        self.number = 0
        """The table of default routes; 0 without any."""
        self.ipv6 = self.kept6 = True
        """Whether the interface has IPv6 routes, and whether IPv6 has guard routes."""
        self.rivals = Rivals(ground)
        self.connected = Connected()
        self._guarded: set[Route] = set()
        self._todo: deque[Change] = deque()
        self._later: deque[Change] = deque()
        """Changes that came during a comparison."""
        self._lost: dict[Route, None] = {}
        """Our routes that other programs removed."""
        self._worth_a_try: dict[Route, None] = {}
        """Our routes whose place may be free again, or taken just now."""
        self._refused: list[Route] = []
        """Our routes that the kernel refused because another stands there; to be examined."""
        self._fresh: set[int] = set()
        """IP versions of new routes, beside which a foreign route may stand."""

    @property
    def busy(self) -> bool:
        """Tells whether work is left."""
        return bool(self._todo or self._refused or self._fresh)

    def begin(self, wanted: Wanted, number: int, *, ipv6: bool, kept6: bool) -> None:
        """Takes new settings, and drops changes for the former ones."""
        self.wanted, self.number, self.ipv6, self.kept6 = wanted, number, ipv6, kept6
        # The kernel routes the addresses' own networks; like wg-quick, leave out prefixes in them.
        self.connected.begin(wanted.addresses)
        self.clear()

    def clear(self) -> None:
        """Drops all changes that are still to be made."""
        self._todo.clear()
        self._later.clear()
        self._lost.clear()
        self.connected.forget()
        self._worth_a_try.clear()
        self._refused.clear()
        self._fresh.clear()

    # --- which ---------------------------------------------------------------------------------------------

    def table_of(self, prefix: Network) -> int:
        """Returns the table for a prefix's route; 0 for none."""
        return _OFF if prefix.version == 6 and not self.ipv6 else self._place_of(prefix)

    def _place_of(self, prefix: Network) -> int:
        wanted = self.wanted
        if wanted is None or wanted.table == "off":
            return _OFF
        if wanted.table != "auto":
            table = int(wanted.table)
            return _OFF if table == MAIN and prefix in self.connected else table
        if prefix.prefixlen == 0:
            return self.number
        return _OFF if self.connected.around(prefix) is not None else MAIN

    def _tables(self) -> set[int]:
        wanted = self.wanted
        if wanted is None or wanted.table == "off":
            return set()
        return {MAIN, self.number} - {_OFF} if wanted.table == "auto" else {int(wanted.table)}

    def routes(self, prefixes: Iterable[Network]) -> Iterator[Route]:
        """Yields the routes for some prefixes."""
        for prefix in prefixes:
            if table := self.table_of(prefix):
                yield prefix, table

    def is_wanted(self, route: Route) -> bool:
        """Tells whether we want a route."""
        return route[0] in self._prefixes and self.table_of(route[0]) == route[1]

    # --- guards --------------------------------------------------------------------------------------------

    @property
    def metric(self) -> int:
        """Returns the metric of our guard routes."""
        return _LAST_METRIC - self._ground.last_index

    def _guard_of(self, prefix: Network) -> Route | None:
        if prefix.version == 6 and not self.kept6:
            return None
        if table := self._place_of(prefix):
            return prefix, table
        network = self.connected.around(prefix)
        wanted = self.wanted
        if network is None or network.prefixlen == network.max_prefixlen or wanted is None:
            return None
        if wanted.table not in {"auto", str(MAIN)}:
            return None
        return network, MAIN

    def compare_guards(self) -> Iterator[None]:
        """Makes missing guard routes and removes surplus ones. Raises NetworkRefused."""
        ground = self._ground
        wanted: dict[Route, None] = {}
        for at, prefix in enumerate(self._prefixes):
            if len(wanted) == MAX_GUARDS:
                break
            if (guard := self._guard_of(prefix)) is not None:
                wanted[guard] = None
            if at % PIECE == PIECE - 1:
                yield
        self._warn_of_many()
        standing: set[Route] = set()
        try:
            for found in ground.routes.guards(self.metric):
                standing.update(found)
                yield
        except OSError as error:
            raise NetworkRefused(f"cannot read routes: {error.strerror}") from None
        self._guarded = standing & wanted.keys()
        for guard in wanted:
            if guard in standing:
                ground.ledger.do(self._note(guard))
            else:
                ground.again("guard")
                self._guard(guard)
                yield
        for guard in standing - wanted.keys():
            self._unguard(guard)
            yield
        for operation in ground.ledger.operations():  # notes under a former number of the interface
            if isinstance(operation, GuardAdded) and operation.metric != self.metric:
                self._drop_note(operation)

    def _warn_of_many(self) -> None:
        few = len(self._prefixes) <= MAX_GUARDS
        text = f"more than {MAX_GUARDS} prefixes: packets to the rest take other routes while the interface is down"
        self._ground.warn("guards", "" if few else text)

    def _guard(self, guard: Route) -> None:
        ground = self._ground
        if guard in self._guarded or len(self._guarded) >= MAX_GUARDS:
            return
        note = self._note(guard)
        ground.ledger.do(note)
        if (code := ground.routes.guard(guard, self.metric)) not in {0, errno.EEXIST}:  # optional
            ground.ledger.undo(note)
            ground.warn("guard", f"no guard route behind {guard[0]}: {os.strerror(code)}")
            return
        self._guarded.add(guard)

    def _unguard(self, guard: Route) -> None:
        self._ground.routes.unguard(guard, self.metric)
        self._ground.ledger.undo(self._note(guard))
        self._guarded.discard(guard)

    def _note(self, guard: Route) -> GuardAdded:
        return GuardAdded(str(guard[0]), guard[1], self.metric)

    def _drop_note(self, note: GuardAdded) -> None:
        self._ground.routes.unguard((ip_network(note.prefix), note.table), note.metric)
        self._ground.ledger.undo(note)

    def is_guard(self, found: Found) -> bool:
        """Tells whether a route is one of our guard routes."""
        return (
            found.protocol == ROUTE_PROTOCOL
            and found.metric == self.metric
            and (found.prefix, found.table) in self._guarded
        )

    def guard_lost(self, found: Found) -> None:
        """Notes that another program removed a guard route."""
        self._guarded.discard((found.prefix, found.table))

    # --- routes --------------------------------------------------------------------------------------------

    def compare(self) -> Iterator[None]:
        """Finds missing and surplus routes, a piece at each step. Raises NetworkRefused."""
        ground = self._ground
        missing: dict[Route, None] = {}
        surplus: list[Route] = []
        self.rivals.clear()
        prefixes = list(self._prefixes)
        self.clear()
        for start in range(0, len(prefixes), PIECE):
            missing.update(dict.fromkeys(self.routes(prefixes[start : start + PIECE])))
            yield
        for version in (4, 6):
            vain = yield from self.rivals.look(version, self._tables(), missing.__contains__, self._is_network)
            self._todo.extend((False, route) for route in vain)
        try:
            for standing in ground.routes.standing(ground.index):
                for route in standing:
                    if route in missing:
                        del missing[route]
                    else:
                        surplus.append(route)
                yield
        except OSError as error:
            raise NetworkRefused(f"cannot read routes: {error.strerror}") from None
        missing = {route: None for route in missing if route not in self.rivals.taken}
        ground.again("route", len(missing))
        self._todo.extend((True, route) for route in missing)
        # Last: a prefix that changes its table must have a route all the time.
        self._todo.extend((False, route) for route in surplus)

    def enter(self, wanted: bool, prefixes: Iterable[Network], *, comparing: bool) -> None:
        """Makes or removes prefixes' routes. While `comparing`, they wait: the comparison would undo the changes."""
        (self._later if comparing else self._todo).extend((wanted, route) for route in self.routes(prefixes))

    def compared(self) -> None:
        """Queues the changes that waited for the comparison."""
        self._todo.extend(self._later)
        self._later.clear()

    def lost(self, route: Route) -> bool:
        """Notes that another program removed a route of ours. Returns whether we want the route back."""
        missed = self.is_wanted(route) and route not in self.rivals.taken
        if missed:
            self._lost[route] = None
        return missed

    def try_again(self, route: Route) -> bool:
        """Notes that a place may be free, or newly taken. Returns whether we want a route there."""
        concerned = self.is_wanted(route)
        if concerned:
            self._worth_a_try[route] = None
        return concerned

    def try_all_again(self) -> bool:
        """Tries all taken places again: foreign routes may have gone silently with their interface."""
        return any(list(map(self.try_again, self.rivals.places())))

    def mend(self, *, is_up: bool) -> None:
        """Queues lost routes, and places that are worth a try."""
        if is_up:
            self._lost.update(dict.fromkeys(self.routes(self.connected.give_up(self._prefixes))))
            lost = [route for route in self._lost if self.is_wanted(route)]
            self._ground.again("route", len(lost))
            for route in [*lost, *(each for each in self._worth_a_try if each not in self._lost)]:
                self.rivals.forget(route)
                self._todo.append((True, route))
            self.rivals.say()
        self._lost.clear()
        self.connected.forget()
        self._worth_a_try.clear()

    def work(self) -> Iterator[None] | None:
        """Tells the kernel a batch. Returns a check to run before the next batch, or None. Raises NetworkRefused."""
        if self._refused:
            refused, self._refused = self._refused, []
            return self._look_who(refused)
        if self._todo:
            self._change([self._todo.popleft() for _ in range(min(BATCH, len(self._todo)))])
            return None
        return self._look_beside()

    def _change(self, batch: list[Change]) -> None:
        ground = self._ground
        for wanted, (prefix, _) in batch:
            if len(self._guarded) >= MAX_GUARDS:
                break
            if wanted and (guard := self._guard_of(prefix)) is not None:
                self._guard(guard)
        try:
            refused = ground.routes.change(ground.index, batch)
        except OSError as error:
            raise NetworkRefused(f"cannot change routes: {error.strerror}") from None
        for (wanted, route), code in refused:
            if wanted and code == errno.EEXIST:
                self._refused.append(route)
            elif wanted and code in _LINK_DOWN:
                self.clear()  # all routes are made once the interface is up
            elif wanted or code not in _GONE:  # a removed route that is gone already is fine
                raise NetworkRefused(f"cannot {'make' if wanted else 'remove'} route {route[0]}: {os.strerror(code)}")
        for wanted, route in batch:
            if wanted:
                self._fresh.add(route[0].version)
            elif not self.is_wanted(route):
                self.rivals.forget(route)
                if route in self._guarded:
                    self._unguard(route)
        self.rivals.say()

    # --- foreign routes ------------------------------------------------------------------------------------

    def _look_who(self, refused: list[Route]) -> Iterator[None]:
        """Finds the foreign routes behind some refusals. Raises NetworkRefused."""
        for version in (4, 6):
            there = yield from self.rivals.at(version, [route for route in refused if route[0].version == version])
            for route, found in there.items():
                if self.rivals.judge(route, found):
                    self._todo.append((False, route))
                elif route not in self.rivals.taken and not any(map(self.rivals.is_ours, found)):
                    if not self.rivals.settled:
                        raise NetworkRefused(f"cannot make route {route[0]}: {os.strerror(errno.EEXIST)}")
                    self._todo.append((True, route))  # gone meanwhile
        self.rivals.say()

    def _is_network(self, place: Route) -> bool:
        prefix, table = place
        wanted = self.wanted
        if table != MAIN or prefix not in self.connected or wanted is None or wanted.table not in {"auto", str(MAIN)}:
            return False
        return any(self.connected.around(each) == prefix for each in self._prefixes)

    def _look_beside(self) -> Iterator[None]:
        """Finds our routes that have no effect beside foreign ones, and removes them. Raises NetworkRefused."""
        fresh, self._fresh = self._fresh, set()
        for version in sorted(fresh):
            vain = yield from self.rivals.look(version, self._tables(), self.is_wanted, self._is_network)
            self._todo.extend((False, route) for route in vain)
