"""Handshakes with wireguard-go: either side first, over either family, with pre-shared keys, and those that must fail."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, WireguardGo, new_key_pair

pytestmark = pytest.mark.system

SPOKES = {
    "we over IPv4": Spoke(1, Topology.A4),
    "we over IPv6": Spoke(2, f"[{Topology.A6}]"),
    "they over IPv4": Spoke(3),
    "they over IPv6": Spoke(4),
    "we with a pre-shared key": Spoke(5, Topology.A4, psk=True),
    "they with a pre-shared key": Spoke(6, psk=True),
    "another pre-shared key": Spoke(7, Topology.A4, psk=True),
    "steady": Spoke(8, Topology.A4),
}
GATEWAY = {4: Topology.B4, 6: f"[{Topology.B6}]"}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("h") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, SPOKES) as hub:
        yield hub


def assert_passes_everything(network: Topology, hub: Hub, spoke: Spoke, *, we_initiate: bool) -> None:
    """Both inner families, both ways, small packets and large; the first packet makes the handshake."""
    ours, theirs = (network.b, spoke.inner), (network.a, spoke.gateway_inner)
    for namespace, addresses in (ours, theirs) if we_initiate else (theirs, ours):
        for address in addresses:
            for size in (56, 1300):
                report = ping(namespace, address, count=3, size=size)
                assert report.received == 3, report.output


@pytest.mark.parametrize("family", [4, 6])
def test_we_initiate(network: Topology, hub: Hub, family: int) -> None:
    spoke = SPOKES[f"we over IPv{family}"]
    with hub.wireguard_go(spoke, network.a) as peer:
        assert_passes_everything(network, hub, spoke, we_initiate=True)
        assert "Received handshake initiation" in peer.logs()
        assert "Sending handshake initiation" not in peer.logs()
        seen = peer.dump().peers[hub.keys.public]
        assert seen.endpoint == f"{GATEWAY[family]}:{PORT}"
        assert abs(hub.peer(spoke)["last_handshake_unix_s"] - seen.latest_handshake) < 2


@pytest.mark.parametrize("family", [4, 6])
def test_they_initiate(network: Topology, hub: Hub, family: int) -> None:
    spoke = SPOKES[f"they over IPv{family}"]
    assert hub.peer(spoke)["endpoint"] is None
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]) as peer:
        assert_passes_everything(network, hub, spoke, we_initiate=False)
        assert "Received handshake response" in peer.logs()
        assert "Received handshake initiation" not in peer.logs()
        state = hub.peer(spoke)
        where = Topology.A4 if family == 4 else f"[{Topology.A6}]"
        assert state["endpoint"] == f"{where}:{spoke.port}"
        assert abs(state["last_handshake_unix_s"] - peer.dump().peers[hub.keys.public].latest_handshake) < 2


def test_we_initiate_with_a_pre_shared_key(network: Topology, hub: Hub) -> None:
    spoke = SPOKES["we with a pre-shared key"]
    with hub.wireguard_go(spoke, network.a) as peer:
        assert_passes_everything(network, hub, spoke, we_initiate=True)
        assert "Received handshake initiation" in peer.logs()


def test_they_initiate_with_a_pre_shared_key(network: Topology, hub: Hub) -> None:
    spoke = SPOKES["they with a pre-shared key"]
    with hub.wireguard_go(spoke, network.a, GATEWAY[4]) as peer:
        assert_passes_everything(network, hub, spoke, we_initiate=False)
        assert "Received handshake response" in peer.logs()


@contextlib.contextmanager
def steady_traffic(network: Topology, hub: Hub) -> Iterator[None]:
    """Another peer's packets, both ways, none of which may get lost meanwhile."""
    spoke = SPOKES["steady"]
    with hub.wireguard_go(spoke, network.a, GATEWAY[4]):
        assert ping(network.a, spoke.gateway_inner[0]).received == 1
        handshake = hub.peer(spoke)["last_handshake_unix_s"]
        with (
            NumberedStream(network.a, network.b, spoke.gateway_inner[0], rate=200) as inward,
            NumberedStream(network.b, network.a, spoke.inner[1], rate=200) as outward,
        ):
            yield
            for stream in (inward, outward):
                until(lambda stream=stream: stream.sent > 200, 10, "the steady stream to flow")  # type: ignore[misc]
                hub.expect_whole(stream.finish())
        assert hub.peer(spoke)["last_handshake_unix_s"] == handshake


def test_another_pre_shared_key_yields_no_session(network: Topology, hub: Hub) -> None:
    spoke = SPOKES["another pre-shared key"]
    before = hub.counters()
    with steady_traffic(network, hub), hub.wireguard_go(spoke, network.a, GATEWAY[4]) as peer:
        peer.set("peer", hub.keys.public, "preshared-key", "/dev/stdin", input=SPOKES["steady"].preshared_key)
        # Each side initiates: we see that the response isn't authentic, and they do.
        assert ping(network.b, spoke.inner[0], timeout=0.5).received == 0
        assert ping(network.a, spoke.gateway_inner[0], timeout=0.5).received == 0
        until(lambda: hub.counters()["response_not_authentic"] > before["response_not_authentic"], 5, "the failure")
        assert hub.peer(spoke)["last_handshake_unix_s"] is None
        assert peer.dump().peers[hub.keys.public].latest_handshake == 0


@contextlib.contextmanager
def stranger(network: Topology, keys: KeyPair, gateway: str) -> Iterator[WireguardGo]:
    """Somebody on the peers' side who knows the gateway by this public key, and has sent it an initiation."""
    to_gateway = Peer(gateway, ["10.67.0.1/32"], f"{Topology.B4}:{PORT}")
    with WireguardGo(network.a, keys, ["10.67.0.2/32"], [to_gateway], PORT + 99) as peer:
        assert ping(network.a, "10.67.0.1", timeout=0.5).received == 0
        assert "Sending handshake initiation" in peer.logs()
        yield peer
        assert "Received handshake response" not in peer.logs()


def test_a_key_we_do_not_know_is_counted_and_not_answered(network: Topology, hub: Hub) -> None:
    before = hub.counters()
    with steady_traffic(network, hub), stranger(network, new_key_pair(), hub.keys.public):
        until(lambda: hub.counters()["unknown_peer"] > before["unknown_peer"], 5, "the stranger to be counted")


def test_who_does_not_know_our_key_does_not_pass_the_gate(network: Topology, hub: Hub) -> None:
    before = hub.counters()
    keys = SPOKES["they over IPv4"].keys
    with steady_traffic(network, hub), stranger(network, keys, new_key_pair().public):
        until(lambda: hub.counters()["bad_mac1"] > before["bad_mac1"], 5, "the wrong mac1 to be counted")
