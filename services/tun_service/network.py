"""Addresses, MTU, routes and policy rules of the interface, as wg-quick(8) sets them.

`Table = auto` puts each peer's prefixes into the main table; a default route goes into a table of its own instead, which
everything uses that doesn't carry our mark, so that the outer packets still find the real one. `Table = N` puts all into
table N, `off` sets none. Routes of ours carry a protocol number of their own, by which they are known again after a
restart; the difference to what is wanted is what is changed.
"""

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

Network = IPv4Network | IPv6Network

PROTOCOL: Final = 87
"""Of our routes (rtm_protocol); no routing daemon uses it."""
MAIN_TABLE: Final = 254
_INVERT: Final = 0x2  # FIB_RULE_INVERT
_NO_LINK_LOCAL: Final = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_SCOPES: Final = {4: "link", 6: "universe"}
"""Of our routes; the kernel finds no IPv4 route to remove under another scope than its own."""


class NetworkRefused(Exception):  # noqa: N818 - told to the operator
    """The kernel didn't take an address, a route or a rule; the text is one line that names it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`addresses` as address/length; `table` is auto, off or a number.

    `fwmark` is what outer packets carry, and the table of a default route.
    """

    addresses: tuple[str, ...]
    mtu: int
    table: str
    fwmark: int
    prefixes: tuple[Network, ...]


def warm_up() -> None:
    """Makes pyroute2 load what it loads when first used: as another uid we may not be able to read it."""
    with IPRoute() as netlink:
        netlink.link_lookup(ifname="lo")


def apply(interface: str, wanted: Wanted) -> None:
    """Makes the interface as wanted and brings it up. Raises NetworkRefused."""
    with IPRoute() as netlink:
        found = netlink.link_lookup(ifname=interface)
        if not found:
            raise NetworkRefused(f"interface {interface} is gone")
        index = found[0]
        _try(f"MTU {wanted.mtu}", netlink.link, "set", index=index, mtu=wanted.mtu)
        _set_addresses(netlink, index, wanted.addresses)
        # As the kernel's WireGuard: no link-local address, which would only solicit routers nobody has.
        _try("no link-local address", netlink.link, "set", index=index, IFLA_AF_SPEC=_NO_LINK_LOCAL)
        _try("bringing it up", netlink.link, "set", index=index, state="up")
        _set_routes(netlink, index, wanted)


def _try(what: str, call: Any, *arguments: Any, **keywords: Any) -> None:
    try:
        call(*arguments, **keywords)
    except NetlinkError as error:
        raise NetworkRefused(f"{what}: {error}") from None


def _set_addresses(netlink: Any, index: int, addresses: Iterable[str]) -> None:
    wanted = {ip_interface(address) for address in addresses}
    for address in _standing_addresses(netlink, index) - wanted:
        try:
            netlink.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EADDRNOTAVAIL:  # gone with another of its network, see below
                raise NetworkRefused(f"removing address {address}: {error}") from None
    # Read anew: the kernel takes a network's other IPv4 addresses away along with its first.
    for address in wanted - _standing_addresses(netlink, index):
        _try(f"address {address}", netlink.addr, "replace", index=index, address=str(address.ip),
             prefixlen=address.network.prefixlen)  # fmt: skip


def _standing_addresses(netlink: Any, index: int) -> set[IPv4Interface | IPv6Interface]:
    standing = set()
    for message in netlink.get_addr(index=index):
        address = ip_interface(f"{message.get('address')}/{message['prefixlen']}")
        if address.version == 4 or not address.is_link_local:  # those are the kernel's own
            standing.add(address)
    return standing


def _set_routes(netlink: Any, index: int, wanted: Wanted) -> None:
    routes = set(_routes(wanted))
    standing = set()
    for family in _FAMILIES.values():
        for message in netlink.get_routes(family=family, proto=PROTOCOL):
            if message.get("oif") == index and message["proto"] == PROTOCOL:
                standing.add((_prefix(message), message.get("table") or message["table"]))
    for prefix, table in standing - routes:
        _try(f"removing route {prefix}", netlink.route, "del", dst=str(prefix), oif=index, table=table, proto=PROTOCOL,
             scope=_SCOPES[prefix.version])  # fmt: skip
    for prefix, table in sorted(routes - standing, key=str):
        _try(f"route {prefix}", netlink.route, "replace", dst=str(prefix), oif=index, table=table, proto=PROTOCOL,
             scope=_SCOPES[prefix.version])  # fmt: skip
    _set_rules(netlink, {(prefix.version, table) for prefix, table in routes if _needs_rules(wanted, prefix)})


def _prefix(message: Any) -> Network:
    destination = message.get("dst") or ("0.0.0.0" if message["family"] == socket.AF_INET else "::")  # noqa: S104
    return ip_network(f"{destination}/{message['dst_len']}")


def _routes(wanted: Wanted) -> Iterable[tuple[Network, int]]:
    """(prefix, table) of every route to set."""
    if wanted.table == "off":
        return
    # The addresses' own networks are routed by the kernel already; wg-quick leaves them out as well.
    connected = {ip_interface(address).network for address in wanted.addresses}
    for prefix in wanted.prefixes:
        if wanted.table != "auto":
            yield prefix, int(wanted.table)
        elif prefix.prefixlen == 0:
            yield prefix, wanted.fwmark
        elif prefix not in connected:
            yield prefix, MAIN_TABLE


def _needs_rules(wanted: Wanted, prefix: Network) -> bool:
    return wanted.table == "auto" and prefix.prefixlen == 0


def _set_rules(netlink: Any, defaults: set[tuple[int, int]]) -> None:
    """Everything without our mark looks into our table, after the main table's routes but for its default."""
    for version, table in defaults:
        family = _FAMILIES[version]
        for rule in (
            {"table": table, "fwmark": table, "flags": _INVERT},
            {"table": MAIN_TABLE, "suppress_prefixlen": 0},
        ):
            try:
                netlink.rule("add", family=family, protocol=PROTOCOL, priority=_priority(rule), **rule)
            except NetlinkError as error:
                if error.code != errno.EEXIST:  # from an earlier life
                    raise NetworkRefused(f"policy rule: {error}") from None


def _priority(rule: dict[str, int]) -> int:
    return 32764 if rule["table"] == MAIN_TABLE else 32765
