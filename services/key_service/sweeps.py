"""Decides when freed memory is swept, so that keys that were dropped are soon in none.

Code that drops a key says so. A sweep comes a while later: by then nothing holds the key, and many drops share a sweep.
"""

from typing import Final

from stagewire.linux import freed_memory

AFTER: Final = 0.3
"""s from the drop of a key to the sweep."""


class Sweeps:
    """Sweeps when it is time, as a part of the loop."""

    def __init__(self) -> None:
        self._whole_at: float | None = None
        self._small_at: float | None = None

    def key_dropped(self, now: float) -> None:
        """Notes that a key of the configuration is no longer in force."""
        self._whole_at = self._whole_at or now + AFTER

    def session_given(self, now: float) -> None:
        """Notes that session keys have left for a worker, with all from which they were derived. Hot."""
        self._small_at = self._small_at or now + AFTER

    def next_deadline(self) -> float | None:
        """Returns the time (s) of the next sweep."""
        return min((each for each in (self._whole_at, self._small_at) if each is not None), default=None)

    def act(self, now: float) -> None:
        """Sweeps what is due."""
        if self._whole_at is not None and self._whole_at <= now:
            self._whole_at = self._small_at = None
            freed_memory.sweep()
        elif self._small_at is not None and self._small_at <= now:
            self._small_at = None
            freed_memory.sweep_after_handshakes()
