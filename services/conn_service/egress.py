"""By which interface the kernel would send to a place, and when that may have changed (rtnetlink(7))."""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stagewire.ipc.loop import Loop
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
_OURS: Final = 87
"""The protocol number of tun-service's routes: there may be 130,000 of them, and none leads to a peer's outer address."""
_SO_ATTACH_FILTER: Final = 26
_HEADER_KIND: Final = 4
_ROUTE_PROTOCOL: Final = 5
"""Where in a message its type is, and where in a route its protocol."""
_EVENTS_PER_TURN: Final = 64


class Egress:
    """Asks the routing table. `on_change` is told when its answers may have become others."""

    def __init__(self, loop: Loop, tunnel: str, on_change: Callable[[], None]) -> None:
        """`tunnel` is the interface that our own packets must not go into."""
        self._tunnel = tunnel
        self._on_change = on_change
        self._ask = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._ask.settimeout(1.0)  # the kernel answers at once; this is for the case that it never does
        self._asked = 0
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        # A route that goes with its link is no event of IPv4's, so links and addresses are asked about as well.
        # Only more work where the kernel can't. The buffer is only read while the call lasts.
        program = ctypes.create_string_buffer(_unless_ours())
        with suppress(OSError):
            self._events.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(program))
            )
        self._events.bind((0, _RTMGRP_LINK | _RTMGRP_ADDRESSES | _RTMGRP_ROUTES | _RTMGRP_RULES))
        loop.add(self._events.fileno(), self._on_events)

    def close(self) -> None:
        """Asks no longer; to be called once the loop knows nothing of it."""
        self._ask.close()
        self._events.close()

    def interface(self, endpoint: Endpoint, mark: int, port: int) -> int | None:
        """Its number, for datagrams from the endpoint's source and our port; None when there is no way.

        17 us. Raises OSError (ELOOP) when the way leads into the tunnel itself.
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
                pass  # to a question that we had given up
        except OSError:
            return None
        found = _oif(answer)
        if found is not None and found == self._own_number():
            raise OSError(errno.ELOOP, f"{endpoint} lies in the tunnel itself")
        return found

    def _own_number(self) -> int | None:
        try:
            return socket.if_nametoindex(self._tunnel)
        except OSError:  # not made yet, or moved to another network namespace
            return None

    def _on_events(self, _now: float) -> None:
        changed = False
        for _ in range(_EVENTS_PER_TURN):
            try:
                self._events.recv(65536)
                changed = True
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # more came than could be kept; it may have been among them
        if changed:
            self._on_change()


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


def _unless_ours() -> bytes:
    """A socket filter (bpf(4), linux/filter.h) that lets every event in but those of tun-service's routes."""
    drop, take, load_half, load_byte, if_equal = 0, 0xFFFFFFFF, 0x28, 0x30, 0x15
    new, gone = (socket.htons(kind) for kind in (_RTM_NEWROUTE, _RTM_DELROUTE))  # it loads as the network orders
    program = [
        (load_half, 0, 0, _HEADER_KIND),
        (if_equal, 1, 0, new),
        (if_equal, 0, 3, gone),
        (load_byte, 0, 0, _HEADER.size + _ROUTE_PROTOCOL),
        (if_equal, 0, 1, _OURS),
        (0x06, 0, 0, drop),
        (0x06, 0, 0, take),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in program)
