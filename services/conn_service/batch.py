"""Receives and answers many datagrams in one system call (recvmmsg(2), sendmmsg(2)), which Python's sockets can't.

`linux.udp_batch` has a compiled Batch.

Under a flood of handshakes a call for each datagram would cost more than all else that conn-service does with it.
"""

import ctypes
import errno
import socket
import struct
import sys
from typing import Final

from stagewire.proto.constants import COOKIE_REPLY_LENGTH, INITIATION_LENGTH
from stagewire.proto.endpoint import Endpoint

MOST: Final = 64
"""Datagrams or runs of one call."""
_SLOT: Final = 128 * INITIATION_LENGTH
"""Bytes for one; the rest of a longer run is cut off, as it is no handshake."""
_NAME: Final = 32
_CONTROL: Final = 96
_MESSAGE: Final = struct.Struct("@PIPNPNi0PI0P")
"""struct mmsghdr: name and its length, pieces and their number, control and its length, flags; bytes received."""
_PIECE: Final = struct.Struct("@PN")
_CONTROL_HEADER: Final = struct.Struct("@Nii")
_FAMILY: Final = struct.Struct("=H")
_IP_PKTINFO: Final = 8
_SOL_UDP: Final = 17
_UDP_GRO: Final = 104
_RUN: Final = struct.pack("@ii", _SOL_UDP, _UDP_GRO)
_RUN_AT: Final = struct.calcsize("@N")
_INFO4: Final = struct.Struct("=I4s4s")
_INFO6: Final = struct.Struct("=16sI")

