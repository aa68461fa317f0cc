"""Keeps the newest events of each kind: a flood of one kind takes no other kind's place."""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import Final

from stagewire.control.event import KINDS, Event

MOST: Final = 2048
"""Events of one kind."""


class Ring:
    """Gives each event an id, by which a reader asks for those after it."""

    def __init__(self, kept: Iterable[Event] = ()) -> None:
        """Takes the events that an earlier life has kept, the oldest first."""
        self._kinds: dict[str, deque[Event]] = {kind: deque(maxlen=MOST) for kind in KINDS}
        self._gone: dict[str, int] = dict.fromkeys(KINDS, 0)
        """The newest id of each kind that is no longer kept."""
        self.newest = 0
        for event in kept:
            if event.kind in KINDS:
                self._put(event)

    def add(self, event: Event, unix_s: float) -> Event:
        """Keeps an event, and returns it with its time and id. The id goes on where the clock goes back."""
        stamped = replace(event, id=max(self.newest + 1, int(unix_s * 1e6)), unix_s=unix_s)
        self._put(stamped)
        return stamped

    def _put(self, event: Event) -> None:
        kept = self._kinds[event.kind]
        if len(kept) == MOST:
            self._gone[event.kind] = kept[0].id
        kept.append(event)
        self.newest = max(self.newest, event.id)

    def after(self, id_: int, kinds: Iterable[str], most: int) -> tuple[tuple[Event, ...], bool]:
        """Returns the first `most` events of these kinds after an id, and whether others after it are no longer kept."""
        wanted = [kind for kind in dict.fromkeys(kinds) if kind in KINDS]
        found = merge(*(self._later(kind, id_) for kind in wanted), key=lambda event: event.id)
        return tuple(islice(found, max(0, most))), any(self._gone[kind] > id_ for kind in wanted)

    def _later(self, kind: str, id_: int) -> list[Event]:
        later = []
        for event in reversed(self._kinds[kind]):
            if event.id <= id_:
                break
            later.append(event)
        return later[::-1]
