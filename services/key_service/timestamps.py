"""Stores the greatest TAI64N of each peer, and our own, in a small mapped file that outlives the process.

Without the file, a restarted key-service would answer recorded initiations. The store writes a stamp before key-service
acts on it. The file survives a killed process at once, and a crash of the machine after a flush (FLUSH_INTERVAL).

    magic 8 | record ...          record: two copies of   public key 32 | initiation 12 | response 12 | check 8

The store writes both copies in turn: a process killed while writing one copy leaves the other. A copy with a wrong check
counts as absent. The check also tells our own stamps from a peer's.
"""

import errno
import mmap
import os
from collections.abc import Callable, Container
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.proto import constants as c
from stagewire.proto import tai64n
from stagewire.proto.messages import BadMessage

FLUSH_INTERVAL: Final = 30.0
MAX_SIZE: Final = 256 << 20
"""Bytes, for more than a million peers."""
_MAGIC: Final = b"SWTAI64N"
_CHECK: Final = 8
_COPY: Final = c.KEY_LENGTH + 2 * c.TIMESTAMP_LENGTH + _CHECK
_RECORD: Final = 2 * _COPY
_SPARE: Final = 64
_NEVER: Final = bytes(c.TIMESTAMP_LENGTH)
_OWN: Final = b"own"
_OWN_KEPT: Final = 64
"""Key pairs of ours that keep their stamps, including the present pair."""


