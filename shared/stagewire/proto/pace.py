"""How many handshakes of ours may begin at once, when many want to.

A worker that came back, and a change of their number, make thousands of handshakes due in one moment. All at once they
would fill the pipe to conn-service and keep key-service from everything else.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Pace(Generic[K]):
    """The handshakes that have begun and aren't answered yet. Who doesn't answer holds a place for a WINDOW only."""

    AT_ONCE: Final = 32
    """Half of what the pipe to conn-service holds."""
    WINDOW: Final = 0.5
    """s; longer than nearly every round trip."""

    def __init__(self) -> None:
        self._begun: dict[K, float] = {}  # in the order of their beginning

    def places(self, now: float) -> int:
        """How many may begin now."""
        while self._begun and next(iter(self._begun.values())) + self.WINDOW <= now:
            del self._begun[next(iter(self._begun))]
        return self.AT_ONCE - len(self._begun)

    def begin(self, owner: K, now: float) -> None:
        """One has begun."""
        self._begun.pop(owner, None)
        self._begun[owner] = now

    def end(self, owner: K) -> None:
        """It was answered, or nobody wants it any more."""
        self._begun.pop(owner, None)

    def next_place(self) -> float:
        """When (s) there is a place for another; 0 if there is one now."""
        return 0.0 if len(self._begun) < self.AT_ONCE else next(iter(self._begun.values())) + self.WINDOW
