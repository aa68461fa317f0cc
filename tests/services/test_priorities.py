"""Programs start with a low priority beside stages at work, and with the usual one while a place is empty."""

import os
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lab.wait import until
from stagewire_cli.priorities import NICE, READY_WITHIN, Priorities

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives priorities back")

LONG_AGO = -2 * READY_WITHIN
LOW = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


class Group:
    """One of supervisord's groups, with real processes of a low priority."""

    def __init__(self, name: str) -> None:
        self.config = SimpleNamespace(name=name)
        self.processes: dict[str, Any] = {}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, since: float) -> Any:
        child = subprocess.Popen(["nice", "-n", "10", "sleep", "60"])
        self._started.append(child)
        until(lambda: os.getpriority(os.PRIO_PROCESS, child.pid) == LOW, 5, "the low priority")
        name = f"{self.config.name}_{len(self.processes):02d}"
        config = SimpleNamespace(command="key-service", name=name)
        self.processes[name] = process = SimpleNamespace(
            group=self, pid=child.pid, laststart=time.time() + since, config=config
        )
        return process

    def commands(self) -> list[str]:
        return [process.config.command for process in self.processes.values()]

    def close(self) -> None:
        for child in self._started:
            child.kill()
            child.wait()


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group("key-service")
    yield made
    made.close()


def priorities(group: Group, places: int = 1) -> Priorities:
    return Priorities(SimpleNamespace(process_groups={"key-service": group}), lambda _name: places)


def ends(process: Any, of: Priorities) -> None:
    of.on_exit(SimpleNamespace(process=process))
    process.pid = 0  # as supervisord does afterwards


def test_beside_a_spare_the_next_process_leaves_the_processors_to_others(group: Group) -> None:
    holder, spare = group.start(LONG_AGO), group.start(LONG_AGO)
    found = priorities(group)
    found.be_nice(True)
    ends(holder, found)
    assert group.commands() == [f"{NICE}key-service"] * 2
    assert not found.in_haste
    assert os.getpriority(os.PRIO_PROCESS, spare.pid) == LOW


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_when_both_die_the_next_alone_has_the_usual_priority(group: Group, order: tuple[int, int]) -> None:
    both = [group.start(LONG_AGO), group.start(LONG_AGO)]
    found = priorities(group)
    found.be_nice(True)
    first, second = (both[each] for each in order)
    ends(first, found)
    started = group.start(0)  # supervisord has started it before it saw the second death
    first.pid, first.laststart = started.pid, started.laststart
    del group.processes[started.config.name]
    ends(second, found)
    assert found.in_haste
    assert os.getpriority(os.PRIO_PROCESS, first.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert (first.config.command, second.config.command) == ("key-service", f"{NICE}key-service")
    found.be_nice(True)  # all are at work again
    assert group.commands() == [f"{NICE}key-service"] * 2


def test_two_of_three_workers_are_too_many(group: Group) -> None:
    workers = [group.start(LONG_AGO) for _ in range(3)]
    found = priorities(group, places=2)
    found.be_nice(True)
    ends(workers[0], found)
    assert group.commands().count("key-service") == 0
    ends(workers[1], found)
    assert group.commands().count("key-service") == 1


def test_in_a_fresh_start_there_is_nobody_to_leave_processors_to(group: Group) -> None:
    only = group.start(LONG_AGO)
    found = priorities(group)
    found.be_nice(False)
    ends(only, found)
    assert not found.in_haste
