"""Opens and attaches TUN devices (Linux, Documentation/networking/tuntap.rst), with offloads where the kernel has them.

With offloads, a `virtio_net_hdr` stands before each packet, and the device hands over and takes super-packets
(`proto.offload`). The process that attaches the device decides about offloads; `has_header` tells what it decided.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.linux import links, uids
from stagewire.linux.netlink import Netlink
from stagewire.proto.packets.merge import TAKES_TCP, TAKES_UDP

DESCRIPTOR: Final = "tun"
"""Name of its descriptor in a hand-down."""
MAX_SUPER_PACKET: Final = 60_000
"""Bytes of one super-packet: sealed, it must fit one UDP GSO send (MAX_SEGMENTS, MAX_DATAGRAM)."""
_NUMBER: Final = os.makedev(10, 200)
"""Number of /dev/net/tun (Linux, Documentation/admin-guide/devices.txt)."""
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
"""Name of the socket in the run folder at which the keeper gives copies of its descriptor to root."""
_BORROW_WITHIN: Final = 5.0
"""s that the keeper may take to answer."""
_REQUEST: Final = struct.Struct("16sH22x")


class TunUnavailable(Exception):  # noqa: N818 - a state of the host, told to the operator
    """Says in one line for the operator why the device can't be used."""


def open_clone() -> int:
    """Opens /dev/net/tun, mostly as root. Raises TunUnavailable."""
    path = Path("/dev/net/tun")
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TunUnavailable(f"{path} is missing; load the tun module, or give the container the device") from None
    except OSError as error:
        raise TunUnavailable(f"{path}: {error.strerror}; start as root, or give access to the device") from None


def attach(clone: int, name: str, owner: int, *, persistent: bool = True, offload: bool = False) -> None:
    """Makes the device `name`, or attaches to it if `owner` has it from an earlier life. Raises TunUnavailable.

    A persistent device outlives its processes; another goes with its last descriptor. With `offload`, a header stands
    before each packet from now on; `switch_offloads` decides about its contents.
    """
    with Netlink() as kernel:
        standing = links.find(kernel, name)
        if standing is not None and standing.owner not in {None, owner} and not uids.may_be("tun", standing.owner or 0):
            # With CAP_NET_ADMIN, the kernel would let us attach to a foreign device.
            raise TunUnavailable(f"interface {name} exists and is not ours; remove it or choose another name")
        try:
            _attach(clone, name, offload)
        except OSError as error:
            raise TunUnavailable(_explain(name, error)) from None
        try:
            fcntl.ioctl(clone, _TUNSETOWNER, owner)
            fcntl.ioctl(clone, _TUNSETPERSIST, int(persistent))
        except OSError as error:
            raise TunUnavailable(f"interface {name} cannot be given to uid {owner}: {error.strerror}") from None
        made = links.find(kernel, name)
        if offload and made is not None:
            # An older kernel can't limit them; it makes larger ones, and a worker sends those in two parts.
            with suppress(OSError):
                links.limit_super_packets(kernel, made.number, MAX_SUPER_PACKET)


def join(clone: int, name: str, *, offload: bool = False) -> bool:
    """Attaches to a device that our uid owns, without a capability. Returns False while no device has the name.

    Raises TunUnavailable.
    """
    if not _exists(name):
        return False
    try:
        _attach(clone, name, offload)
    except OSError as error:
        if not _exists(name):
            return False
        if error.errno == errno.EPERM:
            raise TunUnavailable(f"interface {name} exists and is not ours; remove it or choose another name") from None
        raise TunUnavailable(_explain(name, error)) from None
    return True


def _exists(name: str) -> bool:
    with suppress(OSError):
        return bool(socket.if_nametoindex(name))
    return False


def _attach(clone: int, name: str, offload: bool) -> None:
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
    fcntl.ioctl(clone, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))


def give(attached: int, owner: int) -> None:
    """Makes a uid the owner of a device that a process has, which an earlier version may have left."""
    with suppress(OSError):  # deleted meanwhile
        fcntl.ioctl(attached, _TUNSETOWNER, owner)


def has_header(attached: int) -> bool:
    """Tells whether a `virtio_net_hdr` stands before each packet of a device."""
    answer = fcntl.ioctl(attached, _TUNGETIFF, _REQUEST.pack(b"", 0))
    return bool(_REQUEST.unpack(answer)[1] & _IFF_VNET_HDR)


def switch_offloads(attached: int) -> int:
    """Asks the kernel for super-packets. Returns the kinds that the kernel takes in turn (TAKES_*), 0 for none."""
    if not has_header(attached):
        return 0
    for flags, takes in ((_F_TCP | _F_UDP, TAKES_TCP | TAKES_UDP), (_F_TCP, TAKES_TCP)):
        with suppress(OSError):
            fcntl.ioctl(attached, _TUNSETOFFLOAD, flags)
            return takes
    return 0


def is_attached(clone: int) -> bool:
    """Tells whether a descriptor of /dev/net/tun belongs to a device that still exists."""
    try:
        fcntl.ioctl(clone, _TUNGETIFF, bytes(_REQUEST.size))
    except OSError:
        return False
    return True


def is_device(descriptor: int) -> bool:
    """Tells whether a descriptor is one of /dev/net/tun. Raises OSError."""
    found = os.fstat(descriptor)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _NUMBER


def is_of(attached: int, name: str) -> bool:
    """Tells whether a descriptor belongs to the device `name`, or to any if an operator has renamed that one."""
    if not is_attached(attached):
        return False
    answer = _REQUEST.unpack(fcntl.ioctl(attached, _TUNGETIFF, bytes(_REQUEST.size)))
    return answer[0].rstrip(b"\0") == name.encode() or not _exists(name)


def borrow(path: Path, within: float = _BORROW_WITHIN) -> int:
    """Returns a copy of the keeper's attached descriptor; waits up to `within` s for it. Raises TunUnavailable."""
    until = time.monotonic() + within
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)  # the run folder may have been wiped, and the keeper makes its socket anew
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(within)
            line.connect(str(path))
            _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
            return descriptors[0]
    except (OSError, IndexError):
        raise TunUnavailable("the keeper of the device doesn't answer; start the interface anew") from None


def _explain(name: str, error: OSError) -> str:
    match error.errno:
        case errno.EBUSY:
            return f"interface {name} is in use by another program; stop it or choose another name"
        case errno.EINVAL if _exists(name):
            return f"interface {name} exists and is no TUN device; remove it or choose another name"
        case errno.EPERM:
            return f"interface {name} cannot be made: CAP_NET_ADMIN is lacking; start as root with this capability"
        case _:
            return f"interface {name} cannot be made: {error.strerror}"
