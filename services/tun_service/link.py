"""What becomes of the interface by others' hands: its MTU, up or down, its end (rtnetlink(7), RTMGRP_LINK)."""

import errno
import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from stagewire.ipc.loop import Loop

_RTMGRP_LINK: Final = 1
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_NLM_F_REQUEST: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFF_UP: Final = 1
_CHANGES_PER_TURN: Final = 64
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")


class Link(NamedTuple):
    """One interface as the kernel tells of it. `mtu` in bytes."""

    name: str
    mtu: int
    up: bool
    gone: bool


def parse(data: bytes) -> list[Link]:
    """The links in some netlink messages."""
    links = []
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            break
        if kind in {_RTM_NEWLINK, _RTM_DELLINK} and length >= _HEADER.size + _LINK.size:
            _, _, _, flags, _ = _LINK.unpack_from(data, _HEADER.size)
            found = _attributes(data[_HEADER.size + _LINK.size : length])
            name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
            mtu = int.from_bytes(found.get(_IFLA_MTU, b""), "little")
            links.append(Link(name, mtu, bool(flags & _IFF_UP), kind == _RTM_DELLINK))
        data = data[(length + 3) & ~3 :]
    return links


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            break
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


class LinkWatch:
    """Tells `on_change` of one interface, first as it is now. It follows the interface's changes, not its moves."""

    def __init__(self, loop: Loop, interface: str, on_change: Callable[[Link], None]) -> None:
        self._interface = interface
        self._on_change = on_change
        self._lost = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP_LINK))
        self._ask()
        loop.add(self._socket.fileno(), self._read)

    def _ask(self) -> None:
        name = self._interface.encode() + b"\0"
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name), _IFLA_IFNAME) + name
        attribute += bytes(-len(attribute) % 4)
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, 1, 0) + body)

    def close(self) -> None:
        """Watches no longer; to be called once the loop knows nothing of it."""
        self._socket.close()

    def _read(self, _now: float) -> None:
        for _ in range(_CHANGES_PER_TURN):
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._lost = True  # and it may have been the last change
                continue
            for link in parse(data):
                if link.name == self._interface:
                    self._on_change(link)
        else:
            return  # there may be more
        if self._lost:  # only now, or there would be no room for the answer either
            self._lost = False
            self._ask()
