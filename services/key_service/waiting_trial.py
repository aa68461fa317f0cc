"""Owns the trial of an applied file that waits for its confirmation: until when, and how the last one ended."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from key_service import trial_run
from key_service.trial_run import Before
from stagewire.loop import boot_time

_AGAIN: Final = 5.0
"""s until another attempt to go back, after a refusal."""


class WaitingTrial:
    """Begins with the trial that an earlier key-service left, if any. `before` is what to go back to."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.before: Before | None = trial_run.recalled(run)
        self._ended = "", ""
        """The number of the last trial, and how it ended."""
        self._goes_back = False

    def begin(self) -> None:
        """Takes the trial that was stored."""
        self.before = trial_run.recalled(self._run)

    def end(self, before: Before, how: str) -> None:
        """Notes how a trial ended: `trial_run.KEPT` or `trial_run.BACK`."""
        trial_run.end(self._run, before.number, how)
        self._ended = before.number, how
        self.before = None

    def how_it_ended(self, number: str) -> str:
        """Returns `kept` or `back`; nothing for a trial that goes on, or is unknown."""
        known, how = self._ended
        return how if known == number else trial_run.ended(self._run, number)

    @property
    def last_went_back(self) -> bool:
        return self._ended[1] == trial_run.BACK

    def left(self) -> float:
        """Returns the seconds left for a confirmation; 0 if nothing waits for any."""
        before = self.before  # the loop's part may end the trial meanwhile
        return max(0.001, before.until - boot_time()) if before is not None else 0.0

    # --- going back ----------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """Returns when to go back, in s since the boot; None if nothing waits, or an attempt is under way."""
        return self.before.until if self.before is not None and not self._goes_back else None

    def try_to_go_back(self) -> Before | None:
        """Begins an attempt, which `tried` must end. Returns what to go back to."""
        before = self.before
        self._goes_back = before is not None
        return before

    def put_off(self, before: Before) -> None:
        """Waits for another attempt after a refusal."""
        self.before = replace(before, until=boot_time() + _AGAIN)

    def tried(self) -> None:
        self._goes_back = False
