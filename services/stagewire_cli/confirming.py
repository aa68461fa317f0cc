"""Waits for the operator's word on what was applied, for `stagewire apply --confirm`."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stagewire.environment import Environment
from stagewire.loop import boot_time
from stagewire_cli import again, bring_up, key_door
from stagewire_cli.failures import Failed

_LOOK: Final = 0.2
_PATIENCE: Final = 10.0
"""s beyond the time for the confirmation, for a new key-service to answer."""


def confirm(environment: Environment) -> None:
    """Keeps what was applied. Raises Failed if it goes back."""
    try:
        again.asked(lambda: key_door.confirm(environment))
    except key_door.Unanswered:
        left = again.asked(lambda: key_door.trial(environment).left, (key_door.Unanswered,))
        if left:
            raise Failed(
                f"key-service was replaced in the middle, and nothing is confirmed: again, within {left:.0f} s"
            ) from None


def wait(environment: Environment, trial: str, seconds: int, tell: Callable[[str], None]) -> None:
    """Waits until what was applied is confirmed, here or by `stagewire confirm`. Raises Failed unless it was."""
    asks = sys.stdin.isatty()
    mend = f"`stagewire confirm {environment.interface}`"
    tell(f"to keep this, {'type yes, or ' if asks else ''}run {mend} within {seconds} s; otherwise all goes back")
    until = boot_time() + seconds
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _wait(environment, trial, until, asks=asks)
    except KeyboardInterrupt:
        left = f"within {until - boot_time():.0f} s" if until > boot_time() else "now"
        raise Failed(f"interrupted, and not confirmed: all goes back {left}, unless you run {mend}") from None
    tell("confirmed: what was applied stays in force")


def _wait(environment: Environment, trial: str, until: float, *, asks: bool) -> None:
    """Waits for the end of a trial. Raises Failed unless it ended with a confirmation."""
    waits = "no confirmation came, and key-service has not gone back yet: its log says why"
    silent = "no confirmation came, and key-service does not answer: the next one goes back"
    said = waits
    while boot_time() < until + _PATIENCE:
        asks, says_yes = _heard() if asks else (False, False)
        if says_yes:
            with suppress(Failed):  # it may have gone back just now, which is said next
                confirm(environment)
        try:
            stands = key_door.trial(environment, trial)
        except Failed:
            if not bring_up.is_up(environment):
                raise Failed(
                    "not confirmed: the interface was taken down; the next `up` takes the file as it is then"
                ) from None
            said = silent
        else:
            said = waits
            if stands.ended == "kept":
                return
            if stands.ended == "back":
                raise Failed("no confirmation came, so all is as it was before; the file keeps your edit")
            if not stands.left:
                raise Failed(
                    "not confirmed, and nothing goes back any more: the interface has begun anew, with the file's text"
                )
        time.sleep(_LOOK)
    raise Failed(said)


def _heard() -> tuple[bool, bool]:
    """Tells whether the terminal can still answer, and whether it has just said yes."""
    try:
        # The kernel stops a process that reads its terminal in the background.
        if os.tcgetpgrp(0) != os.getpgrp() or not select.select([sys.stdin], [], [], 0)[0]:
            return True, False
        line = sys.stdin.readline()
    except OSError:  # the terminal is gone
        return False, False
    return bool(line), line.strip().lower() in {"y", "yes"}
