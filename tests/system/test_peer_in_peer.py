"""A peer behind another peer of the same interface works, as with wireguard-go; one behind itself is refused in silence.

In B the gateway, in A the peers, all wireguard-go's. `marked` has a default route through a peer behind another, so that its
outer packets carry a mark; `plain` has none.
"""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.hub import Spoke, together
from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import GATEWAY, WgHub, is_ready
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

CARRIERS = {4: Spoke(1, Topology.A4), 6: Spoke(2, f"[{Topology.A6}]")}
BEHIND = {
    (outer, inner): Spoke(10 * outer + inner, (carrier.inner[0], f"[{carrier.inner[1]}]")[inner == 6])
    for outer, carrier in CARRIERS.items()
    for inner in (4, 6)
}
"""By the family of the carrier's outer packets, and of their own."""
DEEP = Spoke(9, BEHIND[4, 4].inner[0])
"""Behind a peer behind a peer."""
EVERYWHERE = Spoke(99, CARRIERS[4].inner[0], allowed_ips=["0.0.0.0/0", "::/0"])
OUTSIDE = "203.0.113.9"

ITSELF = {4: Spoke(3, "10.66.3.2"), 6: Spoke(5, "[fd66:5::2]")}
RING2 = (Spoke(21, "10.66.22.2"), Spoke(22, "10.66.21.2"))
RING3 = (Spoke(31, "[fd66:32::2]"), Spoke(32, "[fd66:33::2]"), Spoke(33, "[fd66:31::2]"))
LOOPS = {"itself": (ITSELF[4],), "itself, IPv6": (ITSELF[6],), "ring of two": RING2, "ring of three, IPv6": RING3}
MTU = 1420
FAR_MTU = MTU - 80
"""wireguard-go's own outer packets may not be cut in pieces."""


def spokes(*more: Spoke) -> dict[str, Spoke]:
    loops = [spoke for ring in LOOPS.values() for spoke in ring]
    return {str(spoke.number): spoke for spoke in (*CARRIERS.values(), *BEHIND.values(), DEEP, *loops, *more)}


@pytest.fixture(scope="module")
def networks() -> Iterator[dict[str, Topology]]:
    made = {"marked": Topology("pm"), "plain": Topology("pp")}
    with together(*made.values()):
        yield made


@pytest.fixture(scope="module")
def hubs(networks: dict[str, Topology], shared_directory: Path) -> Iterator[dict[str, WgHub]]:
    made = {
        "marked": WgHub(networks["marked"].b, shared_directory / "m", spokes(EVERYWHERE), spares=1),
        "plain": WgHub(networks["plain"].b, shared_directory / "p", spokes()),
    }
    with together(*made.values()):
        yield made


