"""Tests a gateway whose pipes libzmq carries (STAGEWIRE_PIPES=libzmq): handshakes, traffic, and the death of each stage."""

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import ping, tcp_fetch
from lab.wait import until
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

SPOKES = {"we initiate": Spoke(1, Topology.A4), "they initiate": Spoke(2)}
BACK_WITHIN = 20.0


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("z") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    hub = Hub(network.b, shared_directory, SPOKES)
    hub.gateway.env |= {"STAGEWIRE_PIPES": "libzmq", "STAGEWIRE_SPARES": "1"}
    with hub:
        yield hub


@pytest.fixture(scope="module")
def peers(network: Topology, hub: Hub) -> Iterator[dict[str, WireguardGo]]:
    first, second = SPOKES.values()
    with (
        hub.wireguard_go(first, network.a) as they_answer,
        hub.wireguard_go(second, network.a, Topology.B4) as they_begin,
    ):
        yield dict(zip(SPOKES, (they_answer, they_begin), strict=True))


@pytest.mark.parametrize("initiator", SPOKES)
def test_either_side_shakes_hands_and_both_carry_traffic(
    network: Topology, peers: dict[str, WireguardGo], initiator: str
) -> None:
    spoke = SPOKES[initiator]
    ours, theirs = (network.b, spoke.inner), (network.a, spoke.gateway_inner)
    for namespace, addresses in (ours, theirs) if spoke.host else (theirs, ours):
        for address in addresses:
            for size in (56, 1300):
                report = ping(namespace, address, count=3, size=size)
                assert report.received == 3, report.output
    said = "Received handshake initiation" if spoke.host else "Received handshake response"
    assert said in peers[initiator].logs()
    tcp_fetch(network.b, network.a, spoke.gateway_inner[0], 20 << 20, 1)
    tcp_fetch(network.a, network.b, spoke.inner[0], 20 << 20, 2)


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("stage", ["tun", "device", "conn", "key", "host", "status"])
def test_traffic_comes_back_after_the_death_of_each_stage(network: Topology, hub: Hub, stage: str) -> None:
    spoke, gateway = SPOKES["we initiate"], hub.gateway
    passes = partial(_passes, network, spoke)
    until(passes, BACK_WITHIN, "a ping to come back")
    number = hub.peer(spoke)["worker"] if stage == "device" else 0
    before = gateway.kill(stage, signal.SIGKILL, number)
    until(lambda: gateway.held().get((stage, number), before) != before, BACK_WITHIN, "another process")
    until(passes, BACK_WITHIN, "a ping to come back")
    until(lambda: gateway.status()["ready"], BACK_WITHIN, "all to be at work")


def _passes(network: Topology, spoke: Spoke) -> bool:
    """Whether a ping comes back, from our side, which takes the tunnel both ways."""
    return ping(network.b, spoke.inner[0], timeout=1).received == 1
