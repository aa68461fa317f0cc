"""Reads, adds and removes addresses of the interface (rtnetlink(7), RTM_NEWADDR)."""

import struct
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Final

from stagewire.linux import netlink
from stagewire.linux.netlink import Netlink

Address = IPv4Interface | IPv6Interface
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
_BODY: Final = struct.Struct("=BBBBI")
"""family, prefix length, flags, scope, index"""
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_FAMILIES: Final = {4: 2, 6: 10}


def parse(body: bytes) -> tuple[int, Address] | None:
    """Reads (interface, address) from a message. Returns None for a malformed message."""
    if len(body) < _BODY.size:
        return None
    family, length, _, _, index = _BODY.unpack_from(body)
    found = netlink.attributes(body[_BODY.size :])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or len(packed) != {2: 4, 10: 16}.get(family):
        return None
    return index, ip_interface(f"{ip_address(packed)}/{length}")


def standing(kernel: Netlink, index: int) -> set[Address]:
    """Returns the interface's addresses, without the kernel's own link-local ones. Raises OSError."""
    found = set()
    for bodies in kernel.dump(RTM_GETADDR, _BODY.pack(0, 0, 0, 0, index)):
        for body in bodies:
            parsed = parse(body)
            if parsed is not None and parsed[0] == index and not (parsed[1].version == 6 and parsed[1].is_link_local):
                found.add(parsed[1])
    return found


def add(kernel: Netlink, index: int, address: Address) -> None:
    """Adds an address, or replaces it. Raises OSError."""
    kernel.do(RTM_NEWADDR, netlink.CREATE | netlink.REPLACE, _message(index, address))


def remove(kernel: Netlink, index: int, address: Address) -> None:
    """Removes an address. Raises OSError."""
    kernel.do(RTM_DELADDR, 0, _message(index, address))


def _message(index: int, address: Address) -> bytes:
    packed = address.ip.packed
    body = _BODY.pack(_FAMILIES[address.version], address.network.prefixlen, 0, 0, index)
    return body + netlink.attribute(_IFA_LOCAL, packed) + netlink.attribute(_IFA_ADDRESS, packed)
