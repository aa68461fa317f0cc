"""A peer whose clock was once in 2100, then right again: what lets it in, and what must not."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.wait import until
from stagewire.config import decode_key
from stagewire.loop import boot_time
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import SendHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker

pytestmark = pytest.mark.system

IN_2100 = 4_102_444_800 * 10**9
AHEAD, OTHER = Spoke(1), Spoke(2)


class Initiator:
    """The peer's end, by hand, so that its clock may say what a test wants."""

    def __init__(self, network: Topology, hub: Hub) -> None:
        self._gateway = decode_key(hub.keys.public)
        self._identity = Identity.from_private_bytes(decode_key(AHEAD.keys.private))
        self._udp = network.a.udp_socket(Topology.A4)
        self._udp.settimeout(0.3)
        self._to = (Topology.B4, hub.port)

    def is_answered(self, unix_ns: int) -> bool:
        """Sends one initiation; returns whether a response comes."""
        handshaker = Handshaker(self._identity, bytes(12), os.urandom, float)
        handshaker.add_peer(self._gateway, bytes(32), 0).endpoint = Endpoint(bytes(4), 1).pack()
        handshaker.worker_up(0, boot_time(), unix_ns)
        (sent,) = (
            each for each in handshaker.want(self._gateway, boot_time(), unix_ns) if isinstance(each, SendHandshake)
        )
        self._udp.sendto(sent.data, self._to)
        try:
            return self._udp.recv(1000)[0] == c.TYPE_RESPONSE
        except TimeoutError:
            return False


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("s") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"ahead": AHEAD, "other": OTHER}) as hub:
        yield hub


@pytest.fixture(scope="module")
def peer(network: Topology, hub: Hub) -> Initiator:
    return Initiator(network, hub)


def up_with(hub: Hub, text: str) -> None:
    """Down, and up again with this file."""
    hub.gateway.down()
    hub.gateway.write_config(text)
    hub.gateway.up()


def lines(hub: Hub) -> list[str]:
    return [line for text in hub.gateway.logs().values() for line in text.splitlines() if "handshake refused" in line]


def test_down_and_up_forget_nothing_and_the_log_says_whom_and_why(hub: Hub, peer: Initiator) -> None:
    until(lambda: peer.is_answered(IN_2100), 5, "an answer to a clock in 2100")
    assert not peer.is_answered(time.time_ns())
    up_with(hub, hub.config)
    for _ in range(3):
        assert not peer.is_answered(time.time_ns())
    in_second_life = until(lambda: lines(hub)[1:], 3, "the line")
    assert len(in_second_life) == 1
    assert AHEAD.keys.public[:10] in in_second_life[0]
    assert "2100-01-01" in in_second_life[0]
    assert "remove the peer and add it again" in in_second_life[0]
    until(lambda: hub.counters()["initiation_replayed"] >= 3, 5, "them to be counted")


def without_the_peer(hub: Hub) -> str:
    header = "[Peer]"
    first, ahead, other = hub.config.split(header)
    assert AHEAD.keys.public in ahead
    return header.join((first, other))


def test_a_peer_taken_out_of_the_file_by_a_reload_is_forgotten(hub: Hub, peer: Initiator) -> None:
    for text in (without_the_peer(hub), hub.config):
        hub.gateway.write_config(text)
        hub.gateway.command("reload", hub.name)
    until(lambda: peer.is_answered(time.time_ns()), 5, "an answer")
    until(lambda: peer.is_answered(IN_2100), 5, "an answer to a clock in 2100")
    assert not peer.is_answered(time.time_ns())


def test_a_peer_that_a_start_does_not_find_in_its_file_is_forgotten(hub: Hub, peer: Initiator) -> None:
    up_with(hub, without_the_peer(hub))
    up_with(hub, hub.config)
    until(lambda: peer.is_answered(time.time_ns()), 5, "an answer")
