"""Every counter has a meaning, and every meaning a counter: the source is read for the names it counts under."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from stagewire.control.telemetry import Counters
from stagewire.reasons import Reasons
from stagewire.stats import COUNTERS, DROP, FAILURE, REPAIR, TRAFFIC, Kind, kind_of
from status_service.tally import Tally

ROOT = Path(__file__).parents[1]
DICTIONARIES = {"counters", "drops", "failures", "_drops"}
"""What a dictionary of counters is called."""
REASONS = {
    "BadMessage",
    "BadTrain",
    "BadControl",
    "SendQueue",
    "PutBack",
    "_refuse",
    "_drop",
    "give_up",
    "_count_for",
    "note",
    "note_stranger",
    "_drop_oldest",
    "open_untrusted",
    "require_newer",
}
"""What takes the name of the counter that it adds to."""


WITHOUT_EXAMPLE = {"BadTrain", "BadControl", "PutBack"}
"""Which of these know no address and no size."""


def sources() -> list[Path]:
    every = (path for root in ("services", "shared") for path in (ROOT / root).rglob("*.py"))
    return sorted(path for path in every if "stagewire_cli" not in path.parts)  # it shows, and counts nothing


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
        if isinstance(node, ast.Subscript) and named(node.value) in DICTIONARIES:
            key = node.slice  # it may be "this" if ... else "that"
            for each in (key.body, key.orelse) if isinstance(key, ast.IfExp) else (key,):
                found.update(strings(each))
        elif isinstance(node, ast.Call) and named(node.func) in REASONS:
            for argument in node.args:
                found.update(strings(argument))
    return found


def without_example(tree: ast.AST) -> set[str]:
    """The names of drops and failures that a module counts, somewhere, without an address or a size."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign):
            found |= counted(node.target)
        elif isinstance(node, ast.Call) and (name := named(node.func)) in REASONS:
            told = {each.arg for each in node.keywords}
            if (
                name in WITHOUT_EXAMPLE
                or (name, told & {"place", "size"}) == ("note", set())
                or (name == "SendQueue" and "count" not in told)
            ):
                found |= counted(node)
    return {each for each in found if kind_of(each) in (DROP, FAILURE)}


@cache
def modules() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in sources()]


@cache
def used() -> set[str]:
    return {name for tree in modules() for name in counted(tree)}


def test_the_source_was_understood() -> None:
    assert {
        "datagrams_in",
        "bad_type",
        "too_short",
        "no_peer",
        "worker_full",
        "train_too_old",
        "unknown_peer",
    } <= used()


def test_every_counter_has_a_meaning() -> None:
    assert sorted(used() - set(COUNTERS)) == []


def test_every_meaning_has_a_counter() -> None:
    assert sorted(set(COUNTERS) - used()) == []


@pytest.mark.parametrize("name", COUNTERS)
def test_names_and_meanings_have_one_form(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    meaning = COUNTERS[name].meaning
    assert "\n" not in meaning
    assert not meaning.endswith(".")
    assert meaning[0].islower()


@pytest.mark.parametrize("name", COUNTERS)
def test_what_to_do_is_said_for_what_went_wrong_and_for_nothing_else(name: str) -> None:
    mend = COUNTERS[name].mend
    assert bool(mend) == (COUNTERS[name].kind in (DROP, FAILURE))
    assert not mend.endswith(".")
    assert mend[:1] == mend[:1].lower()


def test_every_drop_and_failure_has_an_example_or_the_list_says_why_not() -> None:
    # Trains that are too old have examples: the stages look into them.
    bare = {name for tree in modules() for name in without_example(tree)} - {"train_too_old"}
    assert {"handshake_overflow", "train_malformed", "control_full"} <= bare
    assert sorted(bare) == sorted(name for name in COUNTERS if COUNTERS[name].no_example)


@pytest.mark.parametrize("name", [name for name in COUNTERS if COUNTERS[name].kind in (DROP, FAILURE)])
def test_every_drop_and_failure_is_told_with_its_time_however_it_was_counted(name: str) -> None:
    reasons, tally = Reasons(), Tally()
    for now in (5.0, 9.0):
        reasons[name] += 2
        reasons["datagrams_in"] += 1
        tally.take(Counters("conn", 0, 1, 7, tuple(reasons), tuple(reasons.values()), reasons.take_changed()), now)
    [told] = tally.status(10.0).reasons
    assert (told.reason, told.count, told.s_ago) == (name, 4, 1.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("datagrams_out", TRAFFIC),
        ("runs_in_pieces", TRAFFIC),
        ("bad_mac1", DROP),
        ("control_unexpected", DROP),
        ("gave_up", FAILURE),
        ("handshake_gave_up", DROP),
        ("put_back_route", REPAIR),
        ("of_a_version_to_come", DROP),
    ],
)
def test_a_counter_has_a_kind(name: str, kind: Kind) -> None:
    assert kind_of(name) is kind
