"""A network that loses, doubles, reorders and damages datagrams, and somebody who replays them.

wireguard-go in A, the gateway in B; between them, in C, the proxy, which both take for the other.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture, Datagram
from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, StreamReport, ping
from lab.udp_proxy import Direction, Faults, Recorded, UdpProxy
from lab.wait import until

pytestmark = pytest.mark.system

BACK_PORT = 52000
"""Where the gateway finds the peers that it initiates to: the proxy's port on its side."""
FAULTY = {name: Spoke(number) for number, name in enumerate(("loss", "duplicate", "reorder", "corrupt", "all"), 1)}
THEY, WE = Spoke(8), Spoke(9, Topology.CB4, BACK_PORT)
SEED = 20
INITIATION, RESPONSE, TRANSPORT = 1, 2, 4
RATE = 600


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("f") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {**FAULTY, "they": THEY, "we": WE}) as hub:
        yield hub


@contextlib.contextmanager
def joined(network: Topology, hub: Hub, spoke: Spoke) -> Iterator[UdpProxy]:
    """A session through the proxy, made before any fault; `forward` is towards the gateway."""
    proxy = UdpProxy(
        network.c,
        (Topology.CA4, 0),
        (Topology.B4, PORT),
        back=(Topology.CB4, BACK_PORT),
        client=(Topology.A4, spoke.port),
        seed=SEED,
    )
    we_initiate = spoke.host is not None
    with proxy, hub.wireguard_go(spoke, network.a, None if we_initiate else Topology.CA4, at_port=proxy.listen[1]):
        first = (network.b, spoke.inner[0]) if we_initiate else (network.a, spoke.gateway_inner[0])
        assert ping(*first).received == 1
        assert hub.peer(spoke)["endpoint"] == f"{Topology.CB4}:{BACK_PORT}"
        yield proxy


def stream_both_ways(network: Topology, spoke: Spoke, packets: int) -> tuple[StreamReport, StreamReport]:
    """Towards the gateway, and from it."""
    with (
        NumberedStream(network.a, network.b, spoke.gateway_inner[0], rate=RATE) as inward,
        NumberedStream(network.b, network.a, spoke.inner[1], rate=RATE) as outward,
    ):
        until(lambda: min(inward.sent, outward.sent) >= packets, 20, f"{packets} packets to be sent each way")
        return inward.finish(), outward.finish()


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("loss", Faults(loss=0.1)),
        ("duplicate", Faults(duplicate=0.3)),
        ("reorder", Faults(reorder=0.3, reorder_by=60)),
        ("corrupt", Faults(corrupt=0.1, truncate=0.05)),
        ("all", Faults(loss=0.05, duplicate=0.2, reorder=0.2, reorder_by=30, corrupt=0.05, truncate=0.02)),
    ],
)
def test_no_fault_doubles_a_packet_or_costs_another(network: Topology, hub: Hub, name: str, faults: Faults) -> None:
    with joined(network, hub, FAULTY[name]) as proxy:
        proxy.set_faults(faults)
        reports = stream_both_ways(network, FAULTY[name], 600)
        proxy.set_faults(Faults())
        for report, counts in zip(reports, (proxy.forward.counts, proxy.backward.counts), strict=True):
            # A datagram may be damaged and lost, or damaged and doubled: at most one packet goes for each fault.
            injected = counts["lost"] + counts["corrupted"] + counts["truncated"]
            hub.expect_whole(report, lost=injected)
            assert report.lost >= 0.5 * injected
            assert (report.out_of_order > 10) == (faults.reorder > 0)
        injected_ways = {"loss": "lost", "duplicate": "duplicated", "reorder": "reordered", "corrupt": "corrupted"}
        for fault in injected_ways if name == "all" else [name]:
            assert proxy.forward.counts[injected_ways[fault]] > 10
        assert ping(network.b, FAULTY[name].inner[0]).received == 1
        assert hub.peer(FAULTY[name])["endpoint"] == f"{Topology.CB4}:{BACK_PORT}"


def records(proxy: UdpProxy, direction: Direction, kind: int) -> list[Recorded]:
    return [record for record in proxy.recorded(direction) if record.data[0] == kind]


def replayed_to_the_gateway(network: Topology, proxy: UdpProxy, recorded: list[Recorded]) -> None:
    """From the place they came from, and from another one, as an attacker's may be."""
    proxy.replay(recorded)
    proxy.replay(recorded, port=0)


@pytest.mark.parametrize(
    ("spoke", "handshake", "reason"),
    [(THEY, INITIATION, "handshake_repeated"), (WE, RESPONSE, "unknown_response")],
    ids=["initiation", "response"],
)
def test_what_is_replayed_is_neither_delivered_nor_answered(
    network: Topology, hub: Hub, spoke: Spoke, handshake: int, reason: str
) -> None:
    with joined(network, hub, spoke) as proxy, Capture(network.b, network.link_b.a_interface) as outer:
        hub.expect_whole(*stream_both_ways(network, spoke, 200))
        greetings, packets = records(proxy, "forward", handshake), records(proxy, "forward", TRANSPORT)
        assert len(greetings) == 1
        assert len(packets) > 200
        before, starved, handshake_time = hub.counters(), hub.starved(), hub.peer(spoke)["last_handshake_unix_s"]
        with (
            Capture(network.b, "wg0") as inner,
            NumberedStream(network.a, network.b, spoke.gateway_inner[0], rate=RATE) as stream,
        ):
            until(lambda: stream.received > 50, 10, "the stream to flow")
            replayed_to_the_gateway(network, proxy, greetings + packets)
            at = stream.received
            until(lambda: stream.received > at + 50, 10, "the stream to go on")
            report = stream.finish()
            hub.expect_whole(report)
            # Whatever came out of the tunnel was the stream's: nothing that was replayed is among it.
            assert sum(not frame.outgoing for frame in inner.frames()) == report.received
        expected = Counter({reason: 2, "replayed": 2 * len(packets) - (hub.starved() - starved)})

        def counted() -> Counter[str]:
            found = hub.counters() - before
            # The gate remembers an initiation for 10 s at least; later it is key-service that refuses it.
            found["handshake_repeated"] += found.pop("initiation_replayed", 0)
            return found

        until(lambda: expected <= counted(), 5, f"{expected} to be counted")
        assert_nobody_else_was_answered(outer.datagrams(PORT))
        state = hub.peer(spoke)
        assert state["endpoint"] == f"{Topology.CB4}:{BACK_PORT}"
        assert state["last_handshake_unix_s"] == handshake_time


def assert_nobody_else_was_answered(datagrams: list[Datagram]) -> None:
    """What the replayer sent from another port did arrive, and all that left went to where the peer is."""
    sources = {datagram.source for datagram in datagrams if datagram.destination == (Topology.B4, PORT)}
    assert len(sources) == 2
    destinations = {datagram.destination for datagram in datagrams if datagram.source == (Topology.B4, PORT)}
    assert destinations <= {(Topology.CB4, BACK_PORT)}
    left = [datagram.payload[0] for datagram in datagrams if datagram.source == (Topology.B4, PORT)]
    assert set(left) <= {TRANSPORT}
