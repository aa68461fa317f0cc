"""Holds what to go back to while an applied file waits for its confirmation (`stagewire apply --confirm`).

The record lies in key-service's folder, so that a new key-service goes back in time as well. It holds keys that are no
longer in force, until the file is confirmed or the gateway went back. Each such trial has a number, and another file there
tells how the last one ended: the command must not take the end of a trial for its confirmation.

    <until> <length of the operation> <number>\\n<operation><accepted text, packed>
    <number> <end>
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from key_service.registry import Registry
from stagewire import config, files
from stagewire.config import InterfaceConfig, accepted, unconfirmed
from stagewire.config.accepted import Accepted
from stagewire.limits import MAX_ACCEPTED, MAX_TRIAL
from stagewire.loop import boot_time

_ENDED: Final = "trial-ended"
_HEAD: Final = 64
"""Bytes of the first line at most."""
KEPT: Final = "kept"
BACK: Final = "back"


@dataclass(frozen=True, slots=True)
class Before:
    """Holds what was in force before: the accepted text, and the live changes upon it as one operation.

    `until` is when to go back, in seconds since the boot; `number` tells one trial from another.
    """

    until: float
    kept: Accepted
    operation: bytes = field(repr=False)
    number: str

    def configurations(self, path: Path) -> tuple[InterfaceConfig, InterfaceConfig]:
        """Returns the file's configuration, and the one in force with all live changes. Raises ConfigError."""
        file = config.parse_text(self.kept.text, path)
        registry = Registry(file)
        registry.restore(self.operation)
        return file, registry.snapshot()

    def packed(self) -> bytes:
        return f"{self.until} {len(self.operation)} {self.number}\n".encode() + self.operation + self.kept.packed()


def store(run: Path, before: Before) -> None:
    """Writes the record. Raises OSError."""
    fresh = _path(run).with_suffix(".new")
    files.clear(fresh)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(before.packed())
    files.put_over(fresh, _path(run))


def end(run: Path, number: str, how: str) -> None:
    """Notes how a trial ended, KEPT or BACK, and forgets the record."""
    with suppress(OSError):
        files.write(_path(run).with_name(_ENDED), f"{number} {how}".encode())
    forget(run)


def ended(run: Path, number: str) -> str:
    """Tells how a trial ended; an empty text if that is unknown."""
    try:
        known, _, how = files.read(_path(run).with_name(_ENDED), _HEAD).decode().partition(" ")
    except (OSError, ValueError):
        return ""
    return how if known == number and how in {KEPT, BACK} else ""


def forget(run: Path) -> None:
    """Overwrites and removes the record."""
    with suppress(OSError):
        descriptor = files.opened(_path(run), MAX_ACCEPTED * 2, os.O_WRONLY)
        try:
            size = os.fstat(descriptor).st_size
            os.pwrite(descriptor, bytes(size), 0)
        finally:
            os.close(descriptor)
        files.clear(_path(run))


def recalled(run: Path) -> Before | None:
    """Reads the record; None if there is none, or no whole one."""
    try:
        data = files.read(_path(run), MAX_ACCEPTED * 2)
    except OSError:
        return None
    head, newline, rest = data.partition(b"\n")
    try:
        until, length, number = head[:_HEAD].decode().split(" ")
        before, size, kept = float(until), int(length), accepted.unpack(rest[int(length) :])
    except ValueError:
        return None
    if not newline or kept is None or size < 0 or not 0 <= before <= boot_time() + MAX_TRIAL:
        return None
    return Before(before, kept, rest[:size], number)


def _path(run: Path) -> Path:
    return run / "key" / unconfirmed.RECORD
