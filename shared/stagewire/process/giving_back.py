"""Gives pages of memory back to all forks of supervisord, once this process rests (docs/decisions/032)."""

import math
import sys
from typing import Final

from stagewire.loop import Loop

SHARER: Final = "stagewire.linux.common_pages"
"""Module that supervisord imports before it forks, where it can be built. A process without it shares nothing."""
RESTED: Final = 2.0
"""s without work after which pages are given back, if there was work since the last time."""
APART: Final = 60.0
"""s between the first time and the second. Each later time comes after twice as long.

Work copies pages again, and a look through all of them has its price: a gateway with a little work often is not to pay it
often.
"""


def give_back() -> int:
    """Gives back what this process has copied and not changed. Returns how many pages it shares."""
    sharer = sys.modules.get(SHARER)
    return 0 if sharer is None else int(sharer.give_back())


class WhileResting:
    """Gives pages back as a loop rests, ever more rarely."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._apart, self._not_before = APART, -math.inf
        self._worked, self._since = -1, -math.inf
        self._owes = False
        """Whether this process has worked since it last gave back."""
        self._paced = loop.add_paced(RESTED, self._look)

    def _look(self, now: float) -> None:
        if self._loop.worked != self._worked:
            self._worked, self._since, self._owes = self._loop.worked, now, True
        if not self._owes or now < self._not_before:
            return
        if now < self._since + RESTED:
            self._paced.at(self._since + RESTED)
            return
        give_back()
        self._owes = False
        self._not_before = now + self._apart
        self._apart *= 2
