"""The TUN device (Linux, Documentation/networking/tuntap.rst)."""

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

MAX_PACKET: Final = 65535
DESCRIPTOR: Final = "tun"
"""What its descriptor is called when it is handed on."""
_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
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


def attach(clone: int, name: str, owner: int, *, persistent: bool = True) -> None:
    """Makes `name`, or takes it over if it is ours from an earlier life. Raises TunUnavailable.

    A persistent device outlives its processes; another is gone with its last descriptor.
    """
    _check_ours(name, owner)
    try:
        fcntl.ioctl(clone, _TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
        fcntl.ioctl(clone, _TUNSETOWNER, owner)
        fcntl.ioctl(clone, _TUNSETPERSIST, int(persistent))
    except OSError as error:
        raise TunUnavailable(_explain(name, error)) from None


def is_attached(clone: int) -> bool:
    """Whether a descriptor of /dev/net/tun belongs to a device, and that is there."""
    try:
        fcntl.ioctl(clone, _TUNGETIFF, bytes(_REQUEST.size))
    except OSError:
        return False
    return True


def _check_ours(name: str, owner: int) -> None:
    """As we may do anything with network devices, the kernel would let us take over anybody's."""
    with IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=name):
            (link,) = netlink.get_links(index)
            kind, facts = link.get(("linkinfo", "kind")), link.get(("linkinfo", "data"))
            if kind == "tun" and facts.get("IFLA_TUN_OWNER") != owner:
                raise TunUnavailable(f"interface {name} exists and is not ours; remove it or choose another name")


def borrow(path: Path) -> int:
    """A copy of the keeper's descriptor, attached already. Raises TunUnavailable."""
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
