"""Whether trains shall gather before the stages (`privileges.let_trains_gather`): while much is carried, and only then."""

import math
from collections.abc import Callable
from typing import Final

MUCH: Final = 8_000_000
"""Bytes of trains in a second, sent and received: 64 Mb/s, or half of it for a worker, who receives what it sends. With 10 s
of CPU for a gigabyte (both ends, `make bench`) all stages together take a tenth of a core for it: nothing to wait for."""
INTERVAL: Final = 0.02
"""s between two looks at least."""


class Gathering:
    """Counts what a loop's pipes carry. `carried` is for them to add to, in bytes."""

    def __init__(self) -> None:
        self.carried = 0
        self.due = math.inf
        """When to look again (s)."""
        self._looked = 0.0
        self._gather: Callable[[bool], None] | None = None

    def begin(self, gather: Callable[[bool], None], now: float) -> None:
        """From now on `gather` is told whether to, each time it is looked: somebody else may have set another priority."""
        self._gather = gather
        self.carried, self._looked, self.due = 0, now, now + INTERVAL

    def look(self, now: float) -> None:
        """To be called from `due` on, soon and also while nothing is carried."""
        much = self.carried > MUCH * (now - self._looked)
        self.carried, self._looked, self.due = 0, now, now + INTERVAL
        if self._gather is not None:
            self._gather(much)
