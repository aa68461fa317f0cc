"""Tests which faults a run has, and how it sums up their figures."""

import random
import time
from collections import Counter
from itertools import islice

import pytest
from tests.chaos import catalogue
from tests.chaos.drive import Outcome
from tests.chaos.house import Limits
from tests.chaos.report import summed_up
from tests.chaos.schedule import rounds, short, soak


def outcome(kind: str, outage: float, lost: int = 0, **measured: float) -> Outcome:
    return Outcome(kind, 1, 0.0, 1.0, "", outage, 0.0, outage, 0.0, lost, 0, {}, 0.0, 0.0, 0.0, measured, [])


def test_names_are_unique_and_can_be_asked_for() -> None:
    names = [kind.name for kind in catalogue.KINDS]
    assert len(set(names)) == len(names)
    assert [kind.name for kind in catalogue.kinds("scale,kill-tun")] == ["scale", "kill-tun"]
    assert catalogue.kinds("") == []
    with pytest.raises(ValueError, match="no such kind of fault: nonsense"):
        catalogue.kinds("kill-tun,nonsense")


def test_rounds_have_every_kind_equally_often() -> None:
    drawn = [kind.name for kind, _ in rounds(catalogue.KINDS, 3, random.Random(1))]
    assert set(Counter(drawn).values()) == {3}


def test_a_short_run_has_the_main_kinds_twice_whatever_the_time() -> None:
    drawn = Counter(kind.name for kind, _ in short(catalogue.KINDS, 2, time.monotonic() - 1, random.Random(1)))
    assert drawn == {kind.name: 2 for kind in catalogue.KINDS if kind.short}
    drawn = Counter(kind.name for kind, _ in short(catalogue.KINDS, 2, time.monotonic() + 60, random.Random(1)))
    assert set(drawn) == {kind.name for kind in catalogue.KINDS}


def test_a_soak_ends() -> None:
    assert list(soak(catalogue.KINDS, time.monotonic() - 1, 5.0, random.Random(1))) == []


def test_a_soak_has_lasting_kinds_once_in_a_while_and_all_others_equally_often() -> None:
    kinds = catalogue.kinds("kill-tun,kill-conn,scale,rolling")
    plan = soak(kinds, time.monotonic() + 60, 0.0, random.Random(1))
    drawn = Counter(kind.name for kind, _ in islice(plan, 2 * (4 * 2 + 2)))
    assert drawn == {"kill-tun": 8, "kill-conn": 8, "scale": 2, "rolling": 2}


def test_figures_are_medians_and_worst_cases() -> None:
    (kind,) = catalogue.kinds("kill-tun")
    figures = summed_up(
        kind, [outcome("kill-tun", 0.004, 1), outcome("kill-tun", 0.060, 20), outcome("kill-tun", 0.008, 0)]
    )
    assert (figures.median_ms, figures.worst_ms, figures.median_lost, figures.worst_lost) == (8, 60, 1, 20)
    assert kind.limits == Limits(median_ms=10, worst_ms=50, median_lost=1, worst_lost=300)
    assert figures.missed == ["outage, worst: 60, limit 50 ms"]


def test_further_figures_have_limits_too() -> None:
    (kind,) = catalogue.kinds("kill-key")
    assert summed_up(kind, [outcome("kill-key", 0.0, new_handshake_ms=150)]).missed == []
    assert summed_up(kind, [outcome("kill-key", 0.0, new_handshake_ms=250)]).missed == [
        "new_handshake_ms: 250, limit 200"
    ]
