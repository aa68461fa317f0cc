"""Hears from the kernel how other programs change the host's network (rtnetlink(7), nfnetlink).

Groups: links, IPv6 of links, addresses, routes and rules of both families, nftables. A filter in the kernel leaves out the
routes that we make ourselves, as there may be 130,000.
"""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from host_service import addresses, route_messages
from host_service.route_messages import Found
from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import links, netlink
from stagewire.linux.links import Link
from stagewire.loop import Loop

RTM_NEWRULE, RTM_DELRULE = 32, 33
_GROUPS: Final = 1 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 18
"""RTNLGRP_LINK 1, IPV4_IFADDR 5, IPV4_ROUTE 7, IPV4_RULE 8, IPV6_IFADDR 9, IPV6_ROUTE 11, IPV6_IFINFO 12, IPV6_RULE 19."""
_IPV6: Final = bytes([socket.AF_INET6])
_PER_TURN: Final = 64
_ROOM: Final = 4 << 20
"""Bytes of unread reports."""
_TURNS_WAITING: Final = _ROOM // 512 // _PER_TURN
"""Turns after which all is read that waited at first: the kernel counts more than 512 bytes for each report."""
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFT_GROUP, _NFT_SUBSYSTEM = 7, 10
_NFT_CHANGES: Final = {_NFT_SUBSYSTEM << 8 | kind for kind in (0, 2, 3, 5, 6, 8)}
"""A table, a chain or a rule is made or removed; the first attribute of each is the table's name."""
_NFGENMSG: Final = 4


class Watched:
    """Hears of changes. Each method takes one kind of change."""

    def on_link(self, link: Link) -> None:
        """Hears that an interface was made, changed, deleted or moved."""

    def on_ipv6(self) -> None:
        """Hears that IPv6 was switched on or off for some interface."""

    def on_address(self, index: int, *, gone: bool) -> None:
        """Hears that an interface got or lost an address."""

    def on_route(self, route: Found, *, gone: bool) -> None:
        """Hears that a route was made or removed; of our routes, only removals."""

    def on_rule(self) -> None:
        """Hears that a policy rule was made or removed."""

    def on_nft(self, table: str) -> None:
        """Hears that an nftables table, or a part of it, was made, changed or removed."""

    def on_lost(self) -> None:
        """Hears that the kernel lost reports, for want of room."""


class Watch:
    """Reads the kernel's reports."""

    def __init__(self, loop: Loop, watched: Watched) -> None:
        """Subscribes to the kernel's reports. Raises OSError."""
        self._watched = watched
        self._route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            with suppress(OSError):
                self._route.setsockopt(socket.SOL_SOCKET, option, _ROOM)
        _leave_out_ours(self._route)
        self._route.bind((0, _GROUPS))
        loop.add(self._route.fileno(), self._read)
        self._nft: socket.socket | None = None
        with suppress(OSError):  # a kernel without nftables
            nft = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 12)
            nft.bind((0, 0))
            nft.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFT_GROUP)
            self._nft = nft
            loop.add(nft.fileno(), self._read_nft)

    def read(self) -> None:
        """Reads all waiting reports but those on nftables."""
        for _ in range(_TURNS_WAITING):
            if not self._drain(self._route, self._tell):
                return

    def forget_nft(self) -> None:
        """Skips the reports on nftables so far: they tell of our own changes."""
        if self._nft is not None:
            with suppress(OSError):
                while self._nft.recv(65536):
                    pass

    def _read(self, _now: float) -> None:
        self._drain(self._route, self._tell)

    def _read_nft(self, _now: float) -> None:
        if self._nft is not None:
            self._drain(self._nft, self._tell_nft)

    def _drain(self, line: socket.socket, tell: Callable[[int, bytes], None]) -> bool:
        """Reads a turn's share. Returns whether more may wait."""
        for _ in range(_PER_TURN):
            try:
                data = line.recv(65536)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._watched.on_lost()
                continue
            for found in netlink.messages(data):
                tell(found.kind, found.body)
        return True

    def _tell(self, kind: int, body: bytes) -> None:
        watched = self._watched
        match kind:
            case links.RTM_NEWLINK | links.RTM_DELLINK if body[:1] == _IPV6:
                watched.on_ipv6()
            case links.RTM_NEWLINK | links.RTM_DELLINK:
                if (link := links.parse(kind, body)) is not None:
                    watched.on_link(link)
            case addresses.RTM_NEWADDR | addresses.RTM_DELADDR:
                if (parsed := addresses.parse(body)) is not None:
                    watched.on_address(parsed[0], gone=kind == addresses.RTM_DELADDR)
            case route_messages.RTM_NEWROUTE | route_messages.RTM_DELROUTE:
                if (route := route_messages.parse(body)) is not None:
                    watched.on_route(route, gone=kind == route_messages.RTM_DELROUTE)
            case _ if kind in {RTM_NEWRULE, RTM_DELRULE}:
                watched.on_rule()

    def _tell_nft(self, kind: int, body: bytes) -> None:
        if kind in _NFT_CHANGES:
            name = netlink.attributes(body[_NFGENMSG:]).get(1, b"")
            self._watched.on_nft(name.rstrip(b"\0").decode(errors="replace"))


# --- the filter (socket(7), SO_ATTACH_FILTER): it reads big-endian, and netlink has the machine's order


def _leave_out_ours(line: socket.socket) -> None:
    kind = int.from_bytes(route_messages.RTM_NEWROUTE.to_bytes(2, sys.byteorder), "big")
    protocol_at = netlink.HEADER.size + 5
    load_half, load_byte, equal, give = 0x28, 0x30, 0x15, 0x06
    program = b"".join(
        struct.pack("=HBBI", *step)
        for step in (
            (load_half, 0, 0, 4),
            (equal, 0, 3, kind),
            (load_byte, 0, 0, protocol_at),
            (equal, 0, 1, ROUTE_PROTOCOL),
            (give, 0, 0, 0),
            (give, 0, 0, 0xFFFFFFFF),
        )
    )
    kept = ctypes.create_string_buffer(program, len(program))
    with suppress(OSError):  # without the filter, the service reads and skips our routes
        line.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(kept))
        )
