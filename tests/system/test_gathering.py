"""Who carries much lets trains gather, and asks for a processor like everybody else when it is over."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import ping, tcp_fetch
from lab.wait import until

pytestmark = [pytest.mark.alone, pytest.mark.system]

PEER = Spoke(1, Topology.A4)
STAGES = ("tun", "conn", "device")


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("g") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"peer": PEER}) as hub:
        yield hub


def test_trains_gather_while_much_is_carried(network: Topology, hub: Hub) -> None:
    processes = [(stage, pid) for (stage, _), pid in hub.gateway.held().items() if stage in STAGES]
    gathering: set[str] = set()

    def now_gathering() -> set[str]:
        return {stage for stage, pid in processes if os.sched_getscheduler(pid) == os.SCHED_BATCH}

    with hub.wireguard_go(PEER, network.a):
        until(
            lambda: {os.sched_getscheduler(pid) for _, pid in processes} == {os.SCHED_OTHER}, 5, "the stages to settle"
        )
        assert ping(network.b, PEER.inner[0], count=5, interval=0.01).received == 5
        assert now_gathering() == set()
        tcp_fetch(
            network.b, network.a, PEER.gateway_inner[0], 100 << 20, 1, lambda _: gathering.update(now_gathering())
        )
        assert gathering == {*STAGES}
        until(lambda: now_gathering() == set(), 5, "the stages to go back to a processor's usual share")
