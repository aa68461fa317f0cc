"""Tunnels of one host that lead through one another, each with a session: a packet in them must come to an end.

Wireguard-go's is one of them, or all are ours. The sessions come from a better time, when the endpoints lay outside.
Tunnels that lead in one another only look like that, and must carry everything.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from tests.attack.marks import Figure

from lab.hub import PORT, Spoke, together
from lab.namespaces import Namespace, Topology
from lab.traffic import ping
from lab.wait import until
from lab.wg import WgHub
from lab.wireguard_go import Peer, WireguardGo, new_key_pair

pytestmark = [pytest.mark.system, pytest.mark.attack("loop")]

MOST: Final = 70_000
"""Bytes that all tunnels together may carry for one packet."""
WITHIN: Final = 1.0
"""s after which they carry no more."""
QUIET: Final = 0.3
"""s for which they are watched then."""
SPOKES: Final = {
    (place, family): Spoke(10 * place + family, {4: Topology.A4, 6: f"[{Topology.A6}]"}[family])
    for place in (1, 2, 3, 4)
    for family in (4, 6)
}
NOISE: Final = 1000
"""Bytes that hosts say of themselves meanwhile."""
THEIRS: Final = 4
"""The place of wireguard-go's."""
KINDS: Final = {
    "two of ours": (1, 2),
    "ours and wireguard-go's": (1, THEIRS),
    "three of ours": (1, 2, 3),
    "three of ours and wireguard-go's": (1, 2, 3, THEIRS),
}
MTU: Final = 1420
SIZES: Final = {"small": 56, "full": MTU - 28, "cut": 4000}


class Tunnel:
    """One tunnel of the ring: ours or wireguard-go's."""

    def __init__(self, made: WgHub | WireguardGo, spoke: Spoke) -> None:
        self.made, self.spoke = made, spoke
        self.name = made.name if isinstance(made, WgHub) else made.interface

    def lead(self, host: str) -> None:
        self.made.set("peer", self.spoke.keys.public, "endpoint", f"{host}:{self.spoke.port}")


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("lo") as topology:
        yield topology


@pytest.fixture(scope="module")
def hubs(network: Topology, shared_directory: Path) -> Iterator[dict[int, WgHub]]:
    made = {
        place: WgHub(
            network.b, shared_directory / str(place), {str(f): SPOKES[place, f] for f in (4, 6)},
            f"MTU = {MTU}", port=PORT + 100 * place, workers=1,
        )
        for place in (1, 2, 3)
    }  # fmt: skip
    with together(*made.values()):
        yield made


def wireguard_go(network: Topology, spoke: Spoke, stack: ExitStack) -> WireguardGo:
    """Returns wireguard-go in B. Its peer is wireguard-go in A."""
    keys = new_key_pair()
    far = [Peer(keys.public, [f"{spoke.gateway_inner[0]}/32", f"{spoke.gateway_inner[1]}/128"])]
    addresses = [f"{spoke.inner[0]}/32", f"{spoke.inner[1]}/128"]
    near = WireguardGo(network.b, keys, [f"{spoke.gateway_inner[0]}/32"], [spoke.peer()], PORT + 400, MTU)
    stack.enter_context(near)
    far_end = WireguardGo(network.a, spoke.keys, addresses, far, spoke.port, MTU)
    with far_end:
        assert ping(network.b, spoke.inner[0], timeout=10).received == 1
    return near


def ours(network: Topology, hub: WgHub, spoke: Spoke) -> WgHub:
    """Returns a gateway with a new session, of which the other end is gone."""
    with hub.wireguard_go(spoke, network.a, Topology.B4) as far:
        until(lambda: ping(network.a, spoke.gateway_inner[0]).received, 10, "a session")
        key = far.keys.public
        until(lambda: hub.dump().peers[key].endpoint == f"{Topology.A4}:{spoke.port}", 5, "the endpoint to be outside")
    return hub


def carried(here: Namespace, ring: list[Tunnel]) -> int:
    """Counts the bytes that went into all tunnels."""
    paths = [f"/sys/class/net/{tunnel.name}/statistics/tx_bytes" for tunnel in ring]
    return sum(map(int, here.run("cat", *paths).stdout.split()))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_one_packet_ends(network: Topology, hubs: dict[int, WgHub], figure: Figure, kind: str, family: int) -> None:
    places = KINDS[kind]
    spokes = [SPOKES[place, family] for place in places]
    with ExitStack() as stack:
        ring = [
            Tunnel(wireguard_go(network, spoke, stack), spoke)
            if place == THEIRS
            else Tunnel(ours(network, hubs[place], spoke), spoke)
            for place, spoke in zip(places, spokes, strict=True)
        ]
        for tunnel, following in zip(ring, [*ring[1:], ring[0]], strict=True):
            tunnel.lead(following.spoke.inner[0] if family == 4 else f"[{following.spoke.inner[1]}]")
        for name, size in SIZES.items():
            before = carried(network.b, ring)
            assert ping(network.b, spokes[0].inner[0], size=size, timeout=WITHIN, cut=True).received == 0
            after = carried(network.b, ring)
            figure(f"{kind}, IPv{family}, {name}", after - before, "B", most=MOST)
            quiet = time.monotonic() + QUIET
            while time.monotonic() < quiet:
                assert carried(network.b, ring) < after + NOISE
        for tunnel in ring:
            tunnel.lead(Topology.A4 if family == 4 else f"[{Topology.A6}]")


@pytest.mark.parametrize("family", [4, 6])
def test_three_in_one_another_carry_packets_of_any_size(network: Topology, hubs: dict[int, WgHub], family: int) -> None:
    """None has a smaller MTU for that, so what the inner ones seal leaves in pieces, as with wireguard-go."""
    spokes = [SPOKES[place, family] for place in (1, 2, 3)]
    host = [f"{spoke.inner[0]}" if family == 4 else f"[{spoke.inner[1]}]" for spoke in spokes]
    with ExitStack() as stack:
        for place, spoke in enumerate(spokes, 1):
            outside = Topology.B4 if place == 1 else None
            far = stack.enter_context(hubs[place].wireguard_go(spoke, network.a, outside, mtu=MTU))
            if place == 1:
                until(lambda: ping(network.a, spokes[0].gateway_inner[0]).received, 10, "the outermost session")
            else:
                hubs[place].set("peer", far.keys.public, "endpoint", f"{host[place - 2]}:{spoke.port}")
        for size in SIZES.values():
            for address in spokes[2].inner:
                until(lambda a=address, s=size: ping(network.b, a, size=s, cut=True).received, 10, f"{size} bytes")  # type: ignore[misc]