@pytest.fixture(params=["marked", "plain"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(networks: dict[str, Topology], kind: str) -> Topology:
    return networks[kind]


@pytest.fixture
def hub(hubs: dict[str, WgHub], kind: str) -> WgHub:
    return hubs[kind]


def carried(hub: WgHub, network: Topology, stack: ExitStack, *behind: Spoke, family: int = 4) -> WireguardGo:
    """The peers in A, a carrier before them; returns the last. The gateway's carrier has no session yet."""
    carrier = stack.enter_context(hub.wireguard_go(CARRIERS[family], network.a))
    # wireguard-go is new each time, and knows no session.
    carrier.set("peer", hub.keys.public, "endpoint", f"{GATEWAY[family]}:{hub.port}")
    assert ping(network.a, CARRIERS[family].gateway_inner[0], timeout=10).received == 1
    return [stack.enter_context(hub.wireguard_go(spoke, network.a, mtu=FAR_MTU)) for spoke in behind][-1]


def kill_and_wait(hub: WgHub, stage: str) -> None:
    """Returns when all is ready again, with another process in its place."""
    before = hub.gateway.kill(stage, signal.SIGKILL)

    def back() -> bool:
        return is_ready(hub.gateway) and hub.gateway.held().get((stage, 0), before) != before

    until(back, 15, f"{stage} to be back")


def initiated(hub: WgHub, spoke: Spoke) -> None:
    """Whatever session the gateway has with this peer is of an earlier one: a handshake is begun anew."""
    peer = spoke.peer()
    hub.set("peer", spoke.keys.public, "remove")
    hub.set("peer", spoke.keys.public, "endpoint", peer.endpoint or "", "allowed-ips", ",".join(peer.allowed_ips))


def expect_no_storm(inside: Capture, requests: int) -> None:
    """Fails if more went through the device than ping's requests, an error for each, and the neighbourhood's own messages.

    The host's messages about its neighbourhood are ICMPv6; ping asks by IPv4.
    """
    seen = Counter("neighbourhood" if frame.data[0] >> 4 == 6 else "IPv4" for frame in inside.frames())
    assert seen["IPv4"] <= 2 * requests, Counter((frame.outgoing, frame.data[9:28].hex()) for frame in inside.frames())
    assert seen["neighbourhood"] < requests, seen


@pytest.mark.parametrize(("family", "inner_family"), BEHIND)
def test_a_peer_behind_another(hub: WgHub, network: Topology, family: int, inner_family: int) -> None:
    spoke, carrier = BEHIND[family, inner_family], CARRIERS[family]
    with (
        ExitStack() as stack,
        Capture(network.b, hub.name) as between,
        Capture(network.b, network.link_b.a_interface) as wire,
    ):
        carried(hub, network, stack, spoke, family=family)
        initiated(hub, spoke)
        assert ping(network.b, spoke.inner[0], count=4).received == 4
        for address in spoke.inner:
            headers = 48 if ":" in address else 28
            assert ping(network.b, address, size=MTU - headers, cut=False).received == 1
            assert ping(network.b, address, size=6000, cut=True).received == 1
        for address in spoke.gateway_inner:
            assert ping(network.a, address, size=FAR_MTU - 48, cut=False).received == 1
        with NumberedStream(network.b, network.a, spoke.inner[0], rate=500, size=MTU - 28) as stream:
            until(lambda: stream.sent >= 200, 10, "a stream to be sent")
            hub.expect_whole(stream.finish())
        assert between.datagrams(spoke.port)
        assert not wire.datagrams(spoke.port)  # on the wire there is only the carrier's tunnel
        assert not wire.contains(stream.marker)
        wire.assert_no_duplicate_counters(carrier.port)
    assert hub.peer(spoke)["endpoint_fault"] == ""


def test_wireguard_go_does_the_same(networks: dict[str, Topology], hubs: dict[str, WgHub]) -> None:
    """It stands where the gateway does, in a network of its own, and is asked for the same pings."""
    like, spoke = hubs["plain"], BEHIND[4, 4]
    with Topology("pj") as network, ExitStack() as stack:
        peers = [each.peer() for each in (CARRIERS[4], spoke)]
        addresses = [f"{each.gateway_inner[0]}/24" for each in (CARRIERS[4], spoke)]
        judge = stack.enter_context(WireguardGo(network.b, like.keys, addresses, peers, like.port))
        for each in (CARRIERS[4], spoke):
            route = (each.networks[0], "dev", judge.interface, "src", each.gateway_inner[0])
            network.b.run("ip", "route", "replace", *route)
            stack.enter_context(like.wireguard_go(each, network.a, mtu=FAR_MTU))
        assert ping(network.b, spoke.inner[0], count=4).received == 4


def test_a_peer_behind_a_peer_behind_a_peer(hub: WgHub, network: Topology) -> None:
    with ExitStack() as stack:
        carried(hub, network, stack, BEHIND[4, 4], DEEP)
        for spoke in (BEHIND[4, 4], DEEP):
            initiated(hub, spoke)
        assert ping(network.b, DEEP.inner[0], count=4, timeout=10).received == 4
        assert ping(network.b, DEEP.inner[0], size=MTU - 28, cut=False).received == 1


def test_a_default_route_through_a_peer_behind_another(networks: dict[str, Topology], hubs: dict[str, WgHub]) -> None:
    """Its own outer packets must not take it."""
    hub, network = hubs["marked"], networks["marked"]
    with ExitStack() as stack:
        peer = carried(hub, network, stack, EVERYWHERE)
        network.a.run("ip", "address", "add", f"{OUTSIDE}/32", "dev", "lo")
        far = ("ping", "-n", "-c", "1", "-W", "5", "-I", EVERYWHERE.gateway_inner[0], OUTSIDE)
        for _ in range(4):
            assert "1 received" in network.b.run(*far).stdout
        assert peer.dump().peers[hub.keys.public].latest_handshake


@pytest.mark.parametrize("loop", LOOPS)
def test_a_peer_behind_itself_is_refused_without_a_storm(hub: WgHub, network: Topology, loop: str) -> None:
    before = hub.counters()["endpoint_in_own_tunnel"]
    with Capture(network.b, hub.name) as inside, Capture(network.b, network.link_b.a_interface) as wire:
        for spoke in LOOPS[loop]:
            assert ping(network.b, spoke.inner[0], count=20, timeout=0.05).received == 0
        until(lambda: hub.counters()["endpoint_in_own_tunnel"] > before, 5, "the handshakes to be refused")
        for spoke in LOOPS[loop]:
            assert "behind the peer itself" in hub.peer(spoke)["endpoint_fault"]
            assert not wire.datagrams(spoke.port)
            assert not inside.datagrams(spoke.port)
        expect_no_storm(inside, requests=20 * len(LOOPS[loop]))
    assert "behind the peer itself" in hub.gateway.command("status", hub.name).stdout.replace("\n   ", " ")
    assert is_ready(hub.gateway)


def test_an_endpoint_that_moves_out_of_a_ring_and_back_into_it(hub: WgHub, network: Topology) -> None:
    first, second = RING2
    with ExitStack() as stack:
        far = [stack.enter_context(hub.wireguard_go(spoke, network.a, mtu=FAR_MTU)) for spoke in RING2]
        assert ping(network.b, first.inner[0], timeout=0.3).received == 0
        hub.set("peer", second.keys.public, "endpoint", f"{Topology.A4}:{second.port}")
        assert ping(network.b, second.inner[0], timeout=10).received == 1
        until(lambda: ping(network.b, first.inner[0]).received, 10, "the one behind it")
        assert hub.peer(first)["endpoint_fault"] == hub.peer(second)["endpoint_fault"] == ""
        # By itself: each speaks from where it is really, or from behind the other.
        far[0].set("peer", hub.keys.public, "endpoint", f"{GATEWAY[4]}:{hub.port}")
        assert ping(network.a, first.gateway_inner[0], timeout=10).received == 1
        until(lambda: hub.peer(first)["endpoint"] == f"{Topology.A4}:{first.port}", 5, "it to be seen outside")
        far[0].set("peer", hub.keys.public, "endpoint", f"{second.gateway_inner[0]}:{hub.port}")
        assert ping(network.a, first.gateway_inner[0], timeout=10).received == 1
        until(
            lambda: hub.peer(first)["endpoint"] == f"{second.inner[0]}:{first.port}",
            5,
            "it to be seen behind the other",
        )
        assert ping(network.b, first.inner[0], count=4).received == 4
        with Capture(network.b, hub.name) as inside:
            hub.set("peer", second.keys.public, "endpoint", f"{first.inner[0]}:{second.port}")
            for spoke in RING2:
                assert ping(network.b, spoke.inner[0], count=20, timeout=0.05).received == 0
            expect_no_storm(inside, requests=20 * len(RING2))


def test_prefixes_that_change_hands_open_a_way_and_close_it(hub: WgHub, network: Topology) -> None:
    spoke, carrier = BEHIND[4, 4], CARRIERS[4]
    theirs = ",".join(spoke.networks)
    with ExitStack() as stack:
        carried(hub, network, stack, spoke)
        initiated(hub, spoke)
        assert ping(network.b, spoke.inner[0], count=4).received == 4
        with Capture(network.b, hub.name) as inside:
            hub.set("peer", spoke.keys.public, "allowed-ips", f"{theirs},{carrier.inner[0]}/32")
            assert ping(network.b, spoke.inner[0], count=20, timeout=0.05).received == 0
            expect_no_storm(inside, requests=20)
        until(lambda: "behind" in hub.peer(spoke)["endpoint_fault"], 5, "status to say so")
        hub.set("peer", carrier.keys.public, "allowed-ips", f"{','.join(carrier.networks)},{carrier.inner[0]}/32")
        assert ping(network.b, spoke.inner[0], count=4, timeout=10).received == 4
        assert hub.peer(spoke)["endpoint_fault"] == ""
        hub.set("peer", carrier.keys.public, "allowed-ips", ",".join(carrier.networks))
        hub.set("peer", spoke.keys.public, "allowed-ips", theirs)


def test_another_mark_changes_nothing(hub: WgHub, network: Topology) -> None:
    with ExitStack() as stack:
        carried(hub, network, stack, BEHIND[4, 4])
        initiated(hub, BEHIND[4, 4])
        for mark in ("0x77", "0"):
            hub.set("fwmark", mark)
            until(lambda: ping(network.b, BEHIND[4, 4].inner[0]).received, 10, "the rules to follow")
            assert ping(network.b, BEHIND[4, 4].inner[0], count=4).received == 4


def test_a_killed_stage_costs_no_more_than_otherwise(networks: dict[str, Topology], hubs: dict[str, WgHub]) -> None:
    """A new conn-service has to ask again, a new key-service to be asked, a new host-service to leave the mark as it is."""
    hub, network, spoke = hubs["marked"], networks["marked"], BEHIND[4, 4]
    with ExitStack() as stack:
        carried(hub, network, stack, spoke)
        initiated(hub, spoke)
        until(lambda: ping(network.b, spoke.inner[0]).received, 10, "the session")
        with Pulse(network.b, network.a, [spoke.inner[0]], rate=400) as pulse:
            for stage in ("conn", "key", "host", "conn"):
                kill_and_wait(hub, stage)
            hub.expect_whole(pulse.finish(), lost=5)
