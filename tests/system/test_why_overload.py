"""`stagewire why` and `doctor` on a gateway whose worker has more packets than time."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench import loads
from tests.system.whys import first, works

from lab.hub import Spoke
from lab.namespaces import Topology, stop
from lab.wait import until
from lab.wg import WgHub

pytestmark = pytest.mark.system

SPOKE = Spoke(1)
PORT, SIZE, RATE = 5201, 64, 100_000
"""More packets a second than a worker of the plain kernel seals."""
SECONDS = 60.0


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("wl") as topology:
        yield topology


def test_a_worker_that_is_overloaded(network: Topology, shared_directory: Path) -> None:
    with (
        WgHub(network.b, shared_directory, {"one": SPOKE}, workers=1, env={"STAGEWIRE_KERNEL": "plain"}) as hub,
        hub.wireguard_go(SPOKE, network.a, Topology.B4),
    ):
        until(lambda: works(network.a, SPOKE.gateway_inner[0]), 15, "the tunnel to work")
        sink = loads.start(network.a, "tests.bench.udp_load", "sink", PORT)
        source = loads.begin(network.b, "tests.bench.udp_load", "source", PORT, SIZE, RATE, SECONDS, SPOKE.inner[0])
        try:
            until(lambda: first(hub, SPOKE, "--no-try") == "overloaded", 20, "why to say so")
            asked = hub.gateway.command("doctor", hub.name, "--json", check=False)
            assert "overloaded" in [each["id"] for each in json.loads(asked.stdout)["troubles"]]
        finally:
            for each in (source, sink):
                stop(each, patience=1)
                each.communicate()
        until(lambda: first(hub, SPOKE, "--no-try") == "well", 20, "all to be well again")
