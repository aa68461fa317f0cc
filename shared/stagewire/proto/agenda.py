"""Many owners, one next deadline.

Deadlines are derived from state, not armed and cancelled: an owner's earliest one is entered here, and when it comes
the owner is asked again. An entry may be early (the owner's deadline moved on since), never late.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Agenda(Generic[K]):
    """The earliest deadline (s) of each owner."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._when: dict[K, float] = {}
        self._sequence = 0

    def enter(self, owner: K, when: float | None) -> None:
        """Ask `owner` at `when` at the latest; None: there is nothing to ask. Costs a dictionary look-up when an
        earlier question stands already, which under traffic is nearly always.
        """
        if when is None:
            return
        standing = self._when.get(owner)
        if standing is not None and standing <= when:
            return
        self._when[owner] = when
        self._sequence += 1  # owners need not be comparable
        heapq.heappush(self._heap, (when, self._sequence, owner))

    def forget(self, owner: K) -> None:
        """Owner is gone."""
        self._when.pop(owner, None)

    def next_deadline(self) -> float | None:
        """When to look again."""
        heap, standing = self._heap, self._when
        while heap and standing.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[K]:
        """The owners to ask now, each of which must be entered again with what it answers."""
        owners: list[K] = []
        while (when := self.next_deadline()) is not None and when <= now:
            owner = heapq.heappop(self._heap)[2]
            del self._when[owner]
            owners.append(owner)
        return owners
