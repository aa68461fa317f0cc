"""Counters of many processes, added up over their lives.

A process counts from zero; what it had counted when it was last heard of is kept, so that a total never falls.
"""

from collections import Counter
from dataclasses import dataclass, field

from stagewire.environment import MAX_WORKERS
from stagewire.ipc.control import Counters
from stagewire.stats import MEANINGS

STAGES = ("tun", "device", "conn", "key", "status")


@dataclass(slots=True)
class Service:
    """One program (of the workers: one number). `lives` counts its processes since we started."""

    pid: int = 0
    generation: int = 0
    heard: float = 0.0
    lives: int = 0
    past: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)

    def total(self) -> dict[str, int]:
        """By name, zeros left out."""
        return dict(sorted((self.past + self.present).items()))


class Tally:
    """All services of an interface, by name and number."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, int], Service] = {}

    def take(self, counters: Counters, now: float) -> None:
        """Enters what a process has counted so far; what nobody we know would say is left out."""
        if counters.stage not in STAGES or not 0 <= counters.number < MAX_WORKERS:
            return
        service = self.services.setdefault((counters.stage, counters.number), Service())
        if counters.generation != service.generation:
            service.past += service.present
            service.present = Counter()
            service.generation = counters.generation
            service.lives += 1
        service.pid = counters.pid
        service.heard = now
        named = zip(counters.names, counters.values, strict=False)
        service.present = Counter({name: value for name, value in named if name in MEANINGS})
