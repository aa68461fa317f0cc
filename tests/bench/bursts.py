"""Sends and receives many numbered datagrams in one system call (sendmmsg(2), recvmmsg(2)): what makes the load must not
limit what is measured."""

import array
import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

MOST: Final = 256
"""Datagrams of one call, at least."""
_MESSAGE: Final = struct.Struct("@PIPNPNi0PI0P")
"""struct mmsghdr: name and its length, pieces and their number, control and its length, flags; bytes sent."""
_PIECE: Final = struct.Struct("@PN")
_NAME4: Final = struct.Struct("=H2s4s8x")
_NAME6: Final = struct.Struct("=H2s4x16s4x")
_NUMBER: Final = 8
_MSG_WAITFORONE: Final = 0x10000

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Room:
    """Holds memory that the kernel reads."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self._kept = (ctypes.c_char * size).from_buffer(self.bytes)
        self.address = ctypes.addressof(self._kept)


def _name(host: str, port: int) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    pack = _NAME6.pack if family == socket.AF_INET6 else _NAME4.pack
    return pack(family, port.to_bytes(2, "big"), socket.inet_pton(family, host))


class Bursts:
    """Sends datagrams of `size` bytes to all destinations in turn. Each begins with its number."""

    def __init__(self, destinations: Sequence[str], port: int, size: int) -> None:
        """Opens a socket; all destinations are of one family."""
        names = [_name(host, port) for host in destinations]
        self._socket = socket.socket(socket.AF_INET6 if ":" in destinations[0] else socket.AF_INET, socket.SOCK_DGRAM)
        alone = len(names) == 1
        if alone:
            self._socket.connect((destinations[0], port))  # saves a look at the routes for each
        self._count = -(-MOST // len(names)) * len(names)
        self._names = _Room(len(names[0]) * len(names))
        self._names.bytes[:] = b"".join(names)
        self._numbers, self._rest = _Room(self._count * _NUMBER), _Room(max(1, size - _NUMBER))
        self._pieces, self._messages = _Room(self._count * 2 * _PIECE.size), _Room(self._count * _MESSAGE.size)
        for each in range(self._count):
            at, name = each * 2 * _PIECE.size, each % len(names) * len(names[0])
            _PIECE.pack_into(self._pieces.bytes, at, self._numbers.address + each * _NUMBER, _NUMBER)
            _PIECE.pack_into(self._pieces.bytes, at + _PIECE.size, self._rest.address, size - _NUMBER)
            _MESSAGE.pack_into(
                *(self._messages.bytes, each * _MESSAGE.size),
                *((0, 0) if alone else (self._names.address + name, len(names[0]))),
                *(self._pieces.address + at, 2, 0, 0, 0, 0),
            )
        self._view = memoryview(self._numbers.bytes).cast("Q")
        self.sent = 0

    def send(self, count: int) -> None:
        """Sends so many. A datagram that the kernel refuses counts as sent."""
        while count > 0:
            at = self.sent % self._count
            most = min(count, self._count - at)
            self._view[at : at + most] = array.array("Q", range(self.sent, self.sent + most))
            place = ctypes.c_void_p(self._messages.address + at * _MESSAGE.size)
            done = max(1, _libc.sendmmsg(self._socket.fileno(), place, most, 0))
            self.sent += done
            count -= done

    def close(self) -> None:
        self._socket.close()


class Heads:
    """Receives the numbers of datagrams."""

    def __init__(self, opened: socket.socket) -> None:
        """Takes a socket that blocks, for a time of its own."""
        self._socket = opened
        self._numbers = _Room(MOST * _NUMBER)
        self._pieces, self._messages = _Room(MOST * _PIECE.size), _Room(MOST * _MESSAGE.size)
        for each in range(MOST):
            piece = each * _PIECE.size
            _PIECE.pack_into(self._pieces.bytes, piece, self._numbers.address + each * _NUMBER, _NUMBER)
            _MESSAGE.pack_into(
                self._messages.bytes, each * _MESSAGE.size, 0, 0, self._pieces.address + piece, 1, 0, 0, 0, 0
            )

    def receive(self) -> bytes:
        """Waits for a datagram and takes what is there; returns the numbers, none if none came in time."""
        place = ctypes.c_void_p(self._messages.address)
        count = _libc.recvmmsg(self._socket.fileno(), place, MOST, _MSG_WAITFORONE, None)
        return bytes(memoryview(self._numbers.bytes)[: max(0, count) * _NUMBER])
