"""Computes a run's report: figures of each kind of fault, and whether they reach their limits."""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from tests.chaos.catalogue import KINDS
from tests.chaos.drive import Drive, Outcome, Progress
from tests.chaos.house import Kind, Limits
from tests.chaos.invariants import Check, checks, come_back
from tests.chaos.processes import Held
from tests.chaos.record import SHARED, SLOT, Record
from tests.chaos.scene import Scene

CARRYING: Final = 0.9995
"""The share of slots that must carry traffic."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums up all faults of one kind. Outages are in ms, losses in packets."""

    kind: str
    what: str
    count: int
    median_ms: float
    worst_ms: float
    takeover_ms: tuple[float, float]
    """Of outages that began with the fault itself: median and worst."""
    others_worst_ms: float
    median_lost: float
    worst_lost: int
    others_lost: int
    measured: dict[str, tuple[float, float]]
    """Further figures by name: median and worst."""
    missed: list[str]
    """Figures beyond their limits."""


@dataclass(slots=True)
class Run:
    """Holds all findings at the end. Times are unix s."""

    seed: int
    record: Record
    progress: Progress
    violations: list[str]
    checks: list[Check]
    numbers: dict[str, int]
    held: tuple[Held, Held]
    carrying: float
    """The share of slots in which packets arrived in both directions."""
    carrying_else: float
    """The same, without the faults that stop all traffic by nature."""
    waited: float | None
    """The share of the time in which a process of this machine waited for a processor; None if the kernel does not say.
    """
    reference: dict[str, list[Outcome]] = field(default_factory=dict)
    """wireguard-go's outcomes, by its fault."""

    @classmethod
    def of(cls, scene: Scene, drive: Drive, held: tuple[Held, Held], seed: int) -> "Run":
        """Collects the findings while the scene still stands."""
        record, progress = scene.record, drive.progress
        found = checks(record, progress.broken) + come_back(*held)
        numbers = {name: record.get(name) for name in SHARED}
        dark = [mark[:2] for mark in progress.marks if mark[2] in {kind.name for kind in KINDS if kind.dark}]
        shares = carrying(record, progress.begun, progress.ends, dark)
        return cls(seed, record, progress, scene.watch.violations(), found, numbers, held, *shares, drive.waited())

    @property
    def sound(self) -> bool:
        """Tells whether all invariants held."""
        return all(check.holds for check in self.checks)

    def figures(self) -> list[Figures]:
        """Returns the figures by kind, in the catalogue's order."""
        by_kind = _by_kind(self.progress.done)
        return [summed_up(kind, by_kind[kind.name]) for kind in KINDS if kind.name in by_kind]


def carrying(record: Record, start: float, end: float, dark: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the share of slots with arrivals in both directions: of all, and of those outside `dark` (unix s)."""
    history = record.history(start, end)
    both = (history[0::2].sum(axis=0) > 0) & (history[1::2].sum(axis=0) > 0)
    counted = np.ones(len(both), dtype=bool)
    for begun, ended in dark:
        counted[max(0, int((begun - start) / SLOT)) : int((ended - start) / SLOT) + 1] = False
    return float(both.mean()), float(both[counted].mean()) if counted.any() else 1.0


def _by_kind(outcomes: Sequence[Outcome]) -> Mapping[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.kind].append(outcome)
    return found


def summed_up(kind: Kind, outcomes: Sequence[Outcome]) -> Figures:
    """Computes medians and worst cases."""
    outages = [outcome.outage * 1000 for outcome in outcomes]
    takeovers = [outcome.takeover * 1000 for outcome in outcomes]
    lost = [outcome.lost for outcome in outcomes]
    measured: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for name, value in outcome.measured.items():
            measured[name].append(value)
    figures = Figures(
        kind.name, kind.what, len(outcomes), statistics.median(outages), max(outages),
        (statistics.median(takeovers), max(takeovers)),
        max(outcome.outage_others * 1000 for outcome in outcomes), statistics.median(lost), max(lost),
        max(outcome.lost_others for outcome in outcomes),
        {name: (statistics.median(values), max(values)) for name, values in measured.items()}, [],
    )  # fmt: skip
    figures.missed.extend(_missed(figures, kind.limits))
    return figures


def _missed(figures: Figures, limits: Limits) -> list[str]:
    compared = [
        ("outage, median", figures.median_ms, limits.median_ms, "ms"),
        ("outage, worst", figures.worst_ms, limits.worst_ms, "ms"),
        ("lost, median", figures.median_lost, limits.median_lost, ""),
        ("lost, worst", figures.worst_lost, limits.worst_lost, ""),
        ("lost by others", figures.others_lost, limits.others_lost, ""),
        *((name, figures.measured.get(name, (0, 0))[1], limit, "") for name, limit in limits.measured.items()),
    ]  # fmt: skip
    return [
        f"{name}: {value:.0f}, limit {limit:.0f} {unit}".rstrip()
        for name, value, limit, unit in compared
        if limit is not None and value > limit
    ]


def as_json(run: Run) -> dict[str, Any]:
    """Returns the whole run, for programs."""
    progress = run.progress
    return {
        "seed": run.seed,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(progress.begun)),
        "seconds": round(progress.ends - progress.begun, 1),
        "sound": run.sound,
        "invariants": [asdict(check) for check in run.checks],
        "violations": run.violations + progress.broken,
        "waited_for_a_processor": run.waited,
        "slots_carrying_traffic": run.carrying,
        "slots_carrying_traffic_besides_dark_faults": run.carrying_else,
        "slot_s": SLOT,
        "kinds": [asdict(figures) for figures in run.figures()],
        "skipped": progress.skipped,
        "wireguard_go": {name: [asdict(each) for each in outcomes] for name, outcomes in run.reference.items()},
        "faults": [asdict(outcome) for outcome in progress.done],
        "held": {"before": asdict(run.held[0]), "after": asdict(run.held[1])},
        "numbers": run.numbers,
    }


def write_json(run: Run, folder: Path) -> Path:
    """Writes report.json. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(as_json(run), indent=1) + "\n")
    return path
