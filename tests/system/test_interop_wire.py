"""What is on the wire, as somebody else reads it: scapy message by message, and wireguard-go's own count of bytes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from lab.capture import Capture, Datagram
from lab.decode import Decoded, decode
from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until

pytestmark = pytest.mark.system

SPOKES = {
    "we": Spoke(1, Topology.A4),
    "they": Spoke(2),
    "we with a pre-shared key": Spoke(3, f"[{Topology.A6}]", psk=True),
    "counted": Spoke(4),
}
INITIATION, RESPONSE, TRANSPORT = 1, 2, 4
LENGTHS = {INITIATION: 148, RESPONSE: 92}
TAG = 16
MTU = 1420
KEEPALIVE = 32


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("w") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, SPOKES) as hub:
        yield hub


def exchange(network: Topology, hub: Hub, spoke: Spoke, *, we_initiate: bool) -> list[bytes]:
    """Packets of many sizes both ways; returns the markers that no outsider may see."""
    if we_initiate:
        assert ping(network.b, spoke.inner[0]).received == 1
    for size in (16, 17, 31, 100, MTU - 28):
        assert ping(network.a, spoke.gateway_inner[0], size=size).received == 1
        assert ping(network.a, spoke.gateway_inner[1], size=size - 20 if size > 20 else size).received == 1
    with (
        NumberedStream(network.a, network.b, spoke.gateway_inner[0], rate=500) as inward,
        NumberedStream(network.b, network.a, spoke.inner[1], rate=500, size=333) as outward,
    ):
        until(lambda: min(inward.received, outward.received) >= 300, 10, "both streams to flow")
        hub.expect_whole(inward.finish(), outward.finish())
    return [inward.marker, outward.marker]


@pytest.mark.parametrize(("name", "host"), [("we", None), ("we with a pre-shared key", None), ("they", Topology.B4)])
def test_every_message_is_one_that_another_decoder_understands(
    network: Topology, hub: Hub, name: str, host: str | None
) -> None:
    spoke = SPOKES[name]
    we_initiate = host is None
    with (
        Capture(network.b, network.link_b.a_interface) as outer,
        hub.wireguard_go(spoke, network.a, host),
    ):
        markers = exchange(network, hub, spoke, we_initiate=we_initiate)
        datagrams = outer.datagrams(spoke.port)
        assert not any(outer.contains(marker) for marker in markers)
        outer.assert_no_duplicate_counters(PORT)
    messages = [decode(datagram.payload) for datagram in datagrams]
    assert [message.type for message in messages[:3]] == [INITIATION, RESPONSE, TRANSPORT]
    assert {message.type for message in messages[3:]} == {TRANSPORT}
    check_handshake(datagrams, messages, initiator_port=PORT if we_initiate else spoke.port)
    for port in (PORT, spoke.port):
        sent = [pair for pair in zip(datagrams, messages, strict=True) if pair[0].source[1] == port]
        check_transport([message for _, message in sent if message.type == TRANSPORT], may_miss=hub.starved())


def check_handshake(datagrams: Sequence[Datagram], messages: Sequence[Decoded], initiator_port: int) -> None:
    """Lengths, layout, and who calls whom by which index."""
    initiation, response = messages[0].fields, messages[1].fields
    assert [len(datagram.payload) for datagram in datagrams[:2]] == [LENGTHS[INITIATION], LENGTHS[RESPONSE]]
    assert [datagram.source[1] == initiator_port for datagram in datagrams[:3]] == [True, False, True]
    assert response["receiver_index"] == initiation["sender_index"]
    assert response["sender_index"] != initiation["sender_index"]
    assert initiation["mac2"] == response["mac2"] == bytes(16)
    assert bytes(16) not in (initiation["mac1"], response["mac1"])
    for datagram, message in zip(datagrams, messages, strict=True):
        assert message.trailing == b""
        assert message.fields["reserved_zero"] == 0
        if message.type == TRANSPORT:
            towards_initiator = datagram.destination[1] == initiator_port
            chosen_by = initiation if towards_initiator else response
            assert message.fields["receiver_index"] == chosen_by["sender_index"]


def check_transport(sent: Sequence[Decoded], may_miss: int) -> None:
    """Counters from 0, each greater than the last, none left out; whole blocks of 16, unless the MTU forbids."""
    counters = [message.fields["counter"] for message in sent]
    assert counters[0] == 0
    assert all(later > earlier for earlier, later in pairwise(counters))
    assert counters[-1] + 1 - len(counters) <= may_miss
    plain = [len(message.fields["encrypted_encapsulated_packet"]) - TAG for message in sent]
    assert all(length % 16 == 0 or length == MTU for length in plain)
    assert max(plain) == MTU


def test_both_sides_count_the_same_bytes(network: Topology, hub: Hub) -> None:
    spoke = SPOKES["counted"]
    with hub.wireguard_go(spoke, network.a, Topology.B4) as peer:
        exchange(network, hub, spoke, we_initiate=False)
        counted: list[int] = []

        def agree() -> bool:
            theirs, ours = peer.dump().peers[hub.keys.public], hub.peer(spoke)
            counted[:] = theirs.sent, ours["rx_bytes"], theirs.received, ours["tx_bytes"]
            # A keepalive may have been counted by one side and not by the other yet.
            slack = 2 * KEEPALIVE + hub.starved() * (MTU + KEEPALIVE)
            return bool(abs(counted[0] - counted[1]) <= slack >= abs(counted[2] - counted[3]))

        until(agree, 5, "the counts to agree")
        # 300 packets of 200 and of 333 bytes, and 10 pings: what is counted is what was sent, not just the same.
        assert counted[0] > 300 * (200 + 28 + KEEPALIVE) + 2 * MTU
        assert counted[2] > 300 * (333 + 48 + KEEPALIVE) + 2 * MTU
