"""Which fault comes when. All is drawn from one generator, so a seed draws the same again."""

import random
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Final

from chaos.house import Kind

Plan = Iterator[tuple[Kind, float]]
"""Kinds, each with the pause before it in s."""


def rounds(kinds: Sequence[Kind], count: int, luck: random.Random) -> Plan:
    """Every kind `count` times, each round in another order, with little between."""
    for _ in range(count):
        for kind in luck.sample(kinds, len(kinds)):
            yield kind, luck.uniform(0.1, 0.4)


LASTING_EVERY: Final = 4
"""Rounds of a soak, of which one has the lasting kinds: with all of them in each, there was a fault every 12 s."""


def soak(kinds: Sequence[Kind], until: float, every: float, luck: random.Random) -> Plan:
    """A random fault every so many s, until a time of the monotonic clock; all kinds but lasting ones come equally often."""
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


def short(kinds: Sequence[Kind], until: float, luck: random.Random) -> Plan:
    """Those that a short run tries, twice; then others for as long as there is time."""
    always = [kind for kind in kinds if kind.short]
    yield from rounds(always, 2, luck)
    others = [kind for kind in kinds if not kind.short]
    for kind in luck.sample(others, len(others)):
        if time.monotonic() > until:
            return
        yield kind, 0.1
