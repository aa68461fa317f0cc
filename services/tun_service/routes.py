"""What the kernel is to know of an interface: its addresses (`network`), routes of the peers' allowed-IPs, and the policy
rules that a default route needs, as wg-quick(8) sets them.

`Table = auto` puts each prefix into the main table; a default route goes into a table of its own instead, which everything
uses that doesn't carry our mark, so that the outer packets still find the real one. `Table = N` puts all into table N,
`off` sets none. Routes of ours carry a protocol number of their own, by which they are known again after a restart; the
difference between what is wanted and what stands is what is changed, a millisecond's worth at a time, because there may
be 130,000 of them and packets in between.
"""

import errno
import gc
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_interface
from typing import Any, Final

from pyroute2 import NetlinkError

from stagewire.ipc.loop import boot_time
from tun_service.network import NetworkRefused, Wanted, apply, index_of
from tun_service.route_messages import Change, Route, RouteSocket

Network = IPv4Network | IPv6Network
PROTOCOL: Final = 87
"""Of our routes and rules; no routing daemon uses it."""
MAIN_TABLE: Final = 254
BUDGET: Final = 0.001
"""s that routes take at a time; then packets have as long. With 4 ms of every turn they waited until they were too old."""
PIECE: Final = 128
"""Prefixes looked at together when all are compared."""
BATCH: Final = 32
"""Routes told to the kernel together: some 0.4 ms."""
_INVERT: Final = 0x2  # FIB_RULE_INVERT
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Routes:
    """Brings the kernel's routes into line. `on_settled` is told when they are, or why they can't be."""

    def __init__(self, netlink: Any, interface: str, on_settled: Callable[[str], None]) -> None:
        self._netlink = netlink
        self._kernel = RouteSocket(PROTOCOL)
        self._interface = interface
        self._on_settled = on_settled
        self._wanted: Wanted | None = None
        self._connected: set[Network] = set()
        self._index = 0
        self._todo: deque[Change] = deque()
        self._later: deque[Change] = deque()
        """What came while they were compared."""
        self._plan: Iterator[None] | None = None
        self._due: float | None = None
        """While there is something to do: from when on."""
        self._sound = False
        """Compared, and nothing refused since: what is added and removed from now on is all there is to do."""

    @property
    def busy(self) -> bool:
        """Whether there is something to do, after which `on_settled` is told."""
        return self._due is not None

    def follows(self, wanted: Wanted) -> bool:
        """Whether they need no comparison to be as `wanted` says: 130,000 are looked through for seconds, beside packets."""
        return self._sound and wanted == self._wanted

    def distrust(self) -> None:
        """Takes in no more differences: all will be compared."""
        self._sound = False

    def begin(self, wanted: Wanted, prefixes: Iterable[Network], *, set_mtu: bool = True, when: float = 0.0) -> None:
        """Compares all that is wanted with what stands, and changes what differs; not before `when` (s)."""
        self._wanted = wanted
        # The addresses' own networks are routed by the kernel already; wg-quick leaves them out as well.
        self._connected = {ip_interface(address).network for address in wanted.addresses}
        self._todo.clear()
        self._later.clear()
        self._plan = self._compare(wanted, list(prefixes), set_mtu=set_mtu)
        self._sound = True
        self._due = self._due or when

    def _compare(self, wanted: Wanted, prefixes: list[Network], *, set_mtu: bool) -> Iterator[None]:
        """Finds out what is to be done, in pieces of a millisecond or two."""
        self._index = index_of(self._netlink, self._interface)
        yield
        yield from apply(self._netlink, self._index, wanted, set_mtu=set_mtu)
        missing: dict[Route, None] = {}
        for start in range(0, len(prefixes), PIECE):
            for route in self._routes(prefixes[start : start + PIECE]):
                missing[route] = None
                if self._needs_rules(route[0]):
                    self._set_rules(_FAMILIES[route[0].version], route[1])
            yield
        try:
            for standing in self._kernel.standing(self._index):
                for route in standing:
                    if route in missing:
                        del missing[route]
                    else:
                        self._todo.append((False, route))
                yield
        except OSError as error:
            raise NetworkRefused(f"routes: {error}") from None
        self._todo.extend((True, route) for route in missing)

    def close(self) -> None:
        """Lets go of netlink; the routes stay."""
        self._netlink.close()
        self._kernel.close()

    def add(self, prefixes: Iterable[Network]) -> None:
        """More of them."""
        self._enter(True, prefixes)

    def remove(self, prefixes: Iterable[Network]) -> None:
        """Fewer of them."""
        self._enter(False, prefixes)

    def _enter(self, wanted: bool, prefixes: Iterable[Network]) -> None:
        if self._sound:  # otherwise all will be compared
            # What is being compared doesn't know of it, and would take it back.
            behind = self._later if self._plan is not None else self._todo
            behind.extend((wanted, route) for route in self._routes(prefixes))
            if self._plan is not None or self._todo:
                self._due = self._due or 0.0

    def next_deadline(self) -> float | None:
        """When to go on, while there is something to do."""
        return self._due

    def act(self, _now: float) -> None:
        """A few of them, and then a rest as long as they took."""
        begun = boot_time()
        try:
            while (self._plan is not None or self._todo) and boot_time() < begun + BUDGET:
                if self._plan is not None:
                    self._go_on(self._plan)
                    continue
                self._change([self._todo.popleft() for _ in range(min(BATCH, len(self._todo)))])
        except NetworkRefused as refused:
            self._todo.clear()
            self._later.clear()
            self._plan = None
            self._due = None
            self._sound = False
            self._on_settled(str(refused))
            return
        if self._plan is None and not self._todo:
            self._due = None
            self._on_settled("")
        else:
            now = boot_time()
            self._due = now + (now - begun)

    def _go_on(self, plan: Iterator[None]) -> None:
        # What it leaves has no cycles, and to look for some among 130,000 routes takes 30 ms each time.
        gc.freeze()
        try:
            next(plan)
        except StopIteration:
            self._plan = None
            self._todo.extend(self._later)
            self._later.clear()

    def _change(self, batch: list[Change]) -> None:
        try:
            refused = self._kernel.change(self._index, batch)
        except OSError as error:
            raise NetworkRefused(f"routes: {error}") from None
        for (wanted, (prefix, _)), code in refused:
            if wanted or code not in {errno.ESRCH, errno.ENOENT}:  # gone already, by somebody else's hand
                raise NetworkRefused(f"{'' if wanted else 'removing '}route {prefix}: {os.strerror(code)}")
        for wanted, (prefix, table) in batch:
            if wanted and self._needs_rules(prefix):
                self._set_rules(_FAMILIES[prefix.version], table)

    def _routes(self, prefixes: Iterable[Network]) -> Iterable[Route]:
        wanted = self._wanted
        if wanted is None or wanted.table == "off":
            return
        for prefix in prefixes:
            if wanted.table != "auto":
                yield prefix, int(wanted.table)
            elif prefix.prefixlen == 0:
                # Without a mark the outer packets would follow it themselves, and table 0 is the main one: as long as
                # key-service gives none, because the default route has only just been allowed, the host keeps its own.
                if wanted.fwmark:
                    yield prefix, wanted.fwmark
            elif prefix not in self._connected:
                yield prefix, MAIN_TABLE

    def _needs_rules(self, prefix: Network) -> bool:
        return self._wanted is not None and self._wanted.table == "auto" and prefix.prefixlen == 0

    def _set_rules(self, family: int, table: int) -> None:
        """Everything without our mark looks into our table, after the main table's routes but for its default."""
        for rule in (
            {"table": table, "fwmark": table, "flags": _INVERT, "priority": 32765},
            {"table": MAIN_TABLE, "suppress_prefixlen": 0, "priority": 32764},
        ):
            try:
                self._netlink.rule("add", family=family, protocol=PROTOCOL, **rule)
            except NetlinkError as error:
                if error.code != errno.EEXIST:  # from an earlier life, or another interface's
                    raise NetworkRefused(f"policy rule: {error}") from None
