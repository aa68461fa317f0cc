"""Addresses and MTU of the interface, as wg-quick(8) sets them. Its routes are in `routes`."""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from stagewire.netlink import Netlink


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


def apply(netlink: Netlink, index: int, wanted: Wanted, *, set_mtu: bool = True) -> Iterator[None]:
    """Makes the interface as wanted, but for its routes, and brings it up; a millisecond or so from step to step.

    Raises NetworkRefused.
    """
    if set_mtu:
        attempt(f"MTU {wanted.mtu}", netlink.set_mtu, index, wanted.mtu)
        yield
    yield from _set_addresses(netlink, index, wanted.addresses)
    # As the kernel's WireGuard: no link-local address, which would only solicit routers nobody has.
    attempt("no link-local address", netlink.make_no_link_local, index)
    yield
    attempt("bringing it up", netlink.bring_up, index)
    yield


def index_of(netlink: Netlink, interface: str) -> int:
    """The interface's number. Raises NetworkRefused when it is gone."""
    found = netlink.index_of(interface)
    if found is None:
        raise NetworkRefused(f"interface {interface} is gone")
    return found


def attempt(what: str, call: Callable[..., None], *arguments: Any) -> None:
    """Asks the kernel for something. Raises NetworkRefused, which says what was asked for."""
    try:
        call(*arguments)
    except OSError as error:
        raise NetworkRefused(f"{what}: {error.strerror}") from None


def _set_addresses(netlink: Netlink, index: int, addresses: Iterable[str]) -> Iterator[None]:
    wanted = {ip_interface(address) for address in addresses}
    for address in _standing_addresses(netlink, index) - wanted:
        try:
            netlink.remove_address(index, address)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # gone with another of its network, see below
                raise NetworkRefused(f"removing address {address}: {error.strerror}") from None
        yield
    # Read anew: the kernel takes a network's other IPv4 addresses away along with its first.
    for address in wanted - _standing_addresses(netlink, index):
        attempt(f"address {address}", netlink.set_address, index, address)
        yield


def _standing_addresses(netlink: Netlink, index: int) -> set[IPv4Interface | IPv6Interface]:
    # IPv6 link-local ones are the kernel's own.
    return {each for each in netlink.addresses(index) if each.version == 4 or not each.is_link_local}
