"""The number of workers changes under load: who moves is hardly interrupted, and who doesn't notices nothing.

Three workers run at first; `stagewire scale` starts more and ends some. The
figures are printed. What is asserted leaves room for a machine that others use as well.
"""

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from key_service.homes import home_of
from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import Gateway
from lab.traffic import NumberedStream, StreamReport, ping
from lab.wait import until
from lab.wg import is_ready
from lab.wireguard_go import KeyPair, new_key_pair
from stagewire.control import messages
from stagewire.control.messages import FromStage
from stagewire.control.questions import Scale, Scaled, StatusQuery
from stagewire.control.status import GatewayStatus, WorkersStatus
from stagewire.pipe.names import CONTROL
from stagewire.pipe.pipes import Pipes

pytestmark = [pytest.mark.alone, pytest.mark.system]

RATE = 300
OUTAGE = 0.2
SETTLES_WITHIN = 20.0
STEPS = (1, 3, 2)


def keys_at(*homes: int) -> KeyPair:
    """Of a peer that is at home in these workers when there are 1, 2 and 3."""
    while True:
        keys = new_key_pair()
        public = base64.b64decode(keys.public)
        if all(home_of(public, workers) == home for workers, home in enumerate(homes, start=1)):
            return keys


SPOKES = {
    "steady": Spoke(1, Topology.A4, keys=keys_at(0, 0, 0)),
    "second": Spoke(2, Topology.A4, keys=keys_at(0, 1, 1)),
    "third": Spoke(3, keys=keys_at(0, 0, 2)),  # it is this one that initiates, at first
}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("s") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    hub = Hub(network.b, shared_directory, SPOKES)
    hub.gateway = Gateway(network.b, hub.name, shared_directory, hub.config, workers=3)
    with hub:
        yield hub


def ask(hub: Hub, question: FromStage) -> Any:
    """Of key-service, as the command line does."""
    with zmq.Context() as context:
        pipes = Pipes(context, hub.gateway.run_directory / hub.name)
        with pipes.connect(CONTROL) as line:
            assert line.poll(2000, zmq.POLLOUT)
            line.send(messages.FROM_STAGE.pack(question))
            assert line.poll(2000)
            return messages.FROM_KEY.unpack_untrusted(line.recv())


def status(hub: Hub) -> GatewayStatus:
    """key-service's."""
    answer = ask(hub, StatusQuery())
    assert isinstance(answer, GatewayStatus)
    return answer


def homes(hub: Hub) -> list[int]:
    """Of the spokes."""
    at = {peer.public_key: peer.worker for peer in status(hub).peers}
    return [at[spoke.keys.public] for spoke in SPOKES.values()]


def scale(hub: Hub, workers: int) -> None:
    """As an operator does."""
    hub.gateway.command("scale", str(workers), hub.name, timeout=SETTLES_WITHIN * 2)
    assert status(hub).workers == WorkersStatus(workers, tuple(range(workers)), 0)


def said(what: str, report: StreamReport) -> None:
    gap, own = report.longest_gap * 1000, report.longest_send_gap * 1000
    print(f"{what}: longest gap {gap:.0f} ms (our sender's own {own:.0f} ms), {report.lost} of {report.sent} lost")


def test_nonsense_is_refused(hub: Hub) -> None:
    for workers in (0, 65, -1):
        answer = ask(hub, Scale(workers))
        assert isinstance(answer, Scaled)
        assert "1 to 64" in answer.error
    assert status(hub).workers == WorkersStatus(3, (0, 1, 2), 0)


def test_workers_come_and_go_under_load(network: Topology, hub: Hub) -> None:
    with ExitStack() as stack:
        for name, spoke in SPOKES.items():
            stack.enter_context(hub.wireguard_go(spoke, network.a, None if spoke.host else Topology.B4))
            source, target = (network.b, spoke.inner[0]) if spoke.host else (network.a, spoke.gateway_inner[0])
            until(lambda a=source, b=target: ping(a, b).received, SETTLES_WITHIN, f"the tunnel of {name}")  # type: ignore[misc]
        assert homes(hub) == [0, 1, 2]
        before = 3
        for workers in STEPS:
            was = homes(hub)
            with ExitStack() as streaming:
                streams = {
                    (name, way): streaming.enter_context(stream)
                    for name, spoke in SPOKES.items()
                    for way, stream in (
                        ("out", NumberedStream(network.b, network.a, spoke.inner[0], RATE)),
                        ("in", NumberedStream(network.a, network.b, spoke.gateway_inner[0], RATE)),
                    )
                }
                until(lambda s=streams: all(each.received > RATE for each in s.values()), 20, "the streams")  # type: ignore[misc]
                scale(hub, workers)
                at = {stream: stream.received for stream in streams.values()}
                until(lambda a=at: all(each.received > was + RATE for each, was in a.items()), 20, "a second more")  # type: ignore[misc]
                reports = {which: stream.finish() for which, stream in streams.items()}
            moved = {name for name, old, new in zip(SPOKES, was, homes(hub), strict=True) if old != new}
            for (name, way), report in reports.items():
                said(f"{before} -> {workers}: {name}, {'moved' if name in moved else 'stayed'}, {way}", report)
            assert homes(hub) == [home_of(base64.b64decode(s.keys.public), workers) for s in SPOKES.values()]
            assert "steady" not in moved
            assert moved
            # What a busy machine does to everybody isn't the move's doing.
            shared = max(reports["steady", way].longest_gap for way in ("out", "in"))
            for (name, _), report in reports.items():
                if name in moved:
                    assert report.longest_gap - max(shared, report.longest_send_gap) < OUTAGE
            hub.expect_whole(*reports.values())
            before = workers


def test_the_counts_of_traffic_survive_a_move(network: Topology, hub: Hub) -> None:
    spoke = SPOKES["second"]
    with hub.wireguard_go(spoke, network.a):
        until(lambda: ping(network.b, spoke.inner[0]).received, 20, "the tunnel")
        before = hub.peer(spoke)
        assert ping(network.b, spoke.inner[0], count=20, size=1000, interval=0.01).received == 20
        scale(hub, 1)
        after = hub.peer(spoke)
        for direction in ("tx_bytes", "rx_bytes"):
            assert after[direction] - before[direction] >= 20 * 1028


def test_a_new_key_service_knows_the_number_and_a_new_interface_begins_anew(hub: Hub) -> None:
    hub.gateway.kill("key", 9)
    until(lambda: is_ready(hub.gateway), 60, "key-service to be back")
    assert status(hub).workers.wanted == 1
    hub.gateway.down()
    hub.gateway.up()
    assert status(hub).workers.wanted == 3
