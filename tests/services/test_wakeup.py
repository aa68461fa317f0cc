"""supervisord's wait ends for a child's death, and for a program that is to start anew."""

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagewire_cli.wakeup import LIVED, Wakeup

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD)


class Loop:
    """Waits as supervisord's does."""

    def __init__(self) -> None:
        self._sources: dict[int, Any] = {}
        self.received: list[int] = []
        options = SimpleNamespace(get_socket_map=lambda: self._sources, mood=1)
        self.wakeup = Wakeup(SimpleNamespace(options=options), lambda: None)
        self.wakeup.watch()
        assert self.is_woken()  # at the start

    def is_woken(self, within: float = 0) -> bool:
        woken, _, _ = select.select([*self._sources], [], [], within)
        for number in woken:
            self._sources[number].handle_read_event()
        return bool(woken)

    def close(self) -> None:
        for descriptor in (self.wakeup._reader, self.wakeup._writer):
            os.close(descriptor)


@contextmanager
def signals_kept(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in NUMBERS}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


@pytest.fixture
def loop() -> Iterator[Loop]:
    received: list[int] = []
    with signals_kept(lambda number, _frame: received.append(number)):
        made = Loop()
        made.received = received
        yield made
        made.close()


def ended(after: float) -> Any:
    return SimpleNamespace(process=SimpleNamespace(laststart=1000.0, laststop=1000.0 + after))


def test_a_childs_death_is_heard_at_once_also_by_supervisord_itself(loop: Loop) -> None:
    subprocess.run(["true"], check=True)
    assert loop.is_woken(10)
    assert loop.received == [signal.SIGCHLD]


def test_a_pipe_whose_number_is_another_files_stays_untouched(loop: Loop, tmp_path: Path) -> None:
    """supervisord closes all descriptors by their numbers at SIGHUP, while the signals still lead here."""
    foreign = os.open(tmp_path / "foreign", os.O_CREAT | os.O_WRONLY)
    os.dup2(foreign, loop.wakeup._writer)
    os.close(foreign)
    loop.wakeup.turn()
    assert (tmp_path / "foreign").read_bytes() == b""


@pytest.mark.parametrize(("lived", "at_once"), [(LIVED, True), (LIVED - 0.1, False)])
def test_a_program_that_has_lived_starts_anew_at_once(loop: Loop, *, lived: float, at_once: bool) -> None:
    loop.wakeup.on_exit(ended(lived))
    assert loop.is_woken() == at_once
