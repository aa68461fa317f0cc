"""Makes, removes and reads many routes at a time: a batch of rtnetlink's messages in one system call.

pyroute2 needs far more CPU for each route, and there may be 130,560. Source: rtnetlink(7), linux/rtnetlink.h.
"""

import errno
import socket
import struct
import sys
from collections.abc import Container, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, NamedTuple

from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import netlink
from stagewire.linux.netlink import Netlink

Network = IPv4Network | IPv6Network
Route = tuple[Network, int]
"""(prefix, table)"""
Change = tuple[bool, Route]
"""(True to make it or False to remove it, route)"""

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
BODY: Final = struct.Struct("=BBBBBBBBI")
"""family, bits of destination, of source, service, table, protocol, scope, type, flags"""
_PROTOCOL_AT: Final = 5
_RTM_F_CLONED: Final = 0x200
_RTM_F_FIB_MATCH: Final = 0x2000
_TABLE_COMPAT: Final = 252
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE, _RTA_MARK = 1, 4, 5, 6, 8, 15, 16
_RTA_MULTIPATH, _RTA_VIA, _RTA_NEXTHOP = 9, 18, 30
_HOP: Final = struct.Struct("=HBBi")
"""one way of several (rtnexthop): length, flags, weight, interface"""
_RTAX_MTU: Final = 2
_UNICAST, _UNREACHABLE = 1, 7
_NAMES: Final = {6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_PROTOCOLS: Final = {
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    16: "dhcp",
    ROUTE_PROTOCOL: "stagewire",
}
_SCOPES: Final = {4: 253, 6: 0}
"""Link and universe, of our routes. The kernel removes an IPv4 route only under the route's own scope."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
USUAL_METRIC: Final = {4: 0, 6: 1024}
"""Metric of a route made without a metric."""


class Hop(NamedTuple):
    """Describes one way that a route leads. `link` is 0 for none."""

    link: int
    gateway: bytes

    def described(self) -> list[str]:
        """Returns the way in the words of ip-route(8)."""
        words = ["via", str(ip_address(self.gateway))] if self.gateway else []
        if self.link:
            try:
                words += ["dev", socket.if_indextoname(self.link)]
            except OSError:
                words += ["dev", str(self.link)]
        return words


class Found(NamedTuple):
    """Describes a standing route. `kind` is its type; `link` is 0 for none, and for a route with several `hops`.

    A `narrow` route is of one `tos` (IPv4) or from some addresses (IPv6), and precedes other routes for its packets.
    """

    prefix: Network
    table: int
    kind: int
    protocol: int
    link: int
    gateway: bytes
    metric: int
    tos: int = 0
    narrow: bool = False
    hops: tuple[Hop, ...] = ()

    def described(self) -> str:
        """Returns the route in the words of ip-route(8), without its prefix."""
        words = [_NAMES[self.kind]] if self.kind in _NAMES else []
        words += ["tos", f"{self.tos:#04x}"] if self.tos else []
        for hop in self.hops:
            words += ["nexthop", *hop.described()]
        words += Hop(0 if self.kind in _NAMES else self.link, self.gateway).described()
        return " ".join([*words, "proto", _PROTOCOLS.get(self.protocol, str(self.protocol))])


def parse(body: bytes) -> Found | None:
    """Reads a route. Returns None for a malformed message, and for a route of the kernel's cache."""
    if len(body) < BODY.size:
        return None
    family, bits, source, tos, table, protocol, _, kind, flags = BODY.unpack_from(body)
    if flags & _RTM_F_CLONED or family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    found = netlink.attributes(body[BODY.size :])
    network = IPv4Network if family == socket.AF_INET else IPv6Network
    try:
        prefix = network((found.get(_RTA_DST) or bytes(4 if family == socket.AF_INET else 16), bits))
    except ValueError:
        return None

    def value(kind: int, default: int = 0) -> int:
        return int.from_bytes(found[kind], sys.byteorder) if kind in found else default

    link, gateway, hops = value(_RTA_OIF), _gateway(found), tuple(_hops(found.get(_RTA_MULTIPATH, b"")))
    if _RTA_NEXTHOP in found:  # `ip nexthop` may lead it elsewhere at any time, so it is never ours
        link, gateway, hops = 0, b"", hops or (Hop(link, gateway),)
    return Found(
        prefix, value(_RTA_TABLE, table), kind, protocol, link, gateway, value(_RTA_PRIORITY),
        tos, bool(tos or source), hops,
    )  # fmt: skip


def _gateway(found: dict[int, bytes]) -> bytes:
    gateway = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]  # RTA_VIA begins with a family
    return gateway if len(gateway) in {4, 16} else b""


