"""Samples of how long trains wait: which count they join, how often they are taken, and what a bad train does."""

import math
import struct

import pytest

from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.waits import BOUNDS, INTERVAL, Waits


def train(born: float) -> tuple[bytes, int, int]:
    packed = b"before" + trains.pack_plain([b"packet"], born)
    return packed, 6, len(packed)


@pytest.mark.parametrize(("age", "at_least"), [(0.0, 0.0), (0.02, 0.01), (0.2, 0.1), (9.0, BOUNDS[-1])])
def test_a_sample_joins_the_count_of_its_duration(age: float, at_least: float) -> None:
    waits = Waits()
    waits.note(train(boot_time() - age))
    [counted] = [position for position, count in enumerate(waits.counts) if count]
    assert counted >= (BOUNDS.index(at_least) + 1 if at_least else 0)  # later, if this machine is slow
    assert waits.total >= age


def test_the_next_sample_is_due_after_the_interval() -> None:
    waits = Waits()
    before = boot_time()
    assert before >= waits.due
    waits.note(train(before))
    assert before + INTERVAL <= waits.due <= boot_time() + INTERVAL


@pytest.mark.parametrize("stamp", [math.nan, math.inf, -math.inf, 1e300])
def test_a_stamp_that_is_no_time_is_not_counted(stamp: float) -> None:
    waits = Waits()
    waits.note(train(stamp))
    waits.note((b"short", 0, 5))
    waits.note((struct.pack("<BBBxId", 2, 1, 0, 1, 0.0), 1, 16))
    assert (sum(waits.counts), waits.total) == (0, 0.0)


@pytest.mark.parametrize("age", [61.0, 1e9, 1.5e308])
def test_a_false_time_does_not_spoil_the_sum(age: float) -> None:
    waits = Waits()
    for _ in range(3):
        waits.note(train(boot_time() - age))
    assert (waits.total, sum(waits.counts)) == (0.0, 0)
