"""Threads that have nothing open, and are told nothing."""

import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.wait import until

PROGRAM = """
import fcntl, os, signal, sys
from stagewire.process import fd_release
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.signal(signal.SIGHUP, lambda *_: fd_release.dismiss())
fd_release.appoint()
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        try:
            yield started
        finally:
            started.kill()


def _others(process: subprocess.Popen[str]) -> list[Path]:
    tasks = Path(f"/proc/{process.pid}/task")
    return [task for task in tasks.iterdir() if task.name != str(process.pid)]


def _settled(process: subprocess.Popen[str]) -> bool:
    others = _others(process)
    return len(others) >= 1 and all(not list((task / "fd").iterdir()) for task in others)


def test_they_have_nothing_open_and_run_when_nobody_else_does(process: subprocess.Popen[str]) -> None:
    until(lambda: _settled(process), 5, "threads without descriptors")
    assert {os.sched_getscheduler(int(task.name)) for task in _others(process)} == {os.SCHED_IDLE}
    assert list(Path(f"/proc/{process.pid}/fd").iterdir())


def test_a_signal_is_for_the_main_thread(process: subprocess.Popen[str]) -> None:
    until(lambda: _settled(process), 5, "threads without descriptors")
    os.kill(int(_others(process)[0].name), signal.SIGTERM)
    assert process.wait(5) == 7


def test_the_lock_is_free_and_all_is_gone_once_it_is_killed(process: subprocess.Popen[str], tmp_path: Path) -> None:
    until(lambda: _settled(process), 5, "threads without descriptors")
    watched = os.pidfd_open(process.pid)
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    try:
        process.kill()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert select.select([watched], [], [], 5)[0]
    finally:
        os.close(watched)
        os.close(lock)


def test_they_hold_no_end_up_that_is_meant(process: subprocess.Popen[str]) -> None:
    until(lambda: _settled(process), 5, "threads without descriptors")
    process.send_signal(signal.SIGHUP)
    until(
        lambda: {os.sched_getscheduler(int(task.name)) for task in _others(process)} == {os.SCHED_OTHER},
        5,
        "threads of the usual priority",
    )
