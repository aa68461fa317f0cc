"""Bounds how many of our handshakes begin at once.

A worker's return, or another number of workers, makes thousands of handshakes due in one moment. Together they would
fill the pipe to conn-service and keep key-service from everything else.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Pace(Generic[K]):
    """Holds the handshakes that have begun and have no answer yet. An unanswered one keeps its place for WINDOW only."""

    AT_ONCE: Final = 32
    """Half of what the pipe to conn-service holds."""
    WINDOW: Final = 0.5
    """s; longer than nearly every round trip."""

    def __init__(self) -> None:
        self._begun: dict[K, float] = {}  # oldest first

    def places(self, now: float) -> int:
        """Counts the handshakes that may begin now."""
        while self._begun and next(iter(self._begun.values())) + self.WINDOW <= now:
            del self._begun[next(iter(self._begun))]
        return self.AT_ONCE - len(self._begun)

    def begin(self, owner: K, now: float) -> None:
        self._begun.pop(owner, None)
        self._begun[owner] = now

    def end(self, owner: K) -> None:
        """Frees the place of a handshake that has an answer or is no longer wanted."""
        self._begun.pop(owner, None)

    def next_place(self) -> float:
        """Returns the time (s) of the next free place, or 0 if there is a free place now."""
        return 0.0 if len(self._begun) < self.AT_ONCE else next(iter(self._begun.values())) + self.WINDOW
