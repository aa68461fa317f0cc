"""Sends a peer's host one datagram, which no WireGuard answers, and hears whether a router or the host refuses it (ICMP)."""

import errno
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self

_DATAGRAM: Final = b"\0"
"""WireGuard drops what is shorter than four bytes."""
_RECEIVE_ERRORS: Final = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_ERROR: Final = struct.Struct("=IBBBxII")
"""sock_extended_err: the errno, then where it comes from; the offender's address follows."""
_OFFENDERS: Final = {socket.AF_INET: slice(20, 24), socket.AF_INET6: slice(24, 40)}
_FROM_NETWORK: Final = frozenset((2, 3))
"""SO_EE_ORIGIN_ICMP and _ICMP6."""
_ROOM: Final = 512


@dataclass(frozen=True, slots=True)
class Refusal:
    """Tells which address has refused a datagram, and why. `closed`: no program listens at the port."""

    by: str
    text: str
    closed: bool


class Probe:
    """Holds the datagram's socket until its answer is asked for. Without the right to send it, there is no answer."""

    def __init__(self, place: str, mark: int) -> None:
        """Sends to `address:port`. `mark` leads outside the tunnel, 0 for none."""
        host, _, port = place.rpartition(":")
        host, _, zone = host.strip("[]").partition("%")
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with suppress(OSError, ValueError):  # no place at all
            self._socket.setsockopt(*_RECEIVE_ERRORS[self._family], 1)
            if mark:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            scope = (0, socket.if_nametoindex(zone)) if zone else ()
            self._socket.connect((host, int(port), *scope))
            self._socket.send(_DATAGRAM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def refusal(self) -> Refusal | None:
        """Returns what has been answered so far."""
        with suppress(OSError):
            _, extra, _, _ = self._socket.recvmsg(_ROOM, _ROOM, socket.MSG_ERRQUEUE)
            for level, kind, data in extra:
                if (level, kind) == _RECEIVE_ERRORS[self._family] and len(data) >= _OFFENDERS[self._family].stop:
                    code, origin, *_ = _ERROR.unpack_from(data)
                    if origin in _FROM_NETWORK:
                        by = str(ip_address(data[_OFFENDERS[self._family]]))
                        return Refusal(by, os.strerror(code), code == errno.ECONNREFUSED)
        return None
