"""Samples how long trains have waited when a stage takes them, so that each step of a packet's way can be seen.

A sample compares the clock with the time at which the sender made the train. A pipe is sampled once in INTERVAL at most.
"""

from bisect import bisect_left
from typing import Final

from stagewire.loop import boot_time
from stagewire.pipe.trains import HEADER, Data, sent_of

INTERVAL: Final = 0.01
"""s between two samples of a pipe."""
LONGEST: Final = 60.0
"""s; whatever is said to have waited longer bears a false time, which would spoil the sum for ever."""
BOUNDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""s; the upper bound of each count but the last."""


class Waits:
    """Counts one pipe's samples by duration. The reader calls `note` once `due` has passed."""

    __slots__ = ("counts", "due", "total")

    def __init__(self) -> None:
        self.due = 0.0
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        """s of all samples together."""

    def note(self, train: tuple[Data, int, int]) -> None:
        """Takes a sample of a train that may be malformed."""
        now = boot_time()
        self.due = now + INTERVAL
        data, start, end = train
        if end - start < HEADER.size:
            return
        waited = now - sent_of(data, start)
        if 0 <= waited <= LONGEST:
            self.counts[bisect_left(BOUNDS, waited)] += 1
            self.total += waited
