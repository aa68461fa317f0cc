"""Idle priority for those that start beside one at work, and for no others, nor for long."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagewire.environment import Environment
from stagewire.ipc.slots import Slot
from stagewire_cli import patience
from stagewire_cli.patience import Patience

GROUP = "tun-service"


class House:
    """A group of one process, as supervisord has it."""

    def __init__(self, folder: Path) -> None:
        self.environment = Environment.read({"STAGEWIRE_RUN_DIR": str(folder)})
        self.environment.run.mkdir()
        self.children: list[subprocess.Popen[bytes]] = []
        self.process: Any = SimpleNamespace(spawn=self._spawn)
        self.patience = Patience(self.environment)
        self.patience.teach({GROUP: SimpleNamespace(processes={"one": self.process})})

    def _spawn(self) -> int:
        self.children.append(subprocess.Popen(["sleep", "60"]))
        return self.children[-1].pid

    def policy(self) -> int:
        return os.sched_getscheduler(self.children[-1].pid)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    for child in made.children:
        child.kill()
        child.wait()


@pytest.fixture
def held(house: House) -> Iterator[None]:
    slot = Slot(house.environment.run, "tun", 0)
    assert slot.take(0.0)
    yield
    slot.close()


def test_who_is_needed_starts_as_usual(house: House) -> None:
    house.process.spawn()
    assert house.policy() == os.SCHED_OTHER


@pytest.mark.usefixtures("held")
def test_who_starts_beside_one_at_work_gives_way_until_another_of_its_group_ends(house: House) -> None:
    house.process.spawn()
    assert house.policy() == os.SCHED_IDLE
    house.patience.end()
    house.patience.end("key-service")
    assert house.policy() == os.SCHED_IDLE
    house.patience.end(GROUP)
    assert house.policy() == os.SCHED_OTHER


@pytest.mark.usefixtures("held")
def test_it_does_not_give_way_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.process.spawn()
    later = time.monotonic() + patience.PATIENCE
    monkeypatch.setattr("stagewire_cli.patience.time", SimpleNamespace(monotonic=lambda: later))
    house.patience.end()
    assert house.policy() == os.SCHED_OTHER


@pytest.mark.usefixtures("held")
def test_one_that_has_ended_is_forgotten(house: House) -> None:
    house.process.spawn()
    house.children[-1].kill()
    house.children[-1].wait()
    house.patience.end(GROUP)
