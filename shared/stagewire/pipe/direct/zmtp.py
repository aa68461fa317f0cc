"""Speaks ZeroMQ's wire protocol as far as a pipe of trains needs it: ZMTP 3.0 (rfc.zeromq.org/spec/23), PUSH and PULL.

    greeting 64 | READY command | message | message | …         from the pusher
    greeting 64 | READY command                                 from the puller

Neither end waits for the other's greeting with its own. A pusher waits with its messages, because libzmq leaves those unread
that come before it is ready itself. A message is one frame:

    flags 1 | length 1 or, with the LONG flag, 8 | train

libzmq at either end notices no difference; docs/decisions/001 says why trains do without it.

A puller that can share memory (`shared_memory`) says so by a property of its READY. The pusher hands the memory over once,
attached to a command. From then on a command may stand for a message that lies there:

    MEMORY | TRAIN slot 1, length 4 | message | TRAIN …
"""

import struct
from typing import Final

from stagewire.pipe.contract import Frame
from stagewire.pipe.direct.shared_memory import Memory

_LONG: Final = 0x02
_COMMAND: Final = 0x04
_LENGTH: Final = struct.Struct(">Q")
_FRONT: Final = struct.Struct(">BQ")
_GREETING_LENGTH: Final = 64
_GREETING: Final = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY: Final = b"\x05READY"
_MAX_COMMAND: Final = 512
"""Bytes; a READY has some 30."""
MOST_AT_ONCE: Final = 8192
"""Frames in what a turn reads: in 128 KiB each has 16 bytes, and no train has fewer. Each frame costs its reader work."""

_MEMORY: Final = b"\x06MEMORY"
_TRAIN: Final = struct.Struct(">6sBI")
_TRAIN_NAME: Final = b"\x05TRAIN"


class BadStream(Exception):  # noqa: N818 - it is the other end's error
    """Reports what no PUSH socket of ZeroMQ says, or a message that is too long."""


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4) + value


_SHARES: Final = _property(b"X-Memory", b"1")


def _command(body: bytes) -> bytes:
    return bytes([_COMMAND, len(body)]) + body


def _greeting(kind: bytes, properties: bytes = b"") -> bytes:
    return _GREETING + _command(_READY + _property(b"Socket-Type", kind) + properties)


PUSH: Final = _greeting(b"PUSH")
"""A pusher begins with it."""
PULL: Final = _greeting(b"PULL")
PULL_SHARING: Final = _greeting(b"PULL", _SHARES)
SHARING: Final = PULL_SHARING[_GREETING_LENGTH:]
"""The READY alone, which a successor says again on an inherited connection; a pusher that can't share ignores it."""
MEMORY: Final = _command(_MEMORY)


def front(length: int) -> bytes:
    """Returns what stands before a message of so many bytes."""
    return _FRONT.pack(_LONG, length)


def train_in(slot: int, length: int) -> bytes:
    """Returns the command for a message that lies in shared memory."""
    return _command(_TRAIN.pack(_TRAIN_NAME, slot, length))


class Stream:
    """Cuts what the other end says into messages."""

    def __init__(self, limit: int, *, ready: bool = False, memory: Memory | None = None) -> None:
        """Expects a greeting. `limit`: bytes of a message. `ready`: a predecessor has read all before the next message."""
        self._limit = limit
        self._rest = b""
        """The begun message, as far as it has come."""
        self._greeted = ready
        self.ready = ready
        """The other end has said all that comes before messages."""
        self.shares = False
        """The other end takes trains in shared memory."""
        self.memory = memory
        """Handed over by the other end."""

    @property
    def begun(self) -> bool:
        """Tells whether a part of a message is still to come."""
        return bool(self._rest)

    @property
    def between(self) -> bool:
        """Tells whether the other end's next bytes begin a message."""
        return self.ready and not self._rest

    def take_untrusted(self, data: bytes) -> list[Frame]:
        """Returns the messages that are whole with what came now. Raises BadStream. hot: bench traffic"""
        if self._rest:
            data, self._rest = self._rest + data, b""
        offset, total = 0, len(data)
        if not self._greeted:
            if total < _GREETING_LENGTH:
                self._rest = data
                return []
            if data[0] != 0xFF or data[9] != 0x7F or data[10] < 3 or data[12:32] != _GREETING[12:32]:
                raise BadStream("no greeting of ZMTP 3 without security")
            self._greeted, offset = True, _GREETING_LENGTH
        found: list[Frame] = []
        for _ in range(MOST_AT_ONCE):
            if offset + 2 > total:
                break
            flags = data[offset]
            if flags & _LONG:
                start = offset + _FRONT.size
                if start > total:
                    break
                (length,) = _LENGTH.unpack_from(data, offset + 1)
            else:
                start, length = offset + 2, data[offset + 1]
            if flags & ~(_LONG | _COMMAND) or length > (_MAX_COMMAND if flags & _COMMAND else self._limit):
                raise BadStream("no message of one frame, or too long")
            end = start + length
            if end > total:
                break
            if not flags & _COMMAND:
                found.append((data, start, end))
            elif data.startswith(_TRAIN_NAME, start, end):
                found.append(self._in_memory(data[start:end]))
            elif data.startswith(_READY, start, end):
                self.ready = True
                self.shares = data.find(_SHARES, start, end) >= 0
            offset = end
        else:
            raise BadStream("more frames at once than trains can be")
        self._rest = data[offset:] if offset < total else b""
        return found

    def _in_memory(self, command: bytes) -> Frame:
        if self.memory is not None and len(command) == _TRAIN.size:
            _, slot, length = _TRAIN.unpack(command)
            train = self.memory.take_untrusted(slot, length)
            if train is not None:
                return train
        raise BadStream("a train in memory that we don't have")
