"""A stage leaves pipes under every name in its folder, and then all processes die: the gateway comes back all the same."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.system.oversight import BACK_WITHIN, Overseen, overseen

from lab.wait import until
from stagewire.linux import uids

pytestmark = pytest.mark.system

TO_COME = (
    "accepted.new",
    "clock",
    "ledger.new",
    "remembered.new",
    "reload",
    ".reload",
    "workers",
    "workers.new",
    "live-0",
    "timestamps.new",
)
"""Names that a stage or the command may use later."""


@pytest.fixture(scope="module")
def seen(shared_directory: Path) -> Iterator[Overseen]:
    with overseen("hp", shared_directory) as seen:
        yield seen


def plant(folder: Path, stage: str) -> int:
    """Puts a pipe of the stage's own in the place of every file and socket, and under names to come."""
    names = {each.name for each in folder.iterdir() if not each.is_dir()} | {*TO_COME}
    for name in names:
        path = folder / name
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        os.chown(path, uids.uid_of(stage), uids.group())
    return len(names)


def stages() -> Iterator[object]:
    """All but the workers, in whose folder root alone can write."""
    for each in ("key", "host", "conn", "tun", "status", "resolver"):
        seldom = [] if each in ("key", "host", "conn", "tun") else [pytest.mark.long]
        yield pytest.param(each, marks=[pytest.mark.attack(f"hostile-{each}"), *seldom])


@pytest.mark.parametrize("stage", [*stages()])
def test_pipes_in_every_place_stop_nobody(seen: Overseen, stage: str) -> None:
    with seen.traffic():
        seen.settles()
        everybody = seen.gateway.processes()
        assert plant(seen.run / stage, stage) > len(TO_COME)
        if stage == "key":
            assert plant(seen.environment.state, stage) > len(TO_COME)
        for pid in everybody:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not {*everybody} & {*seen.gateway.processes()}, BACK_WITHIN, "others in all places")
        seen.flows()
    for name, text in seen.gateway.logs().items():
        assert "Traceback" not in text, name
