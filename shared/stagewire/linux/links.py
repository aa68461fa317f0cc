"""Finds, sets up and deletes interfaces (rtnetlink(7), RTM_NEWLINK)."""

import socket
import struct
from typing import Final, NamedTuple

from stagewire.linux import netlink
from stagewire.linux.netlink import Netlink

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
_BODY: Final = struct.Struct("=BxHiII")
"""family, type, index, flags, change"""
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_GSO_MAX_SIZE = 3, 4, 18, 26, 41
_IFLA_CARRIER, _IFLA_NEW_NETNSID, _IFLA_NEW_IFINDEX = 33, 45, 49
_INFO_KIND, _INFO_DATA = 1, 2
_TUN_OWNER: Final = 1
_INET6_ADDR_GEN_MODE: Final = 8
_GEN_MODE_NONE: Final = 1
_IFF_UP: Final = 1
_ARPHRD_NONE: Final = 0xFFFE
"""Hardware type of a device that takes IP packets, unlike a TAP device's."""
NOBODY: Final = -1
"""Owner of a TUN device that root alone may attach to."""


class Link(NamedTuple):
    """Describes one interface. `mtu` is in bytes; `owner` is a TUN device's uid or NOBODY, else None."""

    number: int
    name: str
    mtu: int
    up: bool
    owner: int | None = None
    gone: bool = False
    moved: bool = False
    """It went to another network namespace."""
    attached: bool = False
    """A process holds a TUN device open."""
    tunnel: bool = False
    """It is a TUN device, or the kernel's WireGuard."""


def parse(kind: int, body: bytes) -> Link | None:
    """Reads a link message; None if it is malformed."""
    if len(body) < _BODY.size:
        return None
    _, hardware, index, flags, _ = _BODY.unpack_from(body)
    found = netlink.attributes(body[_BODY.size :])
    info = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
    owner, of_kind = None, info.get(_INFO_KIND, b"").rstrip(b"\0")
    if of_kind == b"tun":
        data = netlink.attributes(info.get(_INFO_DATA, b""))
        owner = int.from_bytes(data[_TUN_OWNER], "little") if _TUN_OWNER in data else NOBODY
    return Link(
        index,
        found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        int.from_bytes(found.get(_IFLA_MTU, b""), "little"),
        bool(flags & _IFF_UP),
        owner,
        kind == RTM_DELLINK,
        kind == RTM_DELLINK and bool({_IFLA_NEW_NETNSID, _IFLA_NEW_IFINDEX} & found.keys()),
        owner is not None and any(found.get(_IFLA_CARRIER, b"")),
        hardware == _ARPHRD_NONE and of_kind in {b"tun", b"wireguard"},
    )


def find(kernel: Netlink, name: str) -> Link | None:
    """Looks an interface up by its name. Raises OSError."""
    return _get(kernel, 0, netlink.name(_IFLA_IFNAME, name))


def at(kernel: Netlink, index: int) -> Link | None:
    """Looks an interface up by its number. Raises OSError."""
    return _get(kernel, index, b"")


def _get(kernel: Netlink, index: int, attributes: bytes) -> Link | None:
    try:
        return parse(RTM_NEWLINK, kernel.get(RTM_GETLINK, _BODY.pack(0, 0, index, 0, 0) + attributes))
    except OSError as error:
        if error.errno in {19, 22, 34}:  # ENODEV; EINVAL and ERANGE of a name that no interface can have
            return None
        raise


def set_mtu(kernel: Netlink, index: int, mtu: int) -> None:
    """Sets the MTU in bytes. Raises OSError."""
    _set(kernel, index, netlink.number(_IFLA_MTU, mtu))


def set_up(kernel: Netlink, index: int) -> None:
    """Brings an interface up. Raises OSError."""
    _set(kernel, index, b"", _IFF_UP)


def without_link_local(kernel: Netlink, index: int) -> None:
    """Keeps IPv6 from making an address, as the kernel's WireGuard does. Raises OSError.

    The kernel would use the address only to solicit routers, and a tunnel has none.
    """
    inet6 = netlink.attribute(_INET6_ADDR_GEN_MODE, bytes([_GEN_MODE_NONE]))
    _set(kernel, index, netlink.attribute(_IFLA_AF_SPEC, netlink.attribute(socket.AF_INET6, inet6)))


def limit_super_packets(kernel: Netlink, index: int, size: int) -> None:
    """Limits the bytes that the kernel puts into one super-packet. Raises OSError."""
    _set(kernel, index, netlink.number(_IFLA_GSO_MAX_SIZE, size))


def delete(kernel: Netlink, index: int) -> None:
    """Deletes an interface. Raises OSError."""
    kernel.do(RTM_DELLINK, 0, _BODY.pack(0, 0, index, 0, 0))


def _set(kernel: Netlink, index: int, attributes: bytes, flags: int = 0) -> None:
    kernel.do(RTM_NEWLINK, 0, _BODY.pack(0, 0, index, flags, flags) + attributes)
