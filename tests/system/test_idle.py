"""A gateway without work sleeps, and what is stopped in its sleep is found when work comes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench import cost

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.wait import until
from lab.wg import WgHub
from stagewire.process import holders, slots
from stagewire.stages import STAGES

pytestmark = [pytest.mark.alone, pytest.mark.system]

SPOKE, QUIET = Spoke(1, Topology.A4), Spoke(2, Topology.A4)
WORKERS = 2
SPAN = 5.0
"""s in which each process does once what it does now and then."""
WAKES = 20
"""A second, of all processes; `make bench` measures them on a quiet machine."""
FOUND_WITHIN = 2.0
"""s from the first packet; 0.5 on a quiet machine."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("id") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    with (
        WgHub(network.b, shared_directory, {"one": SPOKE, "two": QUIET}, workers=WORKERS, spares=1) as hub,
        hub.wireguard_go(SPOKE, network.a, Topology.B4),
        hub.wireguard_go(QUIET, network.a, Topology.B4),
    ):
        run = hub.gateway.run_directory / hub.name
        until(lambda: pings(hub, SPOKE), 20, "the first packet")
        until(lambda: all(len(slots.contenders(run, stage)) > 1 for stage in STAGES), 60, "the spares")
        yield hub


def pings(hub: WgHub, spoke: Spoke) -> bool:
    return hub.namespace.run("ping", "-c", "1", "-W", "1", spoke.inner[0], check=False).returncode == 0


def wakes(hub: WgHub) -> float:
    """How often all processes wake in a second."""
    pids = [hub.gateway.pid(), *hub.gateway.processes()]
    before = sum(map(cost.context_switches, pids))
    time.sleep(SPAN)
    return (sum(map(cost.context_switches, pids)) - before) / SPAN


def test_all_that_is_idle_still_counts_as_ready(hub: WgHub) -> None:
    until(lambda: wakes(hub) < WAKES, 60, "all to sleep")
    found = hub.gateway.status()
    assert found["ready"]
    assert found["healthy"]
    assert hub.gateway.command("ready").returncode == 0


@pytest.mark.parametrize("way", ["a packet without a session", "the wg tool"])
def test_a_key_service_that_was_stopped_in_its_sleep_is_found_when_work_comes(hub: WgHub, way: str) -> None:
    until(lambda: hub.gateway.status()["healthy"], 20, "all to be well")
    until(lambda: wakes(hub) < WAKES, 60, "all to sleep")
    stopped = hub.gateway.kill("key", signal.SIGSTOP)
    try:
        begun = time.monotonic()
        match way:
            case "a packet without a session":
                pings(hub, QUIET)
            case _:
                hub.wg("show", hub.name, check=False)
        until(lambda: stopped not in hub.gateway.held().values(), 10, "the spare to take over")
        assert time.monotonic() < begun + FOUND_WITHIN
        assert holders.status(stopped).get("State", "Z")[:1] == "Z"
    finally:
        if Path(f"/proc/{stopped}").exists():
            os.kill(stopped, signal.SIGCONT)
    until(lambda: pings(hub, QUIET), 20, "packets")
