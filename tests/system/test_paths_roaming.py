"""Either side moves, or the NAT between them does: traffic goes on, and the endpoint follows.

A, behind C: wireguard-go's side, and a gateway of ours that keeps itself reachable. B: the gateway in the open.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.hub import Hub, Spoke, together
from lab.namespaces import Namespace, Nat, Topology, masquerade
from lab.traffic import NumberedStream, ping
from lab.wait import until

pytestmark = pytest.mark.system

PORT_CHANGES, ADDRESS_CHANGES, WE_MOVE = Spoke(1), Spoke(2), Spoke(3, Topology.A4)
KEPT, UNKEPT, REBOUND = Spoke(4), Spoke(5), Spoke(6)
OURS_KEPT = Spoke(7, Topology.B4, keepalive=1)
MAPPING_LIFETIME = 2
"""s that the NAT remembers a flow without packets."""


class Hubs(NamedTuple):
    public: Hub
    behind: Hub


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("m") as topology:
        yield topology


@pytest.fixture(scope="module")
def hubs(network: Topology, shared_directory: Path) -> Iterator[Hubs]:
    spokes = (PORT_CHANGES, ADDRESS_CHANGES, WE_MOVE, KEPT, UNKEPT, REBOUND)
    both = Hubs(
        Hub(network.b, shared_directory / "b", {str(spoke.number): spoke for spoke in spokes}),
        Hub(network.a, shared_directory / "a", {"kept": OURS_KEPT}, name="wg1"),
    )
    with together(*both):
        yield both


@contextlib.contextmanager
def flowing(sender: Namespace, receiver: Namespace, destination: str) -> Iterator[NumberedStream]:
    """A stream that goes on when the block has ended, after what the change itself has cost."""
    with NumberedStream(sender, receiver, destination, rate=200) as stream:
        until(lambda: stream.received > 20, 10, "the stream to flow")
        yield stream
        at = stream.received
        until(lambda: stream.received > at + 100, 10, "the stream to go on")
        report = stream.finish()
        assert report.duplicates == 0
        assert report.lost < 200


def test_the_peers_port_changes(network: Topology, hubs: Hubs) -> None:
    with hubs.public.wireguard_go(PORT_CHANGES, network.a, Topology.B4) as peer:
        assert ping(network.a, PORT_CHANGES.gateway_inner[0]).received == 1
        assert hubs.public.peer(PORT_CHANGES)["endpoint"] == f"{Topology.A4}:{PORT_CHANGES.port}"
        handshake = hubs.public.peer(PORT_CHANGES)["last_handshake_unix_s"]
        with (
            flowing(network.b, network.a, PORT_CHANGES.inner[0]),
            flowing(network.a, network.b, PORT_CHANGES.gateway_inner[0]),
        ):
            peer.set("listen-port", "40404")
        assert hubs.public.peer(PORT_CHANGES)["endpoint"] == f"{Topology.A4}:40404"
        assert hubs.public.peer(PORT_CHANGES)["last_handshake_unix_s"] == handshake


def test_the_peers_address_changes_and_its_family(network: Topology, hubs: Hubs) -> None:
    moved = other_address(network.a, network.link_a.a_interface, Topology.A4, "192.0.2.77", Topology.CA4)
    with (
        contextlib.ExitStack() as at_the_end,
        hubs.public.wireguard_go(ADDRESS_CHANGES, network.a, Topology.B4) as peer,
    ):
        assert ping(network.a, ADDRESS_CHANGES.gateway_inner[0]).received == 1
        with (
            flowing(network.b, network.a, ADDRESS_CHANGES.inner[0]),
            flowing(network.a, network.b, ADDRESS_CHANGES.gateway_inner[0]),
        ):
            at_the_end.enter_context(moved)
            # It would stay with an address that is gone until it next doubts the session; so it is told again.
            peer.set("peer", hubs.public.keys.public, "endpoint", f"{Topology.B4}:{hubs.public.port}")
            expect_endpoint(hubs.public, ADDRESS_CHANGES, f"192.0.2.77:{ADDRESS_CHANGES.port}")
        peer.set("peer", hubs.public.keys.public, "endpoint", f"[{Topology.B6}]:{hubs.public.port}")
        assert ping(network.a, ADDRESS_CHANGES.gateway_inner[0], count=2).received == 2
        expect_endpoint(hubs.public, ADDRESS_CHANGES, f"[{Topology.A6}]:{ADDRESS_CHANGES.port}")
        assert ping(network.b, ADDRESS_CHANGES.inner[1], count=2).received == 2


def expect_endpoint(hub: Hub, spoke: Spoke, endpoint: str) -> None:
    until(lambda: hub.peer(spoke)["endpoint"] == endpoint, 5, f"the endpoint to be {endpoint}")


@contextlib.contextmanager
def other_address(namespace: Namespace, interface: str, old: str, new: str, router: str) -> Iterator[None]:
    """Takes an IPv4 address from an interface and gives it another, and back again."""
    namespace.sysctl(f"net.ipv4.conf.{interface}.promote_secondaries", 1)

    def exchange(old: str, new: str) -> None:
        namespace.run("ip", "address", "add", f"{new}/24", "dev", interface)
        namespace.run("ip", "address", "del", f"{old}/24", "dev", interface)
        namespace.run("ip", "route", "replace", "default", "via", router)

    exchange(old, new)
    try:
        yield
    finally:
        exchange(new, old)


def test_our_address_changes(network: Topology, hubs: Hubs) -> None:
    with hubs.public.wireguard_go(WE_MOVE, network.a, Topology.B4) as peer:
        assert ping(network.b, WE_MOVE.inner[0]).received == 1
        with (
            flowing(network.b, network.a, WE_MOVE.inner[0]),
            flowing(network.a, network.b, WE_MOVE.gateway_inner[0]),
            other_address(network.b, network.link_b.a_interface, Topology.B4, "198.51.100.77", Topology.CB4),
        ):
            public = hubs.public.keys.public
            moved = f"198.51.100.77:{hubs.public.port}"
            until(lambda: peer.dump().peers[public].endpoint == moved, 5, "wireguard-go to follow us")
        assert hubs.public.peer(WE_MOVE)["endpoint"] == f"{Topology.A4}:{WE_MOVE.port}"
        assert ping(network.b, WE_MOVE.inner[1]).received == 1


@contextlib.contextmanager
def nat(network: Topology) -> Iterator[Nat]:
    """C hides A, and soon forgets flows that rest."""
    nat = masquerade(network.c, network.link_b.b_interface)
    for timeout in ("udp_timeout", "udp_timeout_stream"):
        network.c.sysctl(f"net.netfilter.nf_conntrack_{timeout}", MAPPING_LIFETIME)
    try:
        yield nat
    finally:
        nat.remove()
        nat.forget()


def mappings(network: Topology, port: int) -> str:
    """The NAT's flows from this port."""
    table = network.c.call(Path("/proc/thread-self/net/nf_conntrack").read_text)
    return "\n".join(line for line in table.splitlines() if f"sport={port} " in line)


