"""Speaks rtnetlink(7) without a library: messages, attributes, and a socket that asks.

pyroute2 loads slowly and takes long for each request (docs/decisions/013). host-service may have to make 130,000 routes, and
to undo them at once.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Self

HEADER: Final = struct.Struct("=IHHII")
"""length, type, flags, sequence, port"""
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=HHI")
_CODE: Final = struct.Struct("=i")

ERROR: Final = 2
DONE: Final = 3
REQUEST, ACK = 0x1, 0x4
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
_DUMP: Final = 0x300
_SOL_NETLINK, _CAP_ACK, _STRICT_CHECK = 270, 10, 12
_KIND_MASK: Final = 0x3FFF
"""An attribute's type without the flags for nested ones and byte order."""
_WITHIN: Final = 1.0
"""s that an answer may take; the kernel answers before `send` returns."""
_CHUNK: Final = 8 * 1024
"""Bytes of a dump that are read at a time, so that the reader may pause between."""


class Message(NamedTuple):
    """Carries one message without its header."""

    kind: int
    body: bytes
    sequence: int


def message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    """Returns one message with its header."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | REQUEST, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Returns one attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """Returns an attribute of four bytes."""
    return _NUMBER.pack(_NUMBER.size, kind, value)


def name(kind: int, text: str) -> bytes:
    """Returns an attribute that is a string."""
    return attribute(kind, text.encode() + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """Returns attributes by type. Stops at the first malformed attribute."""
    found, offset = {}, 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            break
        found[kind & _KIND_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def listed(data: bytes) -> Iterator[bytes]:
    """Yields the values of attributes that all have one type, in order. Stops at the first malformed attribute."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, _ = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            break
        yield data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def messages(data: bytes) -> Iterator[Message]:
    """Yields the messages of one read. Stops at the first malformed message."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
        if not HEADER.size <= length <= len(data) - offset:
            break
        yield Message(kind, data[offset + HEADER.size : offset + length], sequence)
        offset += (length + 3) & ~3


def code_of(body: bytes) -> int:
    """Returns the errno in an ERROR message; 0 means success."""
    return -int(_CODE.unpack_from(body)[0])


class Netlink:
    """Asks the kernel, one request at a time."""

    def __init__(self, family: int = socket.NETLINK_ROUTE) -> None:
        """Opens a socket of `family`. Raises OSError."""
        self._family = family
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        self._socket.settimeout(_WITHIN)
        with suppress(OSError):
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def do(self, kind: int, flags: int, body: bytes) -> None:
        """Asks for a change. Raises OSError with the kernel's errno."""
        [(_, code)] = self.do_all([(kind, flags, body)]) or [(0, 0)]
        if code:
            raise OSError(code, os.strerror(code))

    def do_all(self, requests: list[tuple[int, int, bytes]]) -> list[tuple[int, int]]:
        """Asks for changes in order. Returns (position, errno) of each that the kernel refused. Raises OSError."""
        first, last = self._sequence + 1, self._sequence + len(requests)
        self._sequence = last
        # Only the last is acknowledged if it succeeds.
        self._socket.send(
            b"".join(
                message(kind, flags | (ACK if at == last else 0), body, at)
                for at, (kind, flags, body) in enumerate(requests, first)
            )
        )
        refused: list[tuple[int, int]] = []
        answered = False
        while not answered:
            for found in messages(self._socket.recv(65536)):
                if found.kind == ERROR and first <= found.sequence <= last:
                    answered |= found.sequence == last
                    if code := code_of(found.body):
                        refused.append((found.sequence - first, code))
        return refused

    def get(self, kind: int, body: bytes) -> bytes:
        """Asks one question, and returns the answer's body. Raises OSError with the kernel's errno."""
        self._sequence += 1
        self._socket.send(message(kind, 0, body, self._sequence))
        while True:
            for found in messages(self._socket.recv(65536)):
                if found.sequence != self._sequence:
                    continue
                if found.kind == ERROR:
                    code = code_of(found.body)
                    raise OSError(code, os.strerror(code))
                return found.body

    def dump(self, kind: int, body: bytes) -> Iterator[list[bytes]]:
        """Yields the bodies of all answers, as many at a time as the kernel hands over. Raises OSError.

        An older kernel ignores the question's filter, so the reader has to filter as well.
        """
        # A socket of its own: if a reader gives up half-way, the rest can't mix with later answers.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._family) as line:
            line.settimeout(_WITHIN)
            with suppress(OSError):
                line.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
            line.send(message(kind, _DUMP, body))
            while True:
                bodies: list[bytes] = []
                for found in messages(line.recv(_CHUNK)):
                    if found.kind == DONE:
                        yield bodies
                        return
                    if found.kind == ERROR:
                        code = code_of(found.body)
                        if code == errno.ENOENT:  # no such table
                            yield bodies
                            return
                        raise OSError(code, os.strerror(code))
                    bodies.append(found.body)
                yield bodies