class TimestampStore:
    """Maps (public key, kind) to the greatest stamp. Kinds are a peer's `initiation` and `response`, and our `own`."""

    def __init__(self, path: Path) -> None:
        """Reads the file, and makes room in it. Raises OSError if there is no room."""
        self._path = path
        self._stamps: dict[bytes, tuple[bytes, bytes]] = {}
        self._own: dict[bytes, None] = {}
        """Our public keys, the last used key at the end."""
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = []
        self._turn: dict[bytes, int] = {}
        self.on_forget: Callable[[bytes], None] = lambda _key: None
        """Is told of each public key whose stamps are forgotten."""
        self.lost: files.Suspicious | None = None
        """Why the stamps of earlier lives can't be read."""
        try:
            self._read(files.read(path, MAX_SIZE))
        except FileNotFoundError:
            pass
        except files.Suspicious as suspicious:
            self.lost = suspicious
        try:
            self._map = self._rewrite()
        except OSError:
            # Without room for a second file, the present file serves until it is full.
            path.with_suffix(".new").unlink(missing_ok=True)
            if not path.exists():
                raise
            self._map = self._map_standing()

    def latest(self, public_key: bytes, kind: str) -> bytes:
        """Returns the greatest stored stamp, or twelve zeros."""
        initiation, response = self._stamps.get(public_key, (_NEVER, _NEVER))
        return response if kind == "response" else initiation

    def own(self, public_key: bytes) -> bytes:
        """Returns the greatest stamp that we made with a key pair of ours, or twelve zeros.

        A peer that has the key pair may have made stamps beyond all times, which ours can't follow.
        """
        stamp = self.latest(public_key, "own")
        try:
            return stamp if tai64n.decode_untrusted(stamp) < tai64n.END_NS else _NEVER
        except BadMessage:
            return _NEVER

    def store(self, public_key: bytes, kind: str, stamp: bytes) -> None:
        """Stores a stamp unless a greater stamp is stored. Raises OSError if the file must grow and cannot."""
        initiation, response = self._stamps.get(public_key, (_NEVER, _NEVER))
        if kind == "response":
            response = max(response, stamp)
        else:
            initiation = max(initiation, stamp)
        self._stamps[public_key] = (initiation, response)
        if kind == "own" and next(reversed(self._own), None) != public_key:
            self._own.pop(public_key, None)
            self._own[public_key] = None
        if public_key not in self._slots:
            if not self._free:
                self._map = self._rewrite()
                return
            self._slots[public_key] = self._free.pop()
        turn = self._turn[public_key] = 1 - self._turn.get(public_key, 1)
        offset = _offset(self._slots[public_key]) + turn * _COPY
        self._map[offset : offset + _COPY] = self._packed(public_key)

    def forget(self, public_key: bytes) -> None:
        """Forgets a peer's stamps, in the file as well."""
        self.on_forget(public_key)
        self._stamps.pop(public_key, None)
        self._own.pop(public_key, None)
        self._turn.pop(public_key, None)
        slot = self._slots.pop(public_key, None)
        if slot is not None:
            self._map[_offset(slot) : _offset(slot + 1)] = bytes(_RECORD)
            self._free.append(slot)

    def forget_strangers(self, known: Container[bytes], keep: int) -> int:
        """Forgets all keys but the `known` keys and the `keep` strangers stored last. Returns the number of forgotten keys.

        Our last own keys stay: a machine without a clock must not send older stamps than before.
        """
        own = list(self._own)[-_OWN_KEPT:]
        strangers = [key for key in self._stamps if key not in known and key not in own]
        gone = strangers[: max(0, len(strangers) - keep)]
        for key in gone:
            self.forget(key)
        return len(gone)

    def flush(self) -> None:
        """Asks the kernel to write the file to disk."""
        with suppress(OSError):  # a full or failing disk must not end a gateway; the map still works
            self._map.flush()

    def _read(self, data: bytes) -> None:
        if not data.startswith(_MAGIC):
            if any(data):  # an empty file, or one of zeros, is what a crash of the machine leaves
                kept = files.put_aside(self._path)
                self.lost = files.Suspicious(self._path, f"is damaged or of another version, and is kept as {kept}")
            return
        for offset in range(len(_MAGIC), len(data) - _COPY + 1, _COPY):
            copy = data[offset : offset + _COPY]
            public_key, initiation, response = copy[:32], copy[32:44], copy[44:56]
            if _is_whole(copy):
                if copy == _pack(public_key, initiation, response, _OWN):
                    self._own[public_key] = None
                standing = self._stamps.get(public_key, (_NEVER, _NEVER))
                self._stamps[public_key] = (max(initiation, standing[0]), max(response, standing[1]))

    def _map_standing(self) -> mmap.mmap:
        descriptor = files.opened(self._path, MAX_SIZE, os.O_RDWR)
        try:
            mapped = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        if mapped[: len(_MAGIC)] != _MAGIC or (len(mapped) - len(_MAGIC)) % _RECORD:
            raise OSError(errno.EINVAL, "is no file of timestamps, and the disk has no room for a new file")
        for offset in range(len(_MAGIC), len(mapped), _RECORD):
            copies = (mapped[offset : offset + _COPY], mapped[offset + _COPY : offset + _RECORD])
            keys = {copy[:32] for copy in copies if _is_whole(copy)}
            if len(keys) == 1:
                self._slots[keys.pop()] = (offset - len(_MAGIC)) // _RECORD
        self._find_free(mapped)
        return mapped

    def _find_free(self, mapped: mmap.mmap) -> None:
        taken = set(self._slots.values())
        self._free = [slot for slot in reversed(range((len(mapped) - len(_MAGIC)) // _RECORD)) if slot not in taken]

    def _packed(self, public_key: bytes) -> bytes:
        return _pack(public_key, *self._stamps[public_key], _OWN if public_key in self._own else b"")

    def _rewrite(self) -> mmap.mmap:
        """Makes a new file with room to grow, and replaces the old file with it."""
        size = len(_MAGIC) + (2 * len(self._stamps) + _SPARE) * _RECORD
        fresh = self._path.with_suffix(".new")
        files.clear(fresh)
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Not sparse: on a full disk, a write to a mapped hole would kill the process.
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        mapped[: len(_MAGIC)] = _MAGIC
        for slot, public_key in enumerate(self._stamps):
            mapped[_offset(slot) : _offset(slot) + _COPY] = self._packed(public_key)
        mapped.flush()
        fresh.replace(self._path)
        # Only now: if an earlier step fails, `store` goes on with the old file and its slots.
        self._slots = {public_key: slot for slot, public_key in enumerate(self._stamps)}
        self._turn = dict.fromkeys(self._stamps, 0)
        self._find_free(mapped)
        return mapped


def _offset(slot: int) -> int:
    return len(_MAGIC) + slot * _RECORD


def _pack(public_key: bytes, initiation: bytes, response: bytes, whose: bytes) -> bytes:
    body = public_key + initiation + response
    return body + blake2s(body, digest_size=_CHECK, person=whose).digest()


def _is_whole(copy: bytes) -> bool:
    parts = copy[:32], copy[32:44], copy[44:56]
    return copy in {_pack(*parts, b""), _pack(*parts, _OWN)}
