"""What the kernel is to know of an interface: its addresses (`network`), routes of the peers' allowed-IPs, and the policy
rules that a default route needs, as wg-quick(8) sets them.

`Table = auto` puts each prefix into the main table; a default route goes into a table of its own instead, which everything
uses that doesn't carry our mark, so that the outer packets still find the real one. `Table = N` puts all into table N,
`off` sets none. Routes of ours carry a protocol number of their own, by which they are known again after a restart; the
difference between what is wanted and what stands is what is changed, a few milliseconds' worth at a time, because there may
be 130,000 of them and packets in between.
"""

import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from typing import Any, Final

from pyroute2 import NetlinkError

from stagewire.ipc.loop import boot_time
from tun_service.network import NetworkRefused, Wanted, apply, attempt, index_of

Network = IPv4Network | IPv6Network
Route = tuple[Network, int]
"""(prefix, table)"""

PROTOCOL: Final = 87
"""Of our routes and rules; no routing daemon uses it."""
MAIN_TABLE: Final = 254
BUDGET: Final = 0.004
"""s of one turn that routes may take."""
_STEP: Final = 64
_INVERT: Final = 0x2  # FIB_RULE_INVERT
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_SCOPES: Final = {4: "link", 6: "universe"}
"""Of our routes; the kernel finds no IPv4 route to remove under another scope than its own."""


class Routes:
    """Brings the kernel's routes into line. `on_settled` is told when they are, or why they can't be."""

    def __init__(self, netlink: Any, interface: str, on_settled: Callable[[str], None]) -> None:
        self._netlink = netlink
        self._interface = interface
        self._on_settled = on_settled
        self._wanted: Wanted | None = None
        self._connected: set[Network] = set()
        self._index = 0
        self._comparing: Iterator[None] = iter(())
        self._todo: deque[tuple[bool, Route]] = deque()
        self._due = False

    def begin(self, wanted: Wanted, prefixes: Iterable[Network], *, set_mtu: bool = True) -> None:
        """Compares all that is wanted with what stands, and changes what differs."""
        self._wanted = wanted
        # The addresses' own networks are routed by the kernel already; wg-quick leaves them out as well.
        self._connected = {ip_interface(address).network for address in wanted.addresses}
        self._todo.clear()
        self._comparing = self._compare(wanted, tuple(prefixes), set_mtu)
        self._due = True

    def _compare(self, wanted: Wanted, prefixes: Sequence[Network], set_mtu: bool) -> Iterator[None]:
        """Step by step. What changes meanwhile is in `_todo`, and comes after what is found here."""
        self._index = index_of(self._netlink, self._interface)
        yield
        yield from apply(self._netlink, self._index, wanted, set_mtu=set_mtu)
        routes: dict[Route, None] = {}  # a set that keeps its order
        for position, route in enumerate(self._routes(prefixes)):
            routes[route] = None
            if position % _STEP == 0:
                yield
        standing: set[Route] = set()
        for route in self._standing():
            standing.add(route)
            yield
        found = [(False, route) for route in standing if route not in routes]
        found += [(True, route) for route in routes if route not in standing]
        self._todo.extendleft(reversed(found))
        for prefix, table in routes:
            if self._needs_rules(prefix):
                self._set_rules(_FAMILIES[prefix.version], table)

    def close(self) -> None:
        """Lets go of netlink; the routes stay."""
        self._netlink.close()

    def add(self, prefixes: Iterable[Network]) -> None:
        """More of them."""
        self._enter(True, prefixes)

    def remove(self, prefixes: Iterable[Network]) -> None:
        """Fewer of them."""
        self._enter(False, prefixes)

    def _enter(self, wanted: bool, prefixes: Iterable[Network]) -> None:
        if self._wanted is not None:
            self._todo.extend((wanted, route) for route in self._routes(prefixes))
            self._due = True

    def next_deadline(self) -> float | None:
        """Now, while there is something to do."""
        return 0.0 if self._due else None

    def act(self, _now: float) -> None:
        """A few of them."""
        until = boot_time() + BUDGET
        try:
            for _ in self._comparing:
                if boot_time() >= until:
                    return
            while self._todo and boot_time() < until:
                self._change(*self._todo.popleft())
        except NetworkRefused as refused:
            self._todo.clear()
            self._comparing = iter(())
            self._due = False
            self._on_settled(str(refused))
            return
        if not self._todo:
            self._due = False
            self._on_settled("")

    def _change(self, wanted: bool, route: Route) -> None:
        prefix, table = route
        if not wanted:
            try:
                self._netlink.route(
                    "del", dst=str(prefix), oif=self._index, table=table, proto=PROTOCOL, scope=_SCOPES[prefix.version]
                )
            except NetlinkError as error:
                if error.code not in {errno.ESRCH, errno.ENOENT}:  # gone already, by somebody else's hand
                    raise NetworkRefused(f"removing route {prefix}: {error}") from None
            return
        attempt(
            f"route {prefix}", self._netlink.route, "replace",
            dst=str(prefix), oif=self._index, table=table, proto=PROTOCOL,
            scope=_SCOPES[prefix.version],
        )  # fmt: skip
        if self._needs_rules(prefix):
            self._set_rules(_FAMILIES[prefix.version], table)

    def _standing(self) -> Iterable[Route]:
        for family in _FAMILIES.values():
            for message in self._netlink.get_routes(family=family, proto=PROTOCOL):
                if message.get("oif") == self._index and message["proto"] == PROTOCOL:
                    yield _prefix(message), message.get("table") or message["table"]

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


def _prefix(message: Any) -> Network:
    destination = message.get("dst") or ("0.0.0.0" if message["family"] == socket.AF_INET else "::")  # noqa: S104
    return ip_network(f"{destination}/{message['dst_len']}")
