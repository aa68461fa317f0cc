"""One process a slot."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from lab.wait import until
from stagewire.process import slots

HOLDER = """
import sys, time
from pathlib import Path
from stagewire import logs
from stagewire.deadlines import Every
from stagewire.loop import Loop
from stagewire.process.spare import Spare
log = logs.set_up("test", "info")
slot, _ = Spare(Path(sys.argv[1]), "test", lambda: (int(sys.argv[2]),), lambda _: 0, log).wait()
print("begun", flush=True)
Loop(slot.beat).run()
"""


class Contender:
    def __init__(self, folder: Path, number: int = 0) -> None:
        (folder / "test").mkdir(exist_ok=True)
        self.output = folder / f"output.{os.urandom(4).hex()}"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), str(number)], stdout=file)

    def says(self, what: str) -> bool:
        return what in self.output.read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_second_waits_until_the_first_is_dead(tmp_path: Path, stopped: bool) -> None:
    first = Contender(tmp_path)
    until(lambda: first.says("begun"), 10, "the first to be at work")
    if stopped:  # hung, but alive: what it holds is still its own
        first.process.send_signal(signal.SIGSTOP)
    second = Contender(tmp_path)
    try:
        until(lambda: second.says("waits"), 10, "the second to wait")
        assert not second.says("begun")
        first.kill()
        until(lambda: second.says("begun"), 10, "the second to take over")
    finally:
        first.kill()
        second.kill()


def test_holders_are_known_by_what_they_hold(tmp_path: Path) -> None:
    assert slots.held(tmp_path) == {}
    first = Contender(tmp_path)
    try:
        until(lambda: first.says("begun"), 10, "the first to be at work")
        second = Contender(tmp_path)
        try:
            until(lambda: second.says("waits"), 10, "the second to wait")
            assert slots.held(tmp_path) == {("test", 0): first.process.pid}
            assert slots.contenders(tmp_path) == sorted([first.process.pid, second.process.pid])
        finally:
            second.kill()
    finally:
        first.kill()
    assert slots.held(tmp_path) == {}


def test_other_numbers_are_other_slots(tmp_path: Path) -> None:
    contenders = [Contender(tmp_path, number) for number in range(3)]
    try:
        for contender in contenders:
            until(partial(contender.says, "begun"), 10, "each to be at work")
            assert not contender.says("waits")
    finally:
        for contender in contenders:
            contender.kill()
