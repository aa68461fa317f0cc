"""Tells which stages stand still, by their slots: a holder at work notes each turn of its loop there.

A stage's reports tell it too, but a report comes each second at best, and of an idle stage every five.
"""

from typing import Final

from stagewire.limits import MAX_WORKERS
from stagewire.linux.uids import Place
from stagewire.process import slots
from stagewire.process.slots import Slot, SlotLocks

QUIET_AFTER: Final = 0.8
"""s without a turn of the loop after which a holder that does not sleep counts as standing still; it beats more often."""
_ALWAYS: Final = ("conn", "host", "key", "tun")
"""Stages of one process, which must be at work. Workers may have been ended rightly."""


class Beats:
    """Reads the slots of an interface. Takes any slot of it, which tells where they are.

    A stage that stopped before its first report is seen, too: it is looked for by its slot, not by what it has told.
    """

    def __init__(self, ours: Slot) -> None:
        self._run = ours.path.parent
        self._locks = SlotLocks(ours)

    def at_fault(self, now: float) -> list[str]:
        """Returns a line for each stage on a packet's way that stands still or is gone."""
        found = [line for stage in _ALWAYS if (line := self.fault_of(stage, now))]
        for number in range(MAX_WORKERS):
            place = Place("device", number)
            if self._locks.are_held(place) and self._is_quiet(place, now):
                found.append(f"device-service {number} stands still")
        return found

    def fault_of(self, stage: str, now: float) -> str:
        """Returns a line if this stage of one process stands still or is gone; else an empty string."""
        place = Place(stage, 0)
        held = self._locks.are_held(place)
        if held is False:
            return f"no {stage}-service is at work"
        return f"{stage}-service stands still" if held and self._is_quiet(place, now) else ""

    def _is_quiet(self, place: Place, now: float) -> bool:
        return slots.quiet_for(self._run, place.stage, place.number, now) > QUIET_AFTER
