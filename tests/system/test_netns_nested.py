"""Tunnels in tunnels: one gateway's outer packets through another's, and a peer that would be reached through itself.

B: two gateways, the second's peers have their endpoints in the first's networks; wireguard-go at the other ends, in A.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.capture import Capture
from lab.hub import PORT, Hub, Spoke, together
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import GATEWAY

pytestmark = pytest.mark.system

OUTER = {4: Spoke(1, Topology.A4), 6: Spoke(2, f"[{Topology.A6}]")}
INNER = {
    (outer, inner): Spoke(10 * outer + inner, (spoke.inner[0], f"[{spoke.inner[1]}]")[inner == 6])
    for outer, spoke in OUTER.items()
    for inner in (4, 6)
}
"""By the family of the outer tunnel's packets, and of their own, which go through it."""
ITSELF4, ITSELF6 = Spoke(4, "10.66.4.2"), Spoke(5, "[fd66:5::2]")
"""Their endpoints are their own inner addresses: a handshake with them would have to go through them."""
INNER_MTU = 1420 - 80


class Hubs(NamedTuple):
    outer: Hub
    inner: Hub


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("w") as topology:
        yield topology


@pytest.fixture(scope="module")
def hubs(network: Topology, shared_directory: Path) -> Iterator[Hubs]:
    outer = {str(spoke.number): spoke for spoke in (*OUTER.values(), ITSELF4, ITSELF6)}
    both = Hubs(
        Hub(network.b, shared_directory, outer),
        Hub(
            network.b,
            shared_directory,
            {str(spoke.number): spoke for spoke in INNER.values()},
            f"MTU = {INNER_MTU}",
            name="wg1",
            port=PORT + 99,
        ),
    )
    with together(*both):
        yield both


@pytest.mark.parametrize(("family", "inner_family"), INNER)
def test_a_tunnel_in_a_tunnel(network: Topology, hubs: Hubs, family: int, inner_family: int) -> None:
    spoke, carrier = INNER[family, inner_family], OUTER[family]
    with (
        hubs.outer.wireguard_go(carrier, network.a) as outer_peer,
        hubs.inner.wireguard_go(spoke, network.a, mtu=INNER_MTU),
        Capture(network.b, "wg0") as between,
        Capture(network.b, network.link_b.a_interface) as wire,
    ):
        # wireguard-go is new each time, and knows no session.
        outer_peer.set(
            "peer",
            hubs.outer.keys.public,
            "endpoint",
            f"{GATEWAY[family]}:{hubs.outer.port}",
        )
        assert ping(network.a, carrier.gateway_inner[0]).received == 1
        for address in spoke.inner:
            headers = 48 if ":" in address else 28
            assert ping(network.b, address, size=INNER_MTU - headers, cut=False).received == 1
        for address in spoke.gateway_inner:
            assert ping(network.a, address, size=INNER_MTU - 48, cut=False).received == 1
        with NumberedStream(network.b, network.a, spoke.inner[0], rate=500, size=INNER_MTU - 28) as stream:
            until(lambda: stream.sent >= 200, 10, "a stream to be sent")
            hubs.inner.expect_whole(stream.finish())
        assert {datagram.destination[1] for datagram in between.datagrams(spoke.port)} >= {spoke.port}
        assert not wire.datagrams(spoke.port)  # on the wire there is only the outer tunnel
        assert not wire.contains(stream.marker)
        wire.assert_no_duplicate_counters(carrier.port)


@pytest.mark.parametrize("spoke", [ITSELF4, ITSELF6], ids=["ipv4", "ipv6"])
def test_an_endpoint_in_the_tunnel_makes_no_storm(network: Topology, hubs: Hubs, spoke: Spoke) -> None:
    before = hubs.outer.counters()["endpoint_in_own_tunnel"]
    with Capture(network.b, "wg0") as inside, Capture(network.b, network.link_b.a_interface) as wire:
        assert ping(network.b, spoke.inner[0], count=20, timeout=0.05, interval=0.05).received == 0
        until(lambda: hubs.outer.counters()["endpoint_in_own_tunnel"] > before, 5, "the handshake to be refused")
        assert ping(network.b, spoke.inner[1], timeout=0.3).received == 0
        assert not wire.datagrams(spoke.port)
        assert not inside.datagrams(spoke.port)
        assert len(inside.frames()) <= 21 + 5
    assert hubs.outer.gateway.status()["ready"]
