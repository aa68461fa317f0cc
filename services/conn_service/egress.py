"""Asks the kernel by which interface it would send to an endpoint, and tells when the answer may change (rtnetlink(7))."""

import errno
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import links, socket_filter, uids
from stagewire.linux.netlink import Netlink
from stagewire.loop import Loop, boot_time
from stagewire.proto.endpoint import Endpoint

_RTMGRP_LINK: Final = 1
_RTMGRP_ADDRESSES: Final = 0x10 | 0x100
_RTMGRP_ROUTES: Final = 0x40 | 0x400
_RTMGRP_RULES: Final = 0x80 | 1 << 18
_NLM_F_REQUEST: Final = 1
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_RTA_MARK: Final = 16
_RTA_IP_PROTO: Final = 27
_RTA_SPORT: Final = 28
_RTA_DPORT: Final = 29
_HEADER: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_OWN_LOOK: Final = 0.1
"""s between two looks for changes of our own routes: host-service may make many at once."""
_OWN_BUFFER: Final = 1
"""Bytes; the kernel takes its least instead. One event is enough: only that there was a change matters."""
_HEADER_KIND: Final = 4
_PROTOCOL_PLACE: Final = 5
"""Offsets of the type in a message, and of the protocol in a route."""
_EVENTS_PER_TURN: Final = 64
_DROP: Final = 0
_TAKE: Final = 0xFFFFFFFF


class OtherTunnel(NamedTuple):
    """Describes a tunnel of this host that isn't ours."""

    mtu: int
    stagewires: bool
    """It is Stagewire's for certain: it keeps the hop limit of what it carries (`proto.packets.carried`)."""


class Egress:
    """Asks the routing table. Calls `on_change` when its answers may have changed."""

    def __init__(self, loop: Loop, tunnel: str, on_change: Callable[[], None]) -> None:
        """Takes the name of our own interface as `tunnel`."""
        self._tunnel = tunnel
        self._is_stagewires = uids.recognise("tun")
        self._on_change = on_change
        self._ask = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._ask.settimeout(1.0)  # the kernel answers at once; a kernel that never does must not stop conn-service
        self._asked = 0
        self._links = Netlink()
        # IPv4 sends no event for a route that goes with its link, so links and addresses are watched as well.
        self._events = _listen(
            _RTMGRP_LINK | _RTMGRP_ADDRESSES | _RTMGRP_ROUTES | _RTMGRP_RULES, _filter(ours=_DROP, others=_TAKE)
        )
        loop.add(self._events.fileno(), self._on_events)
        self._own = _listen(_RTMGRP_ROUTES, _filter(ours=_TAKE, others=_DROP))
        self._own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _OWN_BUFFER)
        self._loop = loop
        self._rests_until: float | None = None
        loop.add(self._own.fileno(), self._on_events_of_ours)
        loop.add_timed(self)

    def close(self) -> None:
        """Closes the sockets. The loop must have forgotten them before."""
        for opened in (self._ask, self._events, self._own, self._links):
            opened.close()

    def interface(self, endpoint: Endpoint, mark: int, port: int) -> int | None:
        """Returns the interface's number for datagrams from the endpoint's source and our port; None without a route.

        Hot.
        """
        family = socket.AF_INET if len(endpoint.address) == 4 else socket.AF_INET6
        body = _ROUTE.pack(family, len(endpoint.address) * 8, len(endpoint.source) * 8, 0, 0, 0, 0, 0, 0)
        body += _attribute(_RTA_DST, endpoint.address)
        if endpoint.source:
            body += _attribute(_RTA_SRC, endpoint.source)
        if endpoint.scope:
            body += _attribute(_RTA_OIF, endpoint.scope.to_bytes(4, sys.byteorder))
        body += _attribute(_RTA_MARK, mark.to_bytes(4, sys.byteorder))
        body += _attribute(_RTA_IP_PROTO, bytes([socket.IPPROTO_UDP]))
        body += _attribute(_RTA_SPORT, port.to_bytes(2, "big")) + _attribute(
            _RTA_DPORT, endpoint.port.to_bytes(2, "big")
        )
        self._asked = (self._asked + 1) & 0xFFFFFFFF
        try:
            self._ask.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, self._asked, 0) + body)
            while _HEADER.unpack_from(answer := self._ask.recv(65536))[3] != self._asked:
                pass  # it answers an earlier question, which timed out
        except OSError:
            return None
        return _oif(answer)

    def tunnel(self) -> int | None:
        """Returns the tunnel's number; None while this network namespace has no such interface."""
        try:
            return socket.if_nametoindex(self._tunnel)
        except OSError:
            return None

    def other_tunnel(self, number: int) -> OtherTunnel | None:
        """Returns what matters of an interface if it is a tunnel other than ours."""
        try:
            link = links.at(self._links, number)
        except OSError:
            return None
        if link is None or not link.tunnel or link.name == self._tunnel:
            return None
        return OtherTunnel(link.mtu, link.owner is not None and self._is_stagewires(link.owner))

    def _on_events(self, _now: float) -> None:
        if _any(self._events):
            self._on_change()

    def _on_events_of_ours(self, _now: float) -> None:
        self._loop.pause(self._own.fileno())
        self._rests_until = boot_time() + _OWN_LOOK

    def next_deadline(self) -> float | None:
        """Returns when changes of our own routes count, _OWN_LOOK after the first."""
        return self._rests_until

    def act(self, _now: float) -> None:
        """Takes the changes of our own routes as one."""
        self._rests_until = None
        self._loop.resume(self._own.fileno())
        if _any(self._own):
            self._on_change()


def _listen(groups: int, program: socket_filter.Program) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    with suppress(OSError):  # without the filter there is only more work
        socket_filter.attach(opened, socket_filter.SO_ATTACH_FILTER, program)
    opened.bind((0, groups))
    return opened


def _any(events: socket.socket) -> bool:
    """Tells whether an event has come. Reads a bounded number of them."""
    found = False
    for _ in range(_EVENTS_PER_TURN):
        try:
            events.recv(65536)
            found = True
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True  # the kernel dropped events that the buffer had no room for
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _oif(answer: bytes) -> int | None:
    if len(answer) < _HEADER.size + _ROUTE.size or _HEADER.unpack_from(answer)[1] != _RTM_NEWROUTE:
        return None
    offset = _HEADER.size + _ROUTE.size
    while offset + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, offset)
        if kind == _RTA_OIF:
            return int.from_bytes(answer[offset + _ATTRIBUTE.size : offset + length], sys.byteorder)
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return None


def _filter(ours: int, others: int) -> socket_filter.Program:
    """Returns a socket filter: _DROP or _TAKE for events of our own routes, and for all others."""
    new, gone = (socket.htons(kind) for kind in (_RTM_NEWROUTE, _RTM_DELROUTE))  # BPF loads in network byte order
    return [
        (socket_filter.LOAD_HALF, 0, 0, _HEADER_KIND),
        (socket_filter.IF_EQUAL, 1, 0, new),
        (socket_filter.IF_EQUAL, 0, 3, gone),
        (socket_filter.LOAD_BYTE, 0, 0, _HEADER.size + _PROTOCOL_PLACE),
        (socket_filter.IF_EQUAL, 0, 1, ROUTE_PROTOCOL),
        (socket_filter.RETURN, 0, 0, ours),
        (socket_filter.RETURN, 0, 0, others),
    ]
