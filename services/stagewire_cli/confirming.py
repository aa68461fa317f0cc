"""Waits for the operator's word on what was applied, for `stagewire apply --confirm`."""

import select
import sys
import time
from collections.abc import Callable
from typing import Final

from stagewire.environment import Environment
from stagewire_cli import again, key_door
from stagewire_cli.failures import Failed

_LOOK: Final = 0.2
_PATIENCE: Final = 10.0
"""s beyond the time for the confirmation, for a new key-service to answer."""


def confirm(environment: Environment) -> None:
    """Keeps what was applied. Raises Failed if it goes back."""
    try:
        again.asked(lambda: key_door.confirm(environment))
    except key_door.Unanswered:
        left = again.asked(lambda: key_door.left_to_confirm(environment), (key_door.Unanswered,))
        if left:
            raise Failed(
                f"key-service was replaced in the middle, and nothing is confirmed: again, within {left:.0f} s"
            ) from None


def wait(environment: Environment, seconds: int, tell: Callable[[str], None]) -> None:
    """Waits until what was applied is confirmed, here or by `stagewire confirm`. Raises Failed if it does not hold."""
    asks = sys.stdin.isatty()
    here = "type yes, or run " if asks else ""
    tell(f"to keep this, {here}`stagewire confirm {environment.interface}` within {seconds} s; otherwise all goes back")
    until = time.monotonic() + seconds
    while time.monotonic() < until + _PATIENCE:
        if asks and select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline()
            asks = bool(line)
            if line.strip().lower() in {"y", "yes"}:
                confirm(environment)
        try:
            left = key_door.left_to_confirm(environment)
        except Failed:
            left = 1.0  # the next key-service knows
        if not left:
            if time.monotonic() < until:
                tell("confirmed")
                return
            break
        time.sleep(_LOOK)
    else:
        raise Failed("no confirmation came, and key-service has not gone back yet: its log says why")
    raise Failed("no confirmation came, so all is as it was before; the file keeps your edit")