_LENGTH: Final = struct.Struct(f"@{struct.calcsize('@PIPNPNi0P')}xI0P")
"""The last field of _MESSAGE alone."""
_HEAD4: Final = (_CONTROL_HEADER.size + 12, socket.IPPROTO_IP, _IP_PKTINFO)
_HEAD6: Final = (_CONTROL_HEADER.size + 20, socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
_ANSWER4: Final = struct.Struct("@NiiI4s4x0N")
_ANSWER6: Final = struct.Struct("@Nii16sI0N")
"""Ancillary data that names the address to answer from."""

_libc: Final = ctypes.CDLL(None, use_errno=True)

Arrival = tuple[bytes, int, bytes]
"""(data, size of each datagram but the last, address and port of the source)."""


class _Room:
    """Holds memory that the kernel reads and writes."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self._kept = (ctypes.c_char * size).from_buffer(self.bytes)
        self.address = ctypes.addressof(self._kept)


class Batch:
    """Receives datagrams, and sends answers to their sources. What it received holds until it receives again."""

    def __init__(self) -> None:
        self._data, self._names = _Room(MOST * _SLOT), _Room(MOST * _NAME)
        self._view = memoryview(self._data.bytes)
        self._controls, self._pieces = _Room(MOST * _CONTROL), _Room(MOST * _PIECE.size)
        self._received, self._answers = _Room(MOST * _MESSAGE.size), _Room(MOST * _MESSAGE.size)
        self._replies, self._reply_pieces = _Room(MOST * COOKIE_REPLY_LENGTH), _Room(MOST * _PIECE.size)
        self._reply_controls = _Room(MOST * _CONTROL)
        empty = bytearray(len(self._received.bytes))
        for number in range(MOST):
            _PIECE.pack_into(self._pieces.bytes, number * _PIECE.size, self._data.address + number * _SLOT, _SLOT)
            reply = self._replies.address + number * COOKIE_REPLY_LENGTH
            _PIECE.pack_into(self._reply_pieces.bytes, number * _PIECE.size, reply, COOKIE_REPLY_LENGTH)
            _MESSAGE.pack_into(
                *(empty, number * _MESSAGE.size),
                *(self._names.address + number * _NAME, _NAME),
                *(self._pieces.address + number * _PIECE.size, 1),
                *(self._controls.address + number * _CONTROL, _CONTROL, 0, 0),
            )
        self._empty = bytes(empty)
        self._count = 0
        """Answers that wait."""
        self._answered = -1

    def receive(self, opened: socket.socket, most: int = MOST) -> list[Arrival]:
        """Receives up to `most` datagrams or runs, none if none has come. Hot."""
        self._answered = -1
        self._received.bytes[:] = self._empty
        count = _libc.recvmmsg(
            opened.fileno(), ctypes.c_void_p(self._received.address), most, socket.MSG_DONTWAIT, None
        )
        if count <= 0:
            return []
        found: list[Arrival] = []
        view, names, controls = self._view, bytes(self._names.bytes), bytes(self._controls.bytes)
        first, last = (4, 8) if opened.family == socket.AF_INET else (8, 24)
        start = name = control = 0
        for (length,) in _LENGTH.iter_unpack(memoryview(self._received.bytes)[: count * _MESSAGE.size]):
            size = length
            if controls[control + _RUN_AT : control + _CONTROL_HEADER.size] == _RUN:  # the kernel puts it first
                size = int.from_bytes(controls[control + 16 : control + 20], sys.byteorder)
            source = names[name + first : name + last] + names[name + 2 : name + 4]
            found.append((view[start : start + length].tobytes(), size, source))
            start += _SLOT
            name += _NAME
            control += _CONTROL
        return found

    def endpoint(self, number: int) -> bytes:
        """Returns where an arrival of the latest call came from, and our address that it reached, packed."""
        name = number * _NAME
        names = self._names.bytes
        port = int.from_bytes(names[name + 2 : name + 4], "big")
        info = self._info(number)
        if _FAMILY.unpack_from(names, name)[0] == socket.AF_INET:
            source = _INFO4.unpack(info)[1] if info else b""
            return Endpoint(bytes(names[name + 4 : name + 8]), port, 0, source).pack()
        source, interface = _INFO6.unpack(info) if info else (b"", 0)
        scope = int.from_bytes(names[name + 24 : name + 28], sys.byteorder)
        return Endpoint(bytes(names[name + 8 : name + 24]), port, scope, source, interface if scope else 0).pack()

    def _info(self, number: int) -> bytes:
        """Returns the ancillary data that names our address."""
        at = number * _CONTROL
        end = at + _MESSAGE.unpack_from(self._received.bytes, number * _MESSAGE.size)[5]
        while at + _CONTROL_HEADER.size <= end:
            length, level, _ = _CONTROL_HEADER.unpack_from(self._controls.bytes, at)
            if level != _SOL_UDP:
                return bytes(self._controls.bytes[at + _CONTROL_HEADER.size : at + length])
            at += -(-length // _RUN_AT) * _RUN_AT
        return b""

    def answer(self, number: int, data: bytes) -> None:
        """Keeps a cookie reply to an arrival for `send`; of a run, the first message alone is answered. Hot."""
        if number <= self._answered:
            return
        self._answered = number
        at, self._count = self._count, self._count + 1
        family, info = _FAMILY.unpack_from(self._names.bytes, number * _NAME)[0], self._info(number)
        control = number * _CONTROL
        if family == socket.AF_INET:
            length = _ANSWER4.size if info else 0  # it names no interface, so the answer may take a better route
            _ANSWER4.pack_into(self._reply_controls.bytes, control, *_HEAD4, 0, info[4:8])
        else:
            length = _ANSWER6.size if info else 0
            link_local = any(self._names.bytes[number * _NAME + 24 : number * _NAME + 28])
            source, interface = _INFO6.unpack(info) if info else (b"", 0)
            _ANSWER6.pack_into(self._reply_controls.bytes, control, *_HEAD6, source, interface if link_local else 0)
        start = number * COOKIE_REPLY_LENGTH
        self._replies.bytes[start : start + COOKIE_REPLY_LENGTH] = data
        _MESSAGE.pack_into(
            self._answers.bytes,
            at * _MESSAGE.size,
            self._names.address + number * _NAME,
            16 if family == socket.AF_INET else 28,
            self._reply_pieces.address + number * _PIECE.size,
            1,
            self._reply_controls.address + control if length else 0,
            length,
            0,
            0,
        )

    def send(self, opened: socket.socket) -> int:
        """Sends the answers that wait, and forgets those that can't be sent. Returns how many it sent."""
        at, sent, count = 0, 0, self._count
        self._count = 0
        while at < count:
            done = _libc.sendmmsg(
                opened.fileno(),
                ctypes.c_void_p(self._answers.address + at * _MESSAGE.size),
                count - at,
                socket.MSG_DONTWAIT,
            )
            if done < 0 and ctypes.get_errno() == errno.EAGAIN:
                break
            sent += max(done, 0)
            at += done if done > 0 else 1
        return sent
