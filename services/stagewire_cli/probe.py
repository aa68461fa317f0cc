"""Hears what ICMP says of the datagrams to a peer's endpoint, while the gateway tries a handshake. Sends nothing itself.

A datagram of our own would count as a drop at the other end.
"""

import errno
import os
import select
import socket
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self

from stagewire_cli import ping
from stagewire_cli.way_out import host_of

_PORTS: Final = struct.Struct("!HH")
_ROOM: Final = 2048
_MOST: Final = 256
"""Messages that are looked at: others may send any number."""
_UNREACHABLE: Final = {
    socket.AF_INET: {
        0: errno.ENETUNREACH, 1: errno.EHOSTUNREACH, 3: errno.ECONNREFUSED, 5: errno.EHOSTUNREACH, 6: errno.ENETUNREACH,
        7: errno.EHOSTUNREACH, 9: errno.ENETUNREACH, 10: errno.EHOSTUNREACH, 11: errno.ENETUNREACH,
        12: errno.EHOSTUNREACH, 13: errno.EHOSTUNREACH,
    },
    socket.AF_INET6: {
        0: errno.ENETUNREACH, 1: errno.EACCES, 2: errno.EHOSTUNREACH, 3: errno.EHOSTUNREACH, 4: errno.ECONNREFUSED,
        5: errno.EACCES, 6: errno.EACCES,
    },
}  # fmt: skip
"""What the kernel makes of each code of an unreachable destination."""
_PROHIBITED: Final = {socket.AF_INET: {9, 10, 13}, socket.AF_INET6: {1, 5, 6}}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Tells which address has refused a datagram, and why. `closed`: no program listens at the port."""

    by: str
    text: str
    closed: bool
    prohibited: bool = False
    """A firewall there says that it lets nothing through."""
    exceeded: bool = False
    """The datagram had passed as many routers as it may."""


class Probe:
    """Listens from its making until its end. Without the right to, it hears nothing."""

    def __init__(self, place: str, port: int) -> None:
        """Takes the endpoint, `address:port`, and our own port."""
        self._ports = _PORTS.pack(port, int(place.rpartition(":")[2])) if place else b""
        self._stack, self._socket = ExitStack(), None
        with suppress(OSError, ValueError):  # no place at all
            address = ip_address(host_of(place))
            self._address = address.packed
            v6 = address.version == 6
            self._family = socket.AF_INET6 if v6 else socket.AF_INET
            protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
            self._socket = self._stack.enter_context(
                socket.socket(self._family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def refusal(self) -> Refusal | None:
        """Returns the last thing that was said so far."""
        found = None
        for _ in range(_MOST):
            if self._socket is None or not select.select([self._socket], [], [], 0)[0]:
                break
            with suppress(OSError):
                data, source = self._socket.recvfrom(_ROOM)
                found = self._judged(data, source[0]) or found
        return found

    def _judged(self, data: bytes, by: str) -> Refusal | None:
        version = 4 if self._family == socket.AF_INET else 6
        body = ping.message_of(data, version)
        unreachable, exceeded = (3, 11) if version == 4 else (1, 3)
        if len(body) < ping.ERROR or body[0] not in {unreachable, exceeded}:
            return None
        to, payload = ping.quoted(body, version)
        if to != self._address or payload[: _PORTS.size] != self._ports:
            return None
        if body[0] == exceeded:
            if body[1] != 0:  # a fragment was lost
                return None
            return Refusal(by.partition("%")[0], os.strerror(errno.EHOSTUNREACH), closed=False, exceeded=True)
        code = _UNREACHABLE[self._family].get(body[1])
        if code is None:
            return None
        prohibited = body[1] in _PROHIBITED[self._family]
        return Refusal(by.partition("%")[0], os.strerror(code), code == errno.ECONNREFUSED, prohibited)
