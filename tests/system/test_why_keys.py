"""`stagewire why` on keys that were replaced or removed, on our own key at a peer, and on peers that were here before."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.whys import broken, why, works

from lab.hub import PORT, Hub, Spoke, configuration
from lab.namespaces import Topology
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, new_key_pair
from stagewire import stats

pytestmark = pytest.mark.system

ROTATED, REMOVED, DISABLED, FRIEND = (
    Spoke(1, Topology.A4, name="Rota", allowed_ips=["10.66.1.2/32"]),
    Spoke(2, Topology.A4, name="Remo"),
    Spoke(3, name="Disa"),
    Spoke(4, name="Friend"),
)
SPOKES = {"1": ROTATED, "2": REMOVED, "3": DISABLED, "4": FRIEND}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("wk") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, SPOKES, f"# stagewire: ClientEndpoint = {Topology.B4}:{PORT}") as gateway:
        own = Peer(gateway.keys.public, ["10.66.9.0/24"], name="Myself").section()
        gateway.gateway.write_config(f"{gateway.config}\n{own}\n")
        gateway.gateway.command("reload", gateway.name)
        yield gateway


def calls_in_vain(network: Topology, hub: Hub, spoke: Spoke) -> None:
    """Waits until the peer has called with a key that nobody has here."""
    assert broken(network.a, spoke.gateway_inner[0])
    until(lambda: spoke.keys.public in str(hub.gateway.status()["strangers"]), 15, "the stranger to be counted")


def test_a_device_with_a_key_that_was_rotated(network: Topology, hub: Hub) -> None:
    new = new_key_pair()
    hub.gateway.command("peer", "rotate", "Rota", "--public-key", new.public, "-i", hub.name)
    with hub.wireguard_go(ROTATED, network.a, Topology.B4, keepalive=1):
        calls_in_vain(network, hub, ROTATED)
        for about in ("Rota", Topology.A4):
            found = why(hub, about, "--no-try")["findings"][0]
            assert found["id"] == "old_key"
            assert "still uses the old key of Rota, which was replaced here at 20" in found["text"]
            assert ROTATED.keys.public not in found["mend"]


def test_a_device_whose_peer_was_removed(network: Topology, hub: Hub) -> None:
    hub.gateway.command("peer", "remove", "Remo", "-i", hub.name)
    found = why(hub, "remo")["findings"][0]
    assert (found["id"], "Remo was removed here at 20" in found["text"]) == ("removed", True)
    with hub.wireguard_go(REMOVED, network.c, Topology.B4, keepalive=1):
        assert broken(network.c, REMOVED.gateway_inner[0])
        until(lambda: REMOVED.keys.public in str(hub.gateway.status()["strangers"]), 15, "the stranger to be counted")
        found = why(hub, Topology.CB4)["findings"][0]
        assert found["id"] == "old_key"
        assert "still uses the key of Remo, which was removed here at 20" in found["text"]
        assert why(hub, "Remo")["findings"] == why(hub, REMOVED.keys.public)["findings"] == [found]


def test_a_peer_with_our_own_key(network: Topology, hub: Hub) -> None:
    for about in ("Myself", hub.keys.public, "10.66.9.2"):
        found = why(hub, about)["findings"][0]
        assert (found["id"], "a gateway can't be its own peer" in found["text"]) == ("own_key", True)
    checked = hub.gateway.command("check", str(hub.gateway.config_path), check=False)
    assert "PublicKey is that of our own PrivateKey" in checked.stderr
    assert "PublicKey is that of our own PrivateKey" in hub.gateway.command("doctor", hub.name, check=False).stdout


def test_a_peer_that_was_disabled_and_enabled(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(DISABLED, network.a, Topology.B4):
        until(lambda: works(network.a, DISABLED.gateway_inner[0]), 15, "the tunnel to work")
        until(lambda: "Disa" in hub.gateway.command("events", hub.name, "--kind", "connected").stdout, 10, "the event")
    hub.gateway.command("peer", "disable", "Disa", "-i", hub.name)
    hub.gateway.command("peer", "enable", "Disa", "-i", hub.name)
    assert broken(network.b, DISABLED.inner[0])
    found = why(hub, "Disa", "--no-try")["findings"][0]
    assert found["id"] == "not_called_since"
    assert f"Z from {Topology.A4}:{DISABLED.port}" in found["text"]


def drops(gateway: Gateway) -> Counter[str]:
    found: Counter[str] = Counter()
    for service in gateway.status()["services"]:
        for name, count in service["counters"].items():
            if stats.kind_of(name) in (stats.DROP, stats.FAILURE):
                found[name] += count
    return found


def test_a_healthy_answer_leaves_no_drop_at_either_end(network: Topology, hub: Hub, lab_directory: Path) -> None:
    here, there = FRIEND.inner[0], FRIEND.gateway_inner[0]
    peer = Peer(hub.keys.public, [f"{there}/32"], f"{Topology.B4}:{PORT}")
    text = configuration(KeyPair(FRIEND.keys.private, FRIEND.keys.public), FRIEND.port, [f"{here}/32"], [peer])
    with Gateway(network.a, "wg7", lab_directory, text) as far:
        until(lambda: works(network.a, there), 15, "the tunnel to work")
        before = drops(hub.gateway), drops(far)
        hub.gateway.command("peer", "set", "Friend", "--allowed-ips", f"{here}/32", "-i", hub.name)
        for _ in range(3):
            found = why(hub, "Friend")
            assert (found["findings"][0]["id"], found["tried"]) == ("well", "answered")
        until(lambda: drops(far) is not None, 3, "the counters")
        assert (drops(hub.gateway) - before[0], drops(far) - before[1]) == (Counter(), Counter())
