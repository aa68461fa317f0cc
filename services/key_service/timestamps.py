"""The greatest TAI64N of each peer, and our own, in a small mapped file that outlives the process.

Without it a restart would answer initiations recorded before it. A stamp is in the file before anything follows from it;
the file survives a killed process at once, and is flushed to disk each FLUSH_INTERVAL for the day the machine dies.

    magic 8 | record ...          record: two copies of   public key 32 | initiation 12 | response 12 | check 8

The copies are written in turn, so that a process killed in the middle of one leaves the other. Anything that doesn't
check out counts as absent.
"""

import errno
import mmap
import os
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path
from typing import Final

from stagewire.proto import constants as c

FLUSH_INTERVAL: Final = 30.0
_MAGIC: Final = b"SWTAI64N"
_CHECK: Final = 8
_COPY: Final = c.KEY_LENGTH + 2 * c.TIMESTAMP_LENGTH + _CHECK
_RECORD: Final = 2 * _COPY
_SPARE: Final = 64
_NEVER: Final = bytes(c.TIMESTAMP_LENGTH)


class TimestampStore:
    """Maps (public key, kind) to the greatest stamp; kinds are `initiation` and `response` (theirs), and `own`."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. Raises OSError when there is no place to store."""
        self._path = path
        self._stamps: dict[bytes, tuple[bytes, bytes]] = {}
        self._slots: dict[bytes, int] = {}
        self._turn: dict[bytes, int] = {}
        with suppress(FileNotFoundError):
            self._read(path.read_bytes())
        try:
            self._map = self._rewrite()
        except OSError:
            # No room for a second file; the one that is there will do until it is full.
            path.with_suffix(".new").unlink(missing_ok=True)
            if not path.exists():
                raise
            self._map = self._map_standing()

    def latest(self, public_key: bytes, kind: str) -> bytes:
        """The greatest stamp stored, or twelve zeros."""
        initiation, response = self._stamps.get(public_key, (_NEVER, _NEVER))
        return response if kind == "response" else initiation

    def store(self, public_key: bytes, kind: str, stamp: bytes) -> None:
        """Stores a stamp unless a greater one is stored. Raises OSError when the file must grow and can't."""
        initiation, response = self._stamps.get(public_key, (_NEVER, _NEVER))
        if kind == "response":
            response = max(response, stamp)
        else:
            initiation = max(initiation, stamp)
        self._stamps[public_key] = (initiation, response)
        if public_key not in self._slots:
            if len(_MAGIC) + (len(self._slots) + 1) * _RECORD > len(self._map):
                self._map = self._rewrite()
                return
            self._slots[public_key] = len(self._slots)
        turn = self._turn[public_key] = 1 - self._turn.get(public_key, 1)
        offset = len(_MAGIC) + self._slots[public_key] * _RECORD + turn * _COPY
        self._map[offset : offset + _COPY] = _pack(public_key, initiation, response)

    def flush(self) -> None:
        """Asks the kernel to write to disk."""
        with suppress(OSError):  # a full or failing disk must not end a gateway; the map itself still holds
            self._map.flush()

    def _read(self, data: bytes) -> None:
        if not data.startswith(_MAGIC):
            return
        for offset in range(len(_MAGIC), len(data) - _COPY + 1, _COPY):
            copy = data[offset : offset + _COPY]
            public_key, initiation, response = copy[:32], copy[32:44], copy[44:56]
            if copy == _pack(public_key, initiation, response):
                standing = self._stamps.get(public_key, (_NEVER, _NEVER))
                self._stamps[public_key] = (max(initiation, standing[0]), max(response, standing[1]))

    def _map_standing(self) -> mmap.mmap:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            mapped = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        if mapped[: len(_MAGIC)] != _MAGIC or (len(mapped) - len(_MAGIC)) % _RECORD:
            raise OSError(errno.EINVAL, "is no file of timestamps, and there is no room for a new one")
        for offset in range(len(_MAGIC), len(mapped), _RECORD):
            copies = (mapped[offset : offset + _COPY], mapped[offset + _COPY : offset + _RECORD])
            keys = {copy[:32] for copy in copies if copy == _pack(copy[:32], copy[32:44], copy[44:56])}
            if len(keys) == 1:
                self._slots[keys.pop()] = (offset - len(_MAGIC)) // _RECORD
        if sorted(self._slots.values()) != list(range(len(self._slots))):
            raise OSError(errno.EINVAL, "has gaps, and there is no room for a new one")
        return mapped

    def _rewrite(self) -> mmap.mmap:
        """A new file with room to grow, in the old one's place once it is whole."""
        size = len(_MAGIC) + (2 * len(self._stamps) + _SPARE) * _RECORD
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Not sparse: writing to a mapped hole on a full disk would kill us.
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        mapped[: len(_MAGIC)] = _MAGIC
        for slot, (public_key, stamps) in enumerate(self._stamps.items()):
            offset = len(_MAGIC) + slot * _RECORD
            mapped[offset : offset + _COPY] = _pack(public_key, *stamps)
        mapped.flush()
        fresh.replace(self._path)
        # Not before: until then it is the old file, with the old slots, that is stored to.
        self._slots = {public_key: slot for slot, public_key in enumerate(self._stamps)}
        self._turn = dict.fromkeys(self._stamps, 0)
        return mapped


def _pack(public_key: bytes, initiation: bytes, response: bytes) -> bytes:
    body = public_key + initiation + response
    return body + blake2s(body, digest_size=_CHECK).digest()
