"""Tells which stages stand still, by their slots: a holder at work notes each turn of its loop there.

A stage's reports tell it too, but a report comes each second at best, and of an idle stage every five.
"""

from collections.abc import Iterable
from typing import Final

from stagewire.linux.uids import Place
from stagewire.process import slots
from stagewire.process.slots import Slot, SlotLocks

QUIET_AFTER: Final = 0.8
"""s without a turn of the loop after which a holder that does not sleep counts as standing still; it beats more often."""
_ALWAYS: Final = frozenset({"tun", "conn", "host", "key"})
"""Stages of one process, which must be at work. Workers may have been ended rightly."""
_CARRY: Final = _ALWAYS | {"device"}


class Beats:
    """Reads the slots of an interface. Takes any slot of it, which tells where they are."""

    def __init__(self, ours: Slot) -> None:
        self._run = ours.path.parent
        self._locks = SlotLocks(ours)

    def at_fault(self, places: Iterable[tuple[str, int]], now: float) -> list[str]:
        """Returns a line for each of these stages that stands still or is gone."""
        found = []
        for stage, number in sorted(places):
            if stage not in _CARRY:
                continue
            name = f"{stage}-service" + (f" {number}" if stage == "device" else "")
            held = self._locks.are_held(Place(stage, number))
            if held is False and stage in _ALWAYS:
                found.append(f"no {name} is at work")
            elif held and slots.quiet_for(self._run, stage, number, now) > QUIET_AFTER:
                found.append(f"{name} stands still")
        return found
