"""What the access rules drop is counted once, by source and destination, and by key-service for the peer."""

import os
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from itertools import count

import pytest
from tests.services.test_registry import A, made, peer

from host_service import denials, firewall, gateway_table
from host_service.denials import Denials
from key_service import denials as of_peers
from lab.namespaces import Namespace
from stagewire.control.gateway import MAX_PAIRS, AccessClass, Denied, Destination, GatewayRules, PacketsDenied
from stagewire.linux.nft_names import gateway_table_of
from stagewire.proto import prefix
from stagewire.reasons import Reasons

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
PEER, OTHER, GATEWAY = "10.66.0.2", "10.66.0.3", "10.66.0.1"
ICMP_ALONE = Destination(b"", 1, ())
RULES = GatewayRules(access=(AccessClass((prefix.pack(IPv4Network("10.66.0.0/24")),), False, (ICMP_ALONE,)),))

ALLOWED = GatewayRules(access=(AccessClass((prefix.pack(IPv4Network(f"{PEER}/32")),), True, ()), *RULES.access))


class House:
    """A gateway whose interface is a veth, and the peers at its other end."""

    def __init__(self, host: Namespace, peers: Namespace) -> None:
        self.host, self.peers = host, peers
        host.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "far", "netns", peers.name)
        host.run("ip", "address", "add", f"{GATEWAY}/24", "dev", "wg0")
        host.run("ip", "link", "set", "wg0", "up")
        for address in (f"{PEER}/24", f"{OTHER}/24"):
            peers.run("ip", "address", "add", address, "dev", "far")
        peers.run("ip", "link", "set", "far", "up")
        self.said: list[Denied] = []
        self.hears = True
        self._now = count(1000.0, 1000.0)
        self.make()
        self.denials = self.fresh()

    def fresh(self) -> Denials:
        return self.host.call(lambda: Denials("wg0", 0.0))

    def make(self, rules: GatewayRules = RULES) -> None:
        standing = self.host.call(lambda: firewall.find(gateway_table_of("wg0")))
        counted = self.host.call(lambda: denials.standing("wg0"))
        lines = gateway_table.lines("wg0", rules, standing.handle if standing is not None else 0, counted)
        assert self.host.call(lambda: firewall.run("\n".join(lines))) == ""

    def send(self, packets: int, source: str = PEER, to: str = GATEWAY) -> None:
        with self.peers.udp_socket(source) as opened:
            for _ in range(packets):
                opened.sendto(bytes(72), (to, 9))

    def counted(self) -> list[tuple[str, str, int]]:
        """What a new process, or `why`, finds."""
        found = self.host.call(lambda: denials.standing("wg0")).pairs
        return [(str(ip_address(each.source)), str(ip_address(each.destination)), each.packets) for each in found]

    def look(self) -> list[tuple[str, str, int]]:
        def say(message: PacketsDenied) -> bool:
            self.said += message.pairs if self.hears else ()
            return self.hears

        self.said = []
        now = next(self._now)
        self.host.call(lambda: self.denials.look(say, now))
        return [(str(ip_address(each.source)), str(ip_address(each.destination)), each.packets) for each in self.said]


@pytest.fixture
def house() -> Iterator[House]:
    with Namespace("dn") as host, Namespace("dp") as peers:
        yield House(host, peers)


@needs_root
def test_each_packet_is_told_once_whoever_looks_and_whatever_becomes_of_the_table(house: House) -> None:
    assert house.look() == []
    house.send(3)
    house.send(2, OTHER)
    assert house.look() == [(PEER, GATEWAY, 3), (OTHER, GATEWAY, 2)]
    assert house.said[0].size == 100
    assert house.look() == []
    house.send(1)
    house.hears = False
    assert house.look() == []
    house.hears = True
    assert house.look() == [(PEER, GATEWAY, 1)], "it waited for a key-service that hears"
    house.denials = house.fresh()
    assert house.look() == [], "the process before has told of these"
    house.make()
    house.send(2)
    assert house.look() == [(PEER, GATEWAY, 2)], "a new table goes on counting"
    assert (PEER, GATEWAY, 6) in house.counted()
    house.make(ALLOWED)
    assert house.counted() == [(OTHER, GATEWAY, 2)], "the peer may go there now"


@needs_root
def test_many_pairs_are_told_some_at_a_time_the_busiest_first(house: House) -> None:
    house.host.run("ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo")
    house.peers.run("ip", "route", "add", "10.77.0.0/16", "via", GATEWAY)
    for number in range(MAX_PAIRS + 3):
        house.send(2 if number == 7 else 1, to=f"10.77.0.{number}")
    first, second = house.look(), house.look()
    assert first[0] == (PEER, "10.77.0.7", 2)
    assert (len(first), len(second)) == (MAX_PAIRS, 3)
    assert len({destination for _, destination, _ in first + second}) == MAX_PAIRS + 3
    assert house.look() == []


def test_a_peer_gets_the_reason_and_an_example_and_a_stranger_its_own_place() -> None:
    registry, reasons = made(peer(A, "10.66.0.2/32")), Reasons()
    one, stranger, destination = (ip_address(text).packed for text in (PEER, "192.0.2.9", "10.9.0.1"))
    pairs = (
        Denied(one, destination, 5, 84), Denied(stranger, destination, 2, 60), Denied(b"", b"", 3, 0),
        Denied(b"xyz", b"", -9, 0),
    )  # fmt: skip
    of_peers.note(PacketsDenied(pairs), registry, reasons)
    assert reasons["access_denied"] == 10
    found = {(each.public_key, each.place): (each.count, each.size) for each in reasons.take_changed()}
    assert found[A, destination] == (5, 84)
    assert found[b"", stranger] == (2, 60)
