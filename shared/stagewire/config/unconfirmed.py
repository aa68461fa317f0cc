"""Remembers beyond a boot that a file was applied on trial and never confirmed (`stagewire apply --confirm`).

The state folder has a digest of the text. So `up` can say that it puts such a text in force.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.config.accepted import Accepted

NAME: Final = "unconfirmed"
_MOST: Final = 64
"""Bytes of the file."""


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


def _digest(text: str) -> bytes:
    return Accepted.first(text).generation.encode()
