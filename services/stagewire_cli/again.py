"""Asks the next key-service when one has died in the middle of a command: the operator must learn what holds."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from stagewire_cli import key_door
from stagewire_cli.failures import Failed

T = TypeVar("T")
WITHIN: Final = 10.0
"""s in which a new key-service answers."""
_POLL: Final = 0.1
NOTHING: Final = "nothing is changed"


def asked(ask: Callable[[], T], repeat: tuple[type[Failed], ...] = ()) -> T:
    """Asks until key-service was there to be asked, or WITHIN is over; also after a failure of a kind in `repeat`."""
    until = time.monotonic() + WITHIN
    kinds: tuple[type[Failed], ...] = (key_door.NotAsked, *repeat)
    while True:
        try:
            return ask()
        except kinds:
            if time.monotonic() >= until:
                raise
        time.sleep(_POLL)


def unchanged(failed: Exception) -> str:
    """Returns what a failure says, and that nothing is changed."""
    text = str(failed)
    return text if NOTHING in text or "nothing is written" in text else f"{text}; {NOTHING}"
