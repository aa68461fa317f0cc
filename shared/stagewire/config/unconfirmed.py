"""Remembers beyond a boot that a file was applied on trial and never confirmed (`stagewire apply --confirm`).

The state folder has a digest of the text. So `up` can say that it puts such a text in force. While a trial lasts, the first
word of a record in key-service's folder is its end, in seconds since the boot.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.config.accepted import Accepted
from stagewire.limits import MAX_ACCEPTED, MAX_TRIAL

NAME: Final = "unconfirmed"
RECORD: Final = "unconfirmed"
"""Name of the record of a trial that lasts."""
_MOST: Final = 64
"""Bytes of the file, and of the record's beginning."""


def new_number() -> str:
    """Returns the number of a new trial, which no other has."""
    return os.urandom(8).hex()


def note(state: Path, text: str) -> None:
    """Notes a text before it comes into force. Raises OSError."""
    files.write(state / NAME, _digest(text))


def forget(state: Path) -> None:
    """Forgets the text: it is confirmed, or another one is in force for good."""
    with suppress(OSError):
        files.clear(state / NAME)


def holds(state: Path, text: str) -> bool:
    """Tells whether this is the text that was never confirmed."""
    try:
        return files.read(state / NAME, _MOST) == _digest(text)
    except OSError:
        return False


def left(run: Path, now: float) -> float:
    """Returns how long (s) a trial still lasts; 0 if there is none, or its record can't be read. Takes s since the boot."""
    try:
        opened = files.opened(run / "key" / RECORD, 2 * MAX_ACCEPTED)
        try:
            until = float(os.read(opened, _MOST).partition(b" ")[0])
        finally:
            os.close(opened)
    except (OSError, ValueError):
        return 0.0
    return until - now if 0 < until - now <= MAX_TRIAL else 0.0


def _digest(text: str) -> bytes:
    return Accepted.first(text).generation.encode()
