"""key-service and workers die in one moment: the next key-service asks which sessions are gone, and initiates."""

import base64
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.attack.marks import Figure
from tests.system.oversight import BACK_WITHIN, Overseen

from key_service.homes import home_of
from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream
from lab.wait import until
from lab.wg import WgHub
from lab.wireguard_go import KeyPair, new_key_pair
from stagewire.process import slots

pytestmark = [pytest.mark.alone, pytest.mark.system]

WORKERS = 2
RATE = 100
BACK = 2.5
"""s without packets; wireguard-go's own timers would need 15."""


def keys_at(home: int) -> KeyPair:
    """Of a peer that is at home in that worker."""
    while home_of(base64.b64decode((keys := new_key_pair()).public), WORKERS) != home:
        pass
    return keys


LEARNT = Spoke(1, keys=keys_at(0))
"""Its place is in no configuration, and it only sends."""
KNOWN = Spoke(2, Topology.A4, keys=keys_at(1))
BOTH = ("device", 0), ("device", 1)
NOBODY_LEFT = "its spare, all workers and theirs"
VICTIMS = {
    "a worker": (BOTH[:1], ()),
    "its spare and a worker": (BOTH[:1], ("key",)),
    "all workers": (BOTH, ()),
    NOBODY_LEFT: (BOTH, ("key", "device")),
}
"""What dies beside the key-service at work: holders, and the spares of these stages."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("kt") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    with (
        WgHub(network.b, shared_directory, {"learnt": LEARNT, "known": KNOWN}, workers=WORKERS, spares=1) as hub,
        hub.wireguard_go(LEARNT, network.a, Topology.B4),
        hub.wireguard_go(KNOWN, network.a, Topology.B4),
    ):
        yield hub


@pytest.mark.attack("killed-together")
@pytest.mark.parametrize(
    "beside",
    [pytest.param(each, marks=pytest.mark.long if each == NOBODY_LEFT else ()) for each in VICTIMS],
)
def test_the_tunnel_is_back_when_key_service_dies_with(
    hub: WgHub, network: Topology, beside: str, figure: Figure
) -> None:
    seen = Overseen(hub, network.a, LEARNT)
    seen.settles()
    workers, spared = VICTIMS[beside]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(NumberedStream(network.a, network.b, LEARNT.gateway_inner[0], RATE)),
            stack.enter_context(NumberedStream(network.b, network.a, KNOWN.inner[0], RATE)),
        ]

        def flow(packets: int) -> None:
            was = [each.received for each in streams]
            until(
                lambda: all(each.received >= so_far + packets for each, so_far in zip(streams, was, strict=True)),
                BACK_WITHIN,
                "packets of both peers",
            )

        flow(2 * RATE)  # longer than key-service needs to write down that they have sessions
        held = hub.gateway.held()
        victims = {held["key", 0], *(held[place] for place in workers)}
        for stage in spared:
            victims.update({*slots.contenders(seen.run, stage)} - {*held.values()})
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        flow(RATE)
        reports = [each.finish() for each in streams]
    for name, report in zip(("of a place learnt", "of a place configured"), reports, strict=True):
        assert report.duplicates == 0
        figure(f"outage {name}", report.longest_gap - report.longest_send_gap, "s", most=BACK)
