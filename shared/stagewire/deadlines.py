"""Calls at times that their owners set: once, again and again, or only while there is work. A loop asks for the next."""

import math
from collections.abc import Callable
from typing import Final, Protocol

HEARTBEAT_INTERVAL: Final = 0.05
"""s that a turn waits at most without sleep: a spare must be able to tell an idle holder from a hung one."""
IDLE_INTERVAL: Final = 5.0
"""s between two calls of what is done now and then (`Paced`) while there is no work."""

Action = Callable[[float], None]
"""Takes the time (s)."""


class Timed(Protocol):
    """Has deadlines at which the loop calls it."""

    def next_deadline(self) -> float | None:
        """Returns the time (s) of the next call, or None."""

    def act(self, now: float) -> None:
        """Does all that is due."""


class Every:
    """Calls `action` every `interval` s, first at once."""

    def __init__(self, interval: float, action: Action) -> None:
        self._interval = interval
        self._action = action
        self._next = 0.0

    def next_deadline(self) -> float:
        return self._next

    def act(self, now: float) -> None:
        """Calls the action once, however many calls were missed."""
        self._next = now + self._interval
        self._action(now)


class Alarm:
    """Calls `action` once, at a time (s) that can be set, changed and cleared. Cleared, it costs a loop nothing."""

    def __init__(self, timetable: "Timetable", action: Action) -> None:
        self._timetable = timetable
        self._action = action
        self._when: float | None = None

    def set(self, when: float | None) -> None:
        """Has the call come at `when`; None: never."""
        standing, self._when = self._when, when
        if when is None and standing is not None:
            self._timetable.remove_timed(self)
        elif when is not None and standing is None:
            self._timetable.add_timed(self)

    def next_deadline(self) -> float | None:
        return self._when

    def act(self, now: float) -> None:
        self.set(None)
        self._action(now)


class Timetable(Protocol):
    """Calls a Timed at its deadlines, from `add_timed` until `remove_timed`; `loop.Loop` does."""

    def add_timed(self, timed: Timed) -> None: ...

    def remove_timed(self, timed: Timed) -> None: ...


class Work(Protocol):
    """Counts work: what has not grown had none."""

    worked: int


class Paced:
    """Calls `action` every `interval` s while there is work, and every IDLE_INTERVAL otherwise; first at once.

    The first work after a rest has the action called in the same turn, if `interval` has passed.
    """

    def __init__(self, work: Work, interval: float, action: Action, phase: float = 0.0) -> None:
        """Takes an action that may bring about work for its next call.

        An idle call comes `phase` s after a multiple of IDLE_INTERVAL.
        """
        self._work, self._interval, self._action, self._phase = work, interval, action, phase
        self.seen = -1
        """The work at the last call."""
        self.soonest = -math.inf
        """Time (s) of the next call if there is work."""
        self._last = -math.inf
        self._latest = math.inf
        self.changed: Callable[[], None] = lambda: None
        """Hears of an earlier `soonest`."""

    def next_deadline(self) -> float:
        if self.seen != self._work.worked or self.soonest == -math.inf:
            return self.soonest
        after = self._last + min(self._interval, HEARTBEAT_INTERVAL)
        return min(math.ceil((after - self._phase) / IDLE_INTERVAL) * IDLE_INTERVAL + self._phase, self._latest)

    def at(self, when: float) -> None:
        """Has the next call come at `when` (s) at the latest."""
        self._latest = min(self._latest, when)
        self.soonest = min(self.soonest, when)
        self.changed()

    def act(self, now: float) -> None:
        self._last, self._latest, self.seen = now, math.inf, self._work.worked
        self.soonest = now + self._interval
        self._action(now)


class AllPaced:
    """Stands for all Paced of a loop: while there is work, one comparison tells the next deadline of all. Hot."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._members: list[Paced] = []
        self._seen = -1
        self._soonest = math.inf

    def add(self, paced: Paced) -> None:
        self._members.append(paced)
        paced.changed = self._look
        self._look()

    def next_deadline(self) -> float:
        if self._work.worked > self._seen:
            return self._soonest
        return min([each.next_deadline() for each in self._members], default=math.inf)

    def act(self, now: float) -> None:
        for each in self._members:
            if each.next_deadline() <= now:
                each.act(now)
        self._look()

    def _look(self) -> None:
        self._seen = max((each.seen for each in self._members), default=-1)
        self._soonest = min((each.soonest for each in self._members), default=math.inf)
