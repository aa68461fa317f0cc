"""Finds the next deadline among many owners.

An owner derives its deadlines from its state; nothing is armed or cancelled. The agenda holds each owner's earliest
deadline, and asks the owner again when that comes. An entry may be early, because the owner's deadline has moved on; it
is never late.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Agenda(Generic[K]):
    """Holds the earliest deadline (s) of each owner."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self.standing: dict[K, float] = {}
        """Each owner's entry."""
        self._sequence = 0

    def enter(self, owner: K, when: float | None) -> None:
        """Asks `owner` at `when` at the latest; None enters nothing.

        An earlier entry stands, so under traffic a call costs mostly one dictionary look-up.
        """
        if when is None:
            return
        standing = self.standing.get(owner)
        if standing is not None and standing <= when:
            return
        self.standing[owner] = when
        self._sequence += 1  # so that the heap never compares owners
        heapq.heappush(self._heap, (when, self._sequence, owner))

    def forget(self, owner: K) -> None:
        """Drops the entry of an owner that is gone."""
        self.standing.pop(owner, None)

    def next_deadline(self) -> float | None:
        """Returns the earliest deadline (s), or None."""
        heap, standing = self._heap, self.standing
        while heap and standing.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[K]:
        """Takes out the owners whose deadlines have come. The caller enters each again with its next deadline."""
        owners: list[K] = []
        while (when := self.next_deadline()) is not None and when <= now:
            owner = heapq.heappop(self._heap)[2]
            del self.standing[owner]
            owners.append(owner)
        return owners
