"""Computes medians, spreads and ratios within a round from samples. Pure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds one run of one scenario by one contestant. `rows` tells the units of `values`."""

    scenario: str
    contestant: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Lists of figures: quantiles of a distribution, the throughput of each second."""
    error: str = ""
    """Why there are no values."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Summary:
    """Holds the median of some runs and their extremes."""

    median: float
    low: float
    high: float
    runs: int

    @property
    def spread(self) -> float:
        """Returns half the distance between the extremes, as a part of the median."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def summarise(values: Iterable[float]) -> Summary | None:
    """Summarises the finite values; returns None if there are none."""
    numbers = sorted(value for value in values if math.isfinite(value))
    if not numbers:
        return None
    return Summary(statistics.median(numbers), numbers[0], numbers[-1], len(numbers))


def quantile(ordered: Sequence[float], part: float) -> float:
    """Returns the value below which `part` (0 to 1) of the values lie, interpolated. Raises ValueError for none."""
    if not ordered:
        raise ValueError("no values")
    place = part * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def quantiles(values: Iterable[float], count: int = 200) -> list[float]:
    """Returns `count` + 1 quantiles at equal distances, from the least value to the greatest; empty for none."""
    ordered = sorted(values)
    return [quantile(ordered, step / count) for step in range(count + 1)] if ordered else []


def steadiness(intervals: Sequence[float]) -> float:
    """Returns the slowest interval as a part of the median one, or nan if there are fewer than two."""
    if len(intervals) < 2:
        return math.nan
    middle = statistics.median(intervals)
    return min(intervals) / middle if middle else 0.0


class Results:
    """Holds all samples so far."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self.samples = list(samples)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def of(self, scenario: str, contestant: str) -> list[Sample]:
        """Returns a contestant's samples in a scenario, by round."""
        chosen = (each for each in self.samples if (each.scenario, each.contestant) == (scenario, contestant))
        return sorted(chosen, key=lambda sample: sample.round)

    def values(self, scenario: str, contestant: str, value: str) -> dict[int, float]:
        """Returns one value by round."""
        return {each.round: each.values[value] for each in self.of(scenario, contestant) if value in each.values}

    def summary(self, scenario: str, contestant: str, value: str) -> Summary | None:
        """Summarises one value over the rounds."""
        return summarise(self.values(scenario, contestant, value).values())

    def ratio(self, scenario: str, ours: str, theirs: str, value: str) -> Summary | None:
        """Summarises the ratios of two contestants' values within each round: between rounds the machine changes."""
        mine, other = self.values(scenario, ours, value), self.values(scenario, theirs, value)
        return summarise(mine[number] / other[number] for number in mine if other.get(number))

    def curve(self, scenario: str, contestant: str, name: str) -> list[float]:
        """Returns a curve, each point the median over the rounds."""
        curves = [each.curves[name] for each in self.of(scenario, contestant) if each.curves.get(name)]
        return [statistics.median(points) for points in zip(*curves, strict=False)]

    def contestants(self, scenario: str) -> list[str]:
        """Lists the contestants with a successful run, in the order of their first runs."""
        return list(
            dict.fromkeys(each.contestant for each in self.samples if each.scenario == scenario and each.values)
        )

    def scenarios(self) -> list[str]:
        """Lists the scenarios in the order of their first runs."""
        return list(dict.fromkeys(each.scenario for each in self.samples))
