"""Follows pytest through the suite: which line is under attack, what it showed, what each figure was."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

import pytest
from tests.attack.lines import FIGURE, LINE, LINES

State = Literal["waits", "runs", "held", "broke", "skipped", "no test"]
_OUTCOMES: Final[dict[str, State]] = {"passed": "held", "failed": "broke", "skipped": "skipped"}


@dataclass(slots=True)
class Shown:
    """Holds what one test showed."""

    test: str
    lines: list[str]
    outcome: State
    seconds: float
    figures: list[str] = field(default_factory=list)
    why: str = ""


def told(name: str, value: float, unit: str, least: float | None, most: float | None) -> str:
    """Writes a figure with its limit."""
    limit = f", at least {least:g}" if least is not None else f", at most {most:g}" if most is not None else ""
    return f"{name} {value:.4g} {unit}".rstrip() + limit


class Suite:
    """Listens to pytest, as a plugin of its main process."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.shown: list[Shown] = []
        self.running: dict[str, float] = {}
        """When each test that runs began, on the monotonic clock."""
        self.planned = 0
        self.trouble: list[str] = []
        """What went wrong outside of a test."""
        self._parts: dict[str, list[pytest.TestReport]] = {}
        self._lines: Counter[str] = Counter()
        self._ends: Counter[tuple[str, State]] = Counter()

    def state(self, line: str) -> State:
        """Returns what is known of a line."""
        for state in ("broke", "held", "skipped"):
            if self._ends[line, state]:
                return state
        return "waits"

    @property
    def sound(self) -> bool:
        """Tells whether every test held."""
        return not self.trouble and all(shown.outcome != "broke" for shown in self.shown)

    def of(self, line: str) -> list[Shown]:
        """Returns what the tests of a line showed."""
        return [shown for shown in self.shown if line in shown.lines]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notes a file that can't be read."""
        if report.failed:
            self.trouble.append(f"{report.nodeid}: {report.longreprtext.strip().splitlines()[-1]}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.planned = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collects the parts of a test."""
        self._parts.setdefault(report.nodeid, []).append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Concludes a test."""
        self.running.pop(nodeid, None)
        parts = self._parts.pop(nodeid, [])
        if not parts:
            return
        worst = next((part for part in parts if part.failed), None) or next(
            (part for part in parts if part.skipped), parts[0]
        )
        figures: list[str] = []
        lines: list[str] = []
        for name, value in parts[-1].user_properties:
            if name == FIGURE:
                figures.append(told(*value))  # type: ignore[misc] # a list of these five
            elif name == LINE:
                lines.append(str(value))
        shown = Shown(
            nodeid.removeprefix("tests/"), sorted(set(lines)), _OUTCOMES[worst.outcome],
            sum(part.duration for part in parts), figures, _why(worst),
        )  # fmt: skip
        self.shown.append(shown)
        for line in shown.lines:
            self._ends[line, shown.outcome] += 1

    def missing(self) -> list[str]:
        """Returns the lines that no test tries."""
        return [line for line in LINES if not self.of(line)]


def _why(report: pytest.TestReport) -> str:
    if report.passed:
        return ""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longrepr)).strip().splitlines()[0]
