"""Keeps live changes in a file, the journal, which outlives the process.

Each record is an operation of the `wg` socket, as text, in frames of at most FRAME bytes:

    last 1 | length 4 | check 8 | text          `last` is 1 in a record's last frame, otherwise 0

key-service writes a big change frame by frame, and answers handshakes in between. A record counts once its last frame is
written. The next process cuts off a record that a killed process left incomplete. All records, replayed upon the accepted
text, give the configuration in force. A rewrite replaces many records by a single equivalent record.

The journal holds the private key. So only its owner may read the file and enter its folder.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.config import uapi

FRAME: Final = 32 * 1024
"""Bytes of text in a frame: they bound the time for which a frame delays handshakes."""
MAX_RECORDS: Final = 256
"""Records before a rewrite: each lengthens a restart."""
MAX_SIZE: Final = 1 << 30
"""Bytes; no journal that key-service writes is near."""
SLACK: Final = 1 << 20
"""Bytes before a rewrite, beyond twice the size after the last rewrite."""
_HEAD: Final = struct.Struct("!BI8s")


def records(path: Path) -> list[bytes]:
    """Returns the complete records of a file; none if the file is missing. Raises OSError."""
    try:
        return _whole(files.read(path, MAX_SIZE))[0]
    except FileNotFoundError:
        return []
    except files.Suspicious:
        files.clear(path)
        return []


def operation(change: uapi.Change) -> Iterator[bytes]:
    """Yields a change as the text of an operation, in pieces."""
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
    """Appends records to the journal, each after the other."""

    def __init__(self, path: Path) -> None:
        """Finds the end of the last complete record and writes nothing. Raises OSError if the file is unreadable."""
        self._path = path
        self._descriptor = -1
        self._count, self._good = 0, 0
        with suppress(FileNotFoundError):
            found, self._good = _whole(files.read(path, MAX_SIZE))
            self._count = len(found)
        self._compact = 0
        self._torn = False
        """A record could not be written. Later records would be replayed upon a wrong configuration."""
        self.has_dead_keys = self._count > 1
        """Earlier records may hold keys that are no longer in force. Only a rewrite leaves them out."""
        self._since: list[bytes] | None = None
        """Records appended during a rewrite; None outside a rewrite."""

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def overgrown(self) -> bool:
        """Tells whether the journal needs a rewrite."""
        return self._torn or self.has_dead_keys or self._count > MAX_RECORDS or self._good > 2 * self._compact + SLACK

    def append(self, text: Iterator[bytes]) -> Iterator[None]:
        """Writes a record, a frame in each step. The record counts after the last step.

        Raises OSError, and cuts the record off.
        """
        written = bytearray()
        if self._torn:  # the next rewrite will contain this change, and one under way may have passed its place
            if self._since is not None:
                for frame in _frames(text):
                    written += frame
                    yield
                self._since.append(bytes(written))
            return
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
        """Replaces all earlier records by this record, a frame in each step. Keeps records appended in between.

        Raises OSError, and leaves the journal unchanged.
        """
        fresh = self._path.with_suffix(".new")
        self._since = []
        files.clear(fresh)
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
            (files.put_over if self.has_dead_keys else files.put)(fresh, self._path)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            since, self._since = self._since, None
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._compact, self._good, self._count = descriptor, compact, size, 1 + len(since)
        self._torn = self.has_dead_keys = False

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = _create(self._path)
            os.ftruncate(self._descriptor, self._good)


def _create(path: Path) -> int:
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
    )
    os.fchmod(descriptor, 0o600)  # an existing file keeps its mode otherwise
    return descriptor


def _write(descriptor: int, frame: bytes) -> None:
    written = os.write(descriptor, frame)
    while written < len(frame):  # the disk is nearly full; the next write raises
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
    """Returns the complete records before the first incomplete record, and their size in bytes."""
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
