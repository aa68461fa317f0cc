"""Every counter has a meaning, and every meaning a counter: the source is read for the names it counts under."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewire.stats import MEANINGS

ROOT = Path(__file__).parents[1]
COUNTERS = {"counters", "drops", "failures", "_drops"}
"""What a dictionary of counters is called."""
REASONS = {"BadMessage", "BadTrain", "BadControl", "Outlet", "_refuse", "_drop_oldest", "open_untrusted"}
"""What takes the name of the counter that it adds to."""


def sources() -> list[Path]:
    every = (path for root in ("services", "shared") for path in (ROOT / root).rglob("*.py"))
    return sorted(path for path in every if path.parent.name != "stagewire_cli")  # it shows, and counts nothing


def named(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def strings(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def counted(tree: ast.AST) -> set[str]:
    """The names of counters in a module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and named(node.value) in COUNTERS:
            key = node.slice  # it may be "this" if ... else "that"
            for each in (key.body, key.orelse) if isinstance(key, ast.IfExp) else (key,):
                found.update(strings(each))
        elif isinstance(node, ast.Call) and named(node.func) in REASONS:
            for argument in node.args:
                found.update(strings(argument))
    return found


USED = {name for path in sources() for name in counted(ast.parse(path.read_text()))}


def test_the_source_was_understood() -> None:
    assert {"datagrams_in", "bad_type", "too_short", "no_peer", "worker_full", "train_too_old", "unknown_peer"} <= USED


def test_every_counter_has_a_meaning() -> None:
    assert sorted(USED - set(MEANINGS)) == []


def test_every_meaning_has_a_counter() -> None:
    assert sorted(set(MEANINGS) - USED) == []


@pytest.mark.parametrize("name", MEANINGS)
def test_names_and_meanings_have_one_form(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    meaning = MEANINGS[name]
    assert "\n" not in meaning
    assert not meaning.endswith(".")
    assert meaning[0].islower()
