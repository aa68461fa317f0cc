"""Marks the tests of the attack suite, and gives them seeded chance and a place for their figures.

@pytest.mark.attack("M9")         this test belongs to a line of `attack.lines`
@pytest.mark.long                 `make attack` alone runs it
def test_…(luck, figure):         a seeded random.Random; figure("goodput", 0.998, "of 1", least=0.99)
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import pytest
from tests.attack.lines import FIGURE, LINE, LINES, ONLY, SEED


class Figure(Protocol):
    """Notes a figure for the report, and fails the test beyond a limit."""

    def __call__(
        self, name: str, value: float, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None: ...


@pytest.fixture
def luck(request: pytest.FixtureRequest) -> random.Random:
    """Chance of this test alone, the same for the same seed."""
    return random.Random(f"{os.environ.get(SEED, '0')} {request.node.nodeid}")


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """What a test measured."""

    def note(name: str, value: float, unit: str = "", *, least: float | None = None, most: float | None = None) -> None:
        record_property(FIGURE, [name, value, unit, least, most])
        assert least is None or value >= least, f"{name}: {value:g} {unit}, at least {least:g}"
        assert most is None or value <= most, f"{name}: {value:g} {unit}, at most {most:g}"

    return note


def lines_of(item: pytest.Item) -> list[str]:
    """Returns the lines of a test, in no order."""
    return [line for mark in item.iter_markers(LINE) for line in mark.args]


def _named_elsewhere() -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for name, line in LINES.items():
        for test in line.tests:
            named.setdefault(test, []).append(name)
    return named


def _where(item: pytest.Item) -> str:
    file, _, function = item.nodeid.partition("::")
    return f"{file.removeprefix('tests/')}::{function.partition('[')[0]}"


def _mark(items: Iterable[pytest.Item]) -> Iterator[tuple[pytest.Item, list[str]]]:
    named = _named_elsewhere()
    for item in items:
        for line in named.get(_where(item), ()):
            item.add_marker(pytest.mark.attack(line))
        found = lines_of(item)
        if unknown := set(found) - LINES.keys():
            raise pytest.UsageError(f"{item.nodeid}: tests/attack/lines.py has no {', '.join(sorted(unknown))}")
        for line in found:
            item.user_properties.append((LINE, line))
        yield item, found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests that a line names. Leaves only those of the lines that the environment names, if it names any."""
    only = set(os.environ.get(ONLY, "").split())
    marked = list(_mark(items))
    if only:
        items[:] = [item for item, lines in marked if only.intersection(lines)]
        config.hook.pytest_deselected(items=[item for item, lines in marked if not only.intersection(lines)])
