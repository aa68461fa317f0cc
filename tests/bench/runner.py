"""Runs scenarios round by round: the contestants take turns, another one first each time.

Only runs that follow one another closely on one machine can be compared.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tests.bench.contestants import Contestant
from tests.bench.rows import brief
from tests.bench.samples import Results, Sample
from tests.bench.tcp import Values

EXPECTED: Final = (AssertionError, RuntimeError, OSError, subprocess.SubprocessError, json.JSONDecodeError)
"""Errors by which the lab and the programs report a failed run. Any other error is a bug of the benchmark's."""


C = TypeVar("C", bound=Contestant)


@dataclass(frozen=True, slots=True)
class Scenario(Generic[C]):
    """Describes something that each contestant does once a round. `seconds` is its approximate time."""

    key: str
    title: str
    seconds: float
    measure: Callable[[C], Values]
    only: frozenset[str] | None = None
    """The contestants that take part; None for all."""

    def takes(self, name: str) -> bool:
        """Tells whether a contestant takes part."""
        return self.only is None or name in self.only


@dataclass(frozen=True, slots=True)
class Group(Generic[C]):
    """Holds scenarios whose contestants are brought up together. `seconds` covers that and the end."""

    key: str
    title: str
    names: Sequence[str]
    contestants: Callable[[], AbstractContextManager[Sequence[C]]]
    scenarios: Sequence[Scenario[C]]
    rounds: int
    seconds: float = 8.0

    def total(self) -> float:
        """Returns the approximate time in s."""
        runs = (each.seconds * sum(map(each.takes, self.names)) for each in self.scenarios)
        return self.seconds + self.rounds * sum(runs)


class Runner:
    """Runs groups, collects samples, shows progress."""

    def __init__(self, console: Console, results: Results) -> None:
        self._console, self._results = console, results
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("of about"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def run(self, groups: Sequence[Group[Any]]) -> None:
        """Runs all groups. It shows failures, and adds them to the results."""
        total = sum(group.total() for group in groups)
        with self._progress:
            self._task = self._progress.add_task("", total=total)
            for group in groups:
                self._group(group)

    def _group(self, group: Group[C]) -> None:
        self._progress.update(self._task, description=f"{group.title}: setting up")
        self._console.rule(group.title, align="left", style="dim")
        done = 0.0
        try:
            with group.contestants() as contestants:
                self._progress.advance(self._task, group.seconds)
                done = group.seconds
                for contestant in contestants:
                    contestant.rest()
                for number in range(group.rounds):
                    for scenario in group.scenarios:
                        taking = [each for each in contestants if scenario.takes(each.name)]
                        # Another one comes first each time: a heavy one may leave a warmer machine to the next.
                        turn = number % max(1, len(taking))
                        for contestant in taking[turn:] + taking[:turn]:
                            self._one(group, scenario, contestant, number)
                            done += scenario.seconds
        except EXPECTED as error:
            self._console.print(f"[red]{escape(group.title)}: {escape(_words(error))}[/]")
            self._results.add(Sample(group.key, "", 0, error=_words(error)))
        self._progress.advance(self._task, max(0.0, group.total() - done))

    def _one(self, group: Group[C], scenario: Scenario[C], contestant: C, number: int) -> None:
        what = f"round {number + 1} of {group.rounds}  {scenario.title:<34} {contestant.name:<22}"
        self._progress.update(self._task, description=what)
        begun = time.monotonic()
        try:
            contestant.wake()
            try:
                values, curves = scenario.measure(contestant)
            finally:
                contestant.rest()
            sample = Sample(scenario.key, contestant.name, number, values, curves)
            said = brief(values)
        except EXPECTED as error:
            sample = Sample(scenario.key, contestant.name, number, error=_words(error))
            said = f"[red]{escape(sample.error)}[/]"
        self._results.add(sample)
        self._console.print(f"{what} {said}  [dim]{time.monotonic() - begun:.1f} s[/]", highlight=False)
        self._progress.advance(self._task, scenario.seconds)


def _words(error: BaseException) -> str:
    words = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
    # The lab's errors begin with the cause, and tracebacks end with it.
    return words if len(words) <= 300 else f"{words[:120]} … {words[-180:]}"
