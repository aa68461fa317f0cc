"""Addresses and MTU of the interface, as wg-quick(8) sets them. Its routes are in `routes`."""

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

_NO_LINK_LOCAL: Final = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}


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


def open_netlink() -> Any:
    """A line to the kernel, used once: what pyroute2 loads then, we may not be able to read as another uid."""
    netlink = IPRoute()
    netlink.link_lookup(ifname="lo")
    return netlink


def apply(netlink: Any, index: int, wanted: Wanted, *, set_mtu: bool = True) -> Iterator[None]:
    """Makes the interface as wanted, but for its routes, and brings it up; a millisecond or so from step to step.

    Raises NetworkRefused.
    """
    if set_mtu:
        attempt(f"MTU {wanted.mtu}", netlink.link, "set", index=index, mtu=wanted.mtu)
        yield
    yield from _set_addresses(netlink, index, wanted.addresses)
    # As the kernel's WireGuard: no link-local address, which would only solicit routers nobody has.
    attempt("no link-local address", netlink.link, "set", index=index, IFLA_AF_SPEC=_NO_LINK_LOCAL)
    yield
    attempt("bringing it up", netlink.link, "set", index=index, state="up")
    yield


def index_of(netlink: Any, interface: str) -> int:
    """The interface's number. Raises NetworkRefused when it is gone."""
    found = netlink.link_lookup(ifname=interface)
    if not found:
        raise NetworkRefused(f"interface {interface} is gone")
    return int(found[0])


def attempt(what: str, call: Any, *arguments: Any, **keywords: Any) -> None:
    try:
        call(*arguments, **keywords)
    except NetlinkError as error:
        raise NetworkRefused(f"{what}: {error}") from None


def _set_addresses(netlink: Any, index: int, addresses: Iterable[str]) -> Iterator[None]:
    wanted = {ip_interface(address) for address in addresses}
    standing = _standing_addresses(netlink, index)
    yield
    for address in standing - wanted:
        try:
            netlink.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EADDRNOTAVAIL:  # gone with another of its network, see below
                raise NetworkRefused(f"removing address {address}: {error}") from None
        yield
    if standing - wanted:  # the kernel takes a network's other IPv4 addresses away along with its first
        standing = _standing_addresses(netlink, index)
        yield
    for address in wanted - standing:
        attempt(f"address {address}", netlink.addr, "replace", index=index, address=str(address.ip),
             prefixlen=address.network.prefixlen)  # fmt: skip
        yield


def _standing_addresses(netlink: Any, index: int) -> set[IPv4Interface | IPv6Interface]:
    standing = set()
    for message in netlink.get_addr(index=index):
        address = ip_interface(f"{message.get('address')}/{message['prefixlen']}")
        if address.version == 4 or not address.is_link_local:  # those are the kernel's own
            standing.add(address)
    return standing
