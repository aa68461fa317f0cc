"""Knows which of our handshake messages may still be answered, by their sender index.

So conn-service drops an answer that no message awaits for the price of a look-up, before any other check.
"""

from collections import deque
from typing import Final

from stagewire.proto import constants as c

AWAITED_FOR: Final = 3 * c.REKEY_TIMEOUT
"""s; after a third of it, our next initiation takes the place of an unanswered one."""
MAX_ANSWERS: Final = 16
"""Answers to one message of ours that are looked at; only one is true."""


class Awaited:
    """Holds the sender indices of our messages. No stranger can add one."""

    def __init__(self, now: float) -> None:
        """Begins to listen at `now`. Answers to messages before that are under way until `settled`."""
        self._began = now
        self._left: dict[int, int] = {}
        """Answers that may yet come, by index."""
        self._until: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        return len(self._left)

    def sent(self, index: int, now: float) -> None:
        """Notes a message of ours."""
        while self._until and self._until[0][0] <= now:
            self._left.pop(self._until.popleft()[1], None)
        self._left[index] = MAX_ANSWERS
        self._until.append((now + AWAITED_FOR, index))

    def settled(self, now: float) -> bool:
        """Tells whether every message that may be answered is known."""
        return now >= self._began + AWAITED_FOR

    def answered(self, index: int) -> bool:
        """Tells whether an answer to this index is awaited, and counts it. hot"""
        left = self._left.get(index, 0)
        if left:
            self._left[index] = left - 1
        return left > 0