def _hops(data: bytes) -> Iterator[Hop]:
    while len(data) >= _HOP.size:
        length, _, _, link = _HOP.unpack_from(data)
        if not _HOP.size <= length <= len(data):
            return
        yield Hop(link, _gateway(netlink.attributes(data[_HOP.size : length])))
        data = data[(length + 3) & ~3 :]


class RouteSocket:
    """Makes and removes our routes, and reads foreign ones."""

    def __init__(self, protocol: int) -> None:
        """Opens netlink. Our routes are known by `protocol`."""
        self._protocol = protocol
        self._kernel = Netlink()

    def close(self) -> None:
        """Closes netlink; the routes stay."""
        self._kernel.close()

    # --- to the interface ----------------------------------------------------------------------------------

    def change(self, interface: int, changes: Sequence[Change]) -> list[tuple[Change, int]]:
        """Makes some dozens of changes, in order. Returns the changes that the kernel refused, each with its errno.

        A foreign route is never replaced: EEXIST. Raises OSError if the kernel does not answer. hot
        """
        requests = [self._request(wanted, route, link=interface) for wanted, route in changes]
        return [(changes[at], code) for at, code in self._kernel.do_all(requests)]

    def standing(self, interface: int) -> Iterator[list[Route]]:
        """Yields our routes to an interface, as many at a time as the kernel hands over. Raises OSError."""
        for family in (socket.AF_INET, socket.AF_INET6):
            body = BODY.pack(family, 0, 0, 0, 0, self._protocol, 0, 0, 0) + netlink.number(_RTA_OIF, interface)
            for bodies in self._dump(body):
                yield [
                    (found.prefix, found.table)
                    for each in bodies
                    if (found := parse(each)) and found.protocol == self._protocol and found.link == interface
                ]

    # --- guard routes ---------------------------------------------------------------------------------------

    def guard(self, route: Route, metric: int) -> int:
        """Makes a guard route. Returns 0, or the errno of the kernel's refusal. Raises OSError."""
        refused = self._kernel.do_all([self._request(True, route, metric=metric)])
        return refused[0][1] if refused else 0

    def unguard(self, route: Route, metric: int) -> int:
        """Removes a guard route. Returns 0, or the errno of the kernel's refusal. Raises OSError."""
        refused = self._kernel.do_all([self._request(False, route, metric=metric)])
        return refused[0][1] if refused else 0

    def guards(self, metric: int) -> Iterator[list[Route]]:
        """Yields our guard routes of one metric. Raises OSError."""
        for family in (socket.AF_INET, socket.AF_INET6):
            body = BODY.pack(family, 0, 0, 0, 0, self._protocol, 0, _UNREACHABLE, 0)
            for bodies in self._dump(body):
                yield [
                    (found.prefix, found.table)
                    for each in bodies
                    if (found := parse(each))
                    and (found.protocol, found.kind, found.metric) == (self._protocol, _UNREACHABLE, metric)
                ]

    # --- foreign routes ------------------------------------------------------------------------------------

    def of(self, version: int, table: int, prefixes: Container[Network]) -> Iterator[list[Found]]:
        """Yields all routes of some prefixes in a table, in IPv4's order of precedence. Raises OSError."""
        for bodies in self._dump(_body_of(version, table)):
            yield [
                found for each in bodies if (found := parse(each)) and found.table == table and found.prefix in prefixes
            ]

    def not_to(self, interface: int, version: int, table: int) -> Iterator[list[Found]]:
        """Yields all routes of a table but ours to an interface, which may be 130,000. Raises OSError."""
        ours = netlink.number(_RTA_OIF, interface)
        for bodies in self._dump(_body_of(version, table)):
            others = (each for each in bodies if each[_PROTOCOL_AT] != self._protocol or ours not in each)
            yield [found for each in others if (found := parse(each)) and found.table == table]

    def is_empty(self, table: int) -> bool:
        """Tells whether a table has no route of either family. Raises OSError."""
        for family in (socket.AF_INET, socket.AF_INET6):
            body = BODY.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + netlink.number(_RTA_TABLE, table)
            for bodies in self._dump(body):
                if any((found := parse(each)) and found.table == table for each in bodies):
                    return False
        return True

    def way(self, address: bytes, mark: int) -> tuple[int, int]:
        """Returns (interface, MTU) of the kernel's way to an address under a mark. An MTU of 0 is the interface's.

        Raises OSError if there is no way.
        """
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        # The route itself: what the kernel has learnt of its way since may be a stranger's word, by a forged ICMP message.
        body = BODY.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
        body += netlink.attribute(_RTA_DST, address)
        if mark:
            body += netlink.number(_RTA_MARK, mark)
        return _mtu_of(self._kernel.get(RTM_GETROUTE, body))

    def default_ways(self) -> Iterator[tuple[int, int]]:
        """Yields (interface, MTU) of each default route in the main table. Raises OSError."""
        for version, family in _FAMILIES.items():
            body = BODY.pack(family, 0, 0, 0, 0, 0, 0, _UNICAST, 0) + netlink.number(_RTA_TABLE, 254)
            for bodies in self._dump(body):
                for each in bodies:
                    found = parse(each)
                    if found and found.table == 254 and not found.prefix.prefixlen and found.prefix.version == version:
                        yield _mtu_of(each)

    # --- messages ------------------------------------------------------------------------------------------

    def _dump(self, body: bytes) -> Iterator[list[bytes]]:
        try:
            yield from self._kernel.dump(RTM_GETROUTE, body)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}:  # a kernel without IPv6 has no such routes
                raise

    def _request(self, wanted: bool, route: Route, *, link: int = 0, metric: int = 0) -> tuple[int, int, bytes]:
        prefix, table = route
        body = BODY.pack(
            _FAMILIES[prefix.version],
            prefix.prefixlen,
            0,
            0,
            table if table < 256 else _TABLE_COMPAT,
            self._protocol,
            _SCOPES[prefix.version] if link else 0,
            _UNICAST if link else _UNREACHABLE,
            0,
        )
        body += netlink.number(_RTA_TABLE, table)
        body += netlink.number(_RTA_OIF, link) if link else netlink.number(_RTA_PRIORITY, metric)
        body += netlink.attribute(_RTA_DST, prefix.network_address.packed)
        return (RTM_NEWROUTE, netlink.CREATE | netlink.EXCLUSIVE, body) if wanted else (RTM_DELROUTE, 0, body)


def _body_of(version: int, table: int) -> bytes:
    return BODY.pack(_FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0) + netlink.number(_RTA_TABLE, table)


def _mtu_of(body: bytes) -> tuple[int, int]:
    found = netlink.attributes(body[BODY.size :])
    metrics = netlink.attributes(found.get(_RTA_METRICS, b""))
    link = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
    if not link:
        link = next((hop.link for hop in _hops(found.get(_RTA_MULTIPATH, b""))), 0)
    return link, int.from_bytes(metrics.get(_RTAX_MTU, b""), sys.byteorder)
