"""Changes that were made through the `wg` socket, in a file that outlives the process: one record after another.

A record is an operation of the socket, as text, in frames of at most FRAME bytes:

    last 1 | length 4 | check 8 | text          `last` is 1 in a record's last frame, else 0

so a big change is written in pieces, between which its writer sees to other things. A record counts once its last frame is
there: what a killed process left half-written is cut off by the next. Replaying all of them upon the configuration file
gives what is in force. When they are many, they are replaced by one that says the same, written beside them in pieces too.

It holds the private key, so nobody but its owner may read it, and it lies in a folder that nobody else enters.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path
from typing import Final

from stagewire.proto import uapi

FRAME: Final = 32 * 1024
"""Bytes of text: with 1,500 prefixes in it, some 6 ms to make."""
MAX_RECORDS: Final = 256
"""Each takes a restart some 2 ms beside 130,000 prefixes."""
SLACK: Final = 1 << 20
"""Bytes that may be added before it is worth a rewrite, beyond what the last rewrite came to."""
_HEAD: Final = struct.Struct("!BI8s")


def records(path: Path) -> list[bytes]:
    """The whole records of a file; none if there is no file. Raises OSError."""
    try:
        return _whole(path.read_bytes())[0]
    except FileNotFoundError:
        return []


def operation(change: uapi.Change) -> Iterator[bytes]:
    """A change as the text that it could have come from, in pieces."""
    lines = ["set=1\n"]
    if change.private_key is not None:
        lines.append(f"private_key={change.private_key.hex()}\n")
    if change.listen_port is not None:
        lines.append(f"listen_port={change.listen_port}\n")
    if change.fwmark is not None:
        lines.append(f"fwmark={change.fwmark}\n")
    if change.replace_peers:
        lines.append("replace_peers=true\n")
    yield from _joined(lines, (line for peer in change.peers for line in _peer_lines(peer)))


def _peer_lines(peer: uapi.PeerChange) -> Iterator[str]:
    yield f"public_key={peer.public_key.hex()}\n"
    for name in ("remove", "update_only", "replace_allowed_ips"):
        if getattr(peer, name):
            yield f"{name}=true\n"
    if peer.preshared_key is not None:
        yield f"preshared_key={peer.preshared_key.hex()}\n"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}\n"
    if peer.persistent_keepalive is not None:
        yield f"persistent_keepalive_interval={peer.persistent_keepalive}\n"
    for entry in peer.allowed_ips:
        yield f"allowed_ip={'' if entry.add else '-'}{entry.prefix}\n"


def _joined(first: list[str], more: Iterable[str]) -> Iterator[bytes]:
    size = 0
    for line in more:
        first.append(line)
        size += len(line)
        if size >= FRAME // 2:
            yield "".join(first).encode()
            first, size = [], 0
    yield "".join([*first, "\n"]).encode()


class Journal:
    """Appends to one file. Only one record is written at a time."""

    def __init__(self, path: Path) -> None:
        """Finds the end of what is whole; nothing is written yet. Raises OSError when the file can't be read."""
        self._path = path
        self._descriptor = -1
        self._count, self._good = 0, 0
        with suppress(FileNotFoundError):
            found, self._good = _whole(path.read_bytes())
            self._count = len(found)
        self._compact = 0
        self._torn = False
        """The last record couldn't be written, so that the next ones would be replayed upon something else."""
        self._since: list[bytes] | None = None
        """While it is rewritten: what was appended meanwhile."""

    @property
    def overgrown(self) -> bool:
        """Whether it is time for a rewrite."""
        return self._torn or self._count > MAX_RECORDS or self._good > 2 * self._compact + SLACK

    def append(self, text: Iterator[bytes]) -> Iterator[None]:
        """Writes a record, a piece in each step; it counts when the last step is done. Raises OSError: it doesn't count."""
        if self._torn:
            return  # until it is rewritten, with this change in it
        written = bytearray()
        try:
            self._open()
            for frame in _frames(text):
                _write(self._descriptor, frame)
                written += frame
                yield
        except OSError:
            self._torn = True
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._good)
            raise
        self._good += len(written)
        self._count += 1
        if self._since is not None:
            self._since.append(bytes(written))

    def rewrite(self, text: Iterator[bytes]) -> Iterator[None]:
        """Replaces all records by this one and those appended meanwhile, a piece in each step. Raises OSError: all stays."""
        fresh = self._path.with_suffix(".new")
        self._since = []
        with suppress(FileNotFoundError):
            fresh.unlink()
        descriptor = _create(fresh)
        try:
            size = 0
            for frame in _frames(text):
                _write(descriptor, frame)
                size += len(frame)
                yield
            compact = size
            for record in self._since:
                _write(descriptor, record)
                size += len(record)
            fresh.replace(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            since, self._since = self._since, None
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._compact, self._good, self._count = descriptor, compact, size, 1 + len(since)
        self._torn = False

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = _create(self._path)
            os.ftruncate(self._descriptor, self._good)


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)  # whatever it was when we found it
    return descriptor


def _write(descriptor: int, frame: bytes) -> None:
    written = os.write(descriptor, frame)
    while written < len(frame):  # the disk is all but full; the next write says so
        written += os.write(descriptor, frame[written:])


def _frames(text: Iterator[bytes]) -> Iterator[bytes]:
    held: bytes | None = None
    for piece in text:
        if held is not None:
            yield _frame(held, last=False)
        held = piece
    yield _frame(held or b"", last=True)


def _frame(text: bytes, *, last: bool) -> bytes:
    return _HEAD.pack(last, len(text), _check(last, text)) + text


def _check(last: int, text: bytes) -> bytes:
    return blake2s(bytes([last]) + text, digest_size=8).digest()


def _whole(data: bytes) -> tuple[list[bytes], int]:
    """The records that are whole, up to the first that isn't, and where that begins."""
    found: list[bytes] = []
    pieces: list[bytes] = []
    offset = end = 0
    while offset + _HEAD.size <= len(data):
        last, length, check = _HEAD.unpack_from(data, offset)
        text = data[offset + _HEAD.size : offset + _HEAD.size + length]
        if last > 1 or len(text) != length or check != _check(last, text):
            break
        offset += _HEAD.size + length
        pieces.append(text)
        if last:
            found.append(b"".join(pieces))
            pieces, end = [], offset
    return found, end
