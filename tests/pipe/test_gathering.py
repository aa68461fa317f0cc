"""Trains gather before a stage that carries much, and a lone packet never waits for that."""

import os
import subprocess
import sys

import pytest
from tests.pipe.pipe import Bench

from stagewire.loop import INTERVAL, MUCH, Gathering, boot_time

NOW = 1000.0


def begun() -> tuple[Gathering, list[bool]]:
    said: list[bool] = []
    gathering = Gathering()
    gathering.begin(said.append, NOW)
    return gathering, said


def test_it_begins_with_much_and_ends_with_little() -> None:
    gathering, said = begun()
    for carried, much in ((0.99, False), (1.01, True), (2, True), (0.99, False), (0, False)):
        assert gathering.due > NOW
        gathering.carried += int(carried * MUCH * INTERVAL)
        gathering.look(gathering.due)
        assert said.pop() == much


@pytest.mark.parametrize("waited", [1.5, 10.0, 5000.0])
def test_it_counts_by_the_time_that_has_passed(waited: float) -> None:
    gathering, said = begun()
    gathering.carried += int(MUCH * INTERVAL * waited * 0.99)
    gathering.look(NOW + INTERVAL * waited)
    assert said == [False]
    gathering.carried += int(MUCH * INTERVAL * waited * 1.01)
    gathering.look(NOW + 2 * INTERVAL * waited)
    assert said == [False, True]


def test_before_it_begins_nobody_is_told_and_nothing_counts() -> None:
    gathering = Gathering()
    assert gathering.due > NOW + 1e9
    gathering.carried = 10 * MUCH
    said: list[bool] = []
    gathering.begin(said.append, NOW)
    assert said == []
    gathering.look(gathering.due)
    assert said == [False]


@pytest.mark.parametrize("size", [100, 62_000], ids=["through the socket", "in memory"])
def test_both_ends_of_a_pipe_count_what_goes_through(bench: Bench, size: int) -> None:
    reader, sender = bench.connected()
    before = bench.loop.gathering.carried
    bench.send(sender, bytes(size))
    bench.turn(lambda: len(reader.trains) > 1, "the train")
    assert bench.loop.gathering.carried == before + 2 * size


def test_a_loop_looks_when_it_is_due(bench: Bench) -> None:
    said: list[bool] = []
    gathering = bench.loop.gathering
    gathering.begin(said.append, boot_time())
    gathering.carried += 100 * MUCH
    bench.turn(lambda: said, "the loop to look")
    bench.turn(lambda: len(said) > 1, "the loop to look again")
    assert said[:2] == [True, False]


def test_the_scheduler_is_told_of_this_thread() -> None:
    program = """
import os
from stagewire.linux import privileges
for gather in (True, False, True):
    privileges.let_trains_gather(gather)
    print(os.sched_getscheduler(0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert [int(sender) for sender in done.stdout.split()] == [os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH]


def test_who_went_first_does_so_no_more() -> None:
    if os.geteuid():
        pytest.skip("only root may claim a processor")
    program = """
import os
from stagewire.linux import privileges
privileges.go_first()
print(os.sched_getscheduler(0))
privileges.stop_going_first()
print(os.sched_getscheduler(0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert [int(sender) for sender in done.stdout.split()] == [os.SCHED_RR, os.SCHED_OTHER]
