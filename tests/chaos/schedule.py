"""Draws which fault comes when. All comes from one generator, so a seed repeats the faults."""

import random
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final

from tests.chaos.house import Kind

Plan = Iterator[tuple[Kind, float]]
"""Kinds, each with the pause before it in s."""


def rounds(kinds: Sequence[Kind], count: int, luck: random.Random) -> Plan:
    """Yields every kind `count` times, each round in another order, with short pauses."""
    for _ in range(count):
        for kind in luck.sample(kinds, len(kinds)):
            yield kind, luck.uniform(0.1, 0.4)


LASTING_EVERY: Final = 4
"""Rounds of a soak, of which only one has the lasting kinds: otherwise these would fill most of the time."""


def soak(kinds: Sequence[Kind], until: float, every: float, luck: random.Random) -> Plan:
    """Yields a random fault every `every` s until a time of the monotonic clock.

    All kinds but lasting ones come equally often.
    """
    last = time.monotonic()
    for number in count():
        if time.monotonic() >= until:
            return
        drawn = [kind for kind in kinds if not kind.lasting or number % LASTING_EVERY == 0]
        for kind in luck.sample(drawn, len(drawn)):
            due = last + luck.uniform(0.6, 1.4) * every
            yield kind, max(0.2, due - time.monotonic())
            last = time.monotonic()
            if last >= until:
                return


def short(kinds: Sequence[Kind], each: int, until: float, luck: random.Random) -> Plan:
    """Yields the main kinds `each` times, then others for as long as there is time."""
    always = [kind for kind in kinds if kind.short]
    yield from rounds(always, each, luck)
    others = [kind for kind in kinds if not kind.short]
    for kind in luck.sample(others, len(others)):
        if time.monotonic() > until:
            return
        yield kind, 0.1
