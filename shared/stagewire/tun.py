"""The TUN device (Linux, Documentation/networking/tuntap.rst), with offloads where the kernel has them.

With offloads each packet has a `virtio_net_hdr` before it, and up to 64 KiB of one flow are read or written in one piece
(`proto.offload`). Whether a device has them is decided when it is attached; a descriptor that was borrowed tells by itself.
"""

import errno
import fcntl
import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.netlink import Netlink
from stagewire.proto.offload.coalesce import TAKES_TCP, TAKES_UDP

MAX_PACKET: Final = 65535
DESCRIPTOR: Final = "tun"
"""What its descriptor is called when it is handed on."""
MAX_SUPER_PACKET: Final = 60_000
"""Bytes that the kernel puts in one super-packet: sealed, it still goes out by one UDP GSO send (64 datagrams, 65,507)."""
_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_F_TCP: Final = 0x01 | 0x02 | 0x04 | 0x08
"""TUN_F_CSUM, TSO4, TSO6, TSO_ECN."""
_F_UDP: Final = 0x20 | 0x40
"""TUN_F_USO4, USO6; Linux 6.2."""
LENDER: Final = "tun-lender"
"""In the run folder: where the keeper of `stagewire INTERFACE` hands out copies of its descriptor, to root."""
_BORROW_WITHIN: Final = 5.0
_REQUEST: Final = struct.Struct("16sH22x")


class TunUnavailable(Exception):  # noqa: N818 - a state of the host, told to the operator
    """The device can't be had; the text is one line for the operator."""


def open_clone() -> int:
    """Opens /dev/net/tun, for which one must be root (or the node's mode be otherwise). Raises TunUnavailable."""
    path = Path("/dev/net/tun")
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TunUnavailable(f"{path} is missing; load the tun module, or give the container the device") from None
    except OSError as error:
        raise TunUnavailable(f"{path}: {error.strerror}; start as root, or give access to the device") from None


def attach(clone: int, name: str, owner: int, *, persistent: bool = True, offload: bool = False) -> None:
    """Makes `name`, or takes it over if it is ours from an earlier life. Raises TunUnavailable.

    A persistent device outlives its processes; another is gone with its last descriptor. With `offload` there is a header
    before each packet from now on; what is in it, `switch_offloads` says.
    """
    _check_ours(name, owner)
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
    try:
        fcntl.ioctl(clone, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))
        fcntl.ioctl(clone, _TUNSETOWNER, owner)
        fcntl.ioctl(clone, _TUNSETPERSIST, int(persistent))
    except OSError as error:
        raise TunUnavailable(_explain(name, error)) from None
    if offload:
        _limit_super_packets(name)


def has_header(attached: int) -> bool:
    """Whether there is a `virtio_net_hdr` before each packet of a device."""
    answer = fcntl.ioctl(attached, _TUNGETIFF, _REQUEST.pack(b"", 0))
    return bool(_REQUEST.unpack(answer)[1] & _IFF_VNET_HDR)


def switch_offloads(attached: int) -> int:
    """Asks the kernel for super-packets, as far as it has them; what it will take itself (TAKES_*), 0 for none."""
    if not has_header(attached):
        return 0
    for flags, takes in ((_F_TCP | _F_UDP, TAKES_TCP | TAKES_UDP), (_F_TCP, TAKES_TCP)):
        with suppress(OSError):
            fcntl.ioctl(attached, _TUNSETOFFLOAD, flags)
            return takes
    return 0


def _limit_super_packets(name: str) -> None:
    # A kernel that can't limit them makes larger ones, which are then sent in two parts.
    with Netlink() as netlink, suppress(OSError):
        index = netlink.index_of(name)
        if index is not None:
            netlink.limit_super_packets(index, MAX_SUPER_PACKET)


def is_attached(clone: int) -> bool:
    """Whether a descriptor of /dev/net/tun belongs to a device, and that is there."""
    try:
        fcntl.ioctl(clone, _TUNGETIFF, bytes(_REQUEST.size))
    except OSError:
        return False
    return True


def _check_ours(name: str, owner: int) -> None:
    """As we may do anything with network devices, the kernel would let us take over anybody's."""
    with Netlink() as netlink:
        kind, owned_by = netlink.tun_owner(name)
    if kind == "tun" and owned_by != owner:
        raise TunUnavailable(f"interface {name} exists and is not ours; remove it or choose another name")


def borrow(path: Path) -> int:
    """A copy of the keeper's descriptor, attached already. Raises TunUnavailable."""
    until = time.monotonic() + _BORROW_WITHIN
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)  # the folder was wiped, and the keeper hasn't noticed yet
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_BORROW_WITHIN)
            line.connect(str(path))
            _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
            return descriptors[0]
    except (OSError, IndexError):
        raise TunUnavailable("the process that keeps the device doesn't answer; start the interface anew") from None


def _explain(name: str, error: OSError) -> str:
    match error.errno:
        case errno.EBUSY:
            return f"interface {name} is in use by another program; stop it or choose another name"
        case errno.EINVAL:
            return f"interface {name} exists and is no TUN device; remove it or choose another name"
        case errno.EPERM:
            return f"interface {name} cannot be made: CAP_NET_ADMIN is needed"
        case _:
            return f"interface {name} cannot be made: {error.strerror}"