def test_keepalives_hold_the_nat_open(network: Topology, hubs: Hubs) -> None:
    """Three peers behind NAT rest until the mapping of the one without keepalives is gone; the others are reachable."""
    with (
        nat(network),
        hubs.public.wireguard_go(KEPT, network.a, Topology.B4, keepalive=1),
        hubs.public.wireguard_go(UNKEPT, network.a, Topology.B4),
        hubs.behind.wireguard_go(OURS_KEPT, network.b),
    ):
        for spoke in (KEPT, UNKEPT):
            assert ping(network.a, spoke.gateway_inner[0]).received == 1
        assert mappings(network, UNKEPT.port)
        # Ours needs no packet to begin; it has been trying, every 5 s, since before there was anybody to answer.
        until(lambda: hubs.behind.peer(OURS_KEPT)["last_handshake_unix_s"], 10, "our own keepalive to make a session")
        assert hubs.public.peer(KEPT)["endpoint"].startswith(f"{Topology.CB4}:")
        until(lambda: not mappings(network, UNKEPT.port), 15, "the NAT to forget who is silent")
        assert ping(network.b, UNKEPT.inner[0], timeout=0.5).received == 0
        for address in (*KEPT.inner, *OURS_KEPT.gateway_inner):
            assert ping(network.b, address, count=2).received == 2


def test_the_nat_gives_another_port(network: Topology, hubs: Hubs) -> None:
    with nat(network) as between, hubs.public.wireguard_go(REBOUND, network.a, Topology.B4):
        for port in (41001, 41002):
            between.rebind(port)
            assert ping(network.a, REBOUND.gateway_inner[0]).received == 1
            expect_endpoint(hubs.public, REBOUND, f"{Topology.CB4}:{port}")
            assert ping(network.b, REBOUND.inner[1]).received == 1
