"""A signal hits the process that is meant; its end is waited for by its descriptor."""

import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewire.process import signals


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    made = subprocess.Popen(["sleep", "60"])
    yield made
    made.kill()
    made.wait()


def test_a_process_that_is_meant_is_ended_and_waited_for(process: "subprocess.Popen[bytes]") -> None:
    opened = signals.opened(process.pid, lambda pid: pid == process.pid)
    assert opened is not None
    assert not signals.wait([opened], 0)
    assert signals.send(process.pid, signal.SIGKILL, lambda _pid: True)
    assert signals.wait([opened], 10)
    assert process.wait() == -signal.SIGKILL
    assert not signals.send(process.pid, signal.SIGKILL, lambda _pid: True)
    os.close(opened)


def test_one_that_is_another_by_now_is_left_alone(process: "subprocess.Popen[bytes]") -> None:
    gc.collect()  # earlier tests leave descriptors to it
    before = len([*Path("/proc/self/fd").iterdir()])
    assert signals.opened(process.pid, lambda _pid: False) is None
    assert not signals.send(process.pid, signal.SIGKILL, lambda _pid: False)
    assert process.poll() is None
    assert len([*Path("/proc/self/fd").iterdir()]) == before
