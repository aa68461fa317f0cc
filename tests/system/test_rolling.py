"""`stagewire restart` and `scale` without spares, and without a supervisord that would start others."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.oversight import BACK_WITHIN, Overseen

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.wait import until
from lab.wg import WgHub
from stagewire.stages import STAGES
from stagewire_cli import processes

pytestmark = pytest.mark.system

SPOKE = Spoke(1, Topology.A4)


@pytest.fixture(scope="module")
def seen(shared_directory: Path) -> Iterator[Overseen]:
    with Topology("r") as network:
        hub = WgHub(network.b, shared_directory / "hub", {"one": SPOKE}, workers=1)
        with hub, hub.wireguard_go(SPOKE, network.a, Topology.B4):
            yield Overseen(hub, network.a, SPOKE)


def test_without_spares_supervisord_starts_the_others(seen: Overseen) -> None:
    with seen.traffic():
        before = seen.gateway.held()
        said = seen.gateway.command("restart", "all", timeout=120).stdout  # there is but one interface
        assert len(said.splitlines()) == len(STAGES)
        assert not {*before.values()} & {*seen.gateway.held().values()}
        assert seen.gateway.held().keys() == before.keys()


def test_without_spares_scaling_leaves_none_either(seen: Overseen) -> None:
    with seen.traffic():
        for workers in (2, 1):
            seen.gateway.command("scale", str(workers), str(seen.gateway.config_path))
            assert seen.census()["device"] == workers
        shown = seen.gateway.status()["services"]
        assert [each["number"] for each in shown if each["service"] == "device-service"] == [0]


def test_a_stage_that_cannot_work_may_be_what_is_restarted(seen: Overseen) -> None:
    """Its being at fault keeps nobody from replacing it, or another."""
    with seen.traffic():
        os.kill(seen.gateway.pid("conn"), signal.SIGSTOP)  # and there is no spare to kill it
        until(lambda: not seen.gateway.status()["ready"], BACK_WITHIN, "its silence to be noticed")
        seen.gateway.command("restart", "status", seen.hub.name)
        os.kill(seen.gateway.pid("conn"), signal.SIGCONT)


def test_without_supervisord_nothing_is_ended_that_nobody_would_start_again(seen: Overseen) -> None:
    pid = seen.gateway.pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not processes.lives(pid), 5, "supervisord to die")
    before = seen.gateway.processes()
    for arguments in (["restart", "all"], ["restart", "key"], ["scale", "2"]):
        refused = seen.gateway.command(*arguments, seen.hub.name, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "supervisord" in refused.stderr
        assert "gone" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert seen.gateway.processes() == before
