"""`stagewire why` on handshakes that fail: each set-up is broken in one way, shown to be broken, and named first."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.far_peer import FarPeer
from tests.system.whys import broken, counted, first, rules, why, works

from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology, masquerade
from lab.wait import until
from lab.wireguard_go import WireguardGo, new_key_pair
from stagewire.config import decode_key
from stagewire.loop import boot_time
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import SendHandshake

pytestmark = pytest.mark.system

ANNA = Spoke(1, Topology.A4, name="Anna's phone")
THEIR_KEY, OUR_KEY = Spoke(2, Topology.CB4), Spoke(3, Topology.CB4)
PSK_HERE, PSK_THERE = Spoke(4, psk=True), Spoke(5)
BLOCKED_IN, BLOCKED_OUT, NO_WAY_BACK = Spoke(6), Spoke(7, Topology.A4), Spoke(8)
CLOCK, BEHIND_NAT, NEVER = Spoke(9), Spoke(10), Spoke(11)
MOVED, UNNAMED = Spoke(12, Topology.A4), Spoke(13, "gone.example")
INSIDE = Spoke(14, MOVED.inner[0])
SPOKES = [
    ANNA, THEIR_KEY, OUR_KEY, PSK_HERE, PSK_THERE, BLOCKED_IN, BLOCKED_OUT, NO_WAY_BACK, CLOCK, BEHIND_NAT, NEVER, MOVED,
    UNNAMED, INSIDE,
]  # fmt: skip
IN_2100 = 4_102_444_800 * 10**9


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("y") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {str(spoke.number): spoke for spoke in SPOKES}) as gateway:
        yield gateway


# The first ones must come before any stranger has called.


def test_a_peer_that_was_never_set_up(network: Topology, hub: Hub) -> None:
    assert broken(network.b, NEVER.inner[0])
    assert first(hub, NEVER) == "never_called"


def test_a_peer_behind_another_one_that_is_away(network: Topology, hub: Hub) -> None:
    assert broken(network.b, INSIDE.inner[0])
    found = why(hub, INSIDE, "--no-try")["findings"][0]
    assert found["id"] == "carrier_away"
    assert f"lies behind {MOVED.keys.public[:10]}" in found["text"]


def test_a_port_that_this_host_blocks(network: Topology, hub: Hub) -> None:
    with (
        rules(network.b, "input", f"udp dport {PORT} drop"),
        hub.wireguard_go(BLOCKED_IN, network.a, Topology.B4, keepalive=1),
    ):
        assert broken(network.a, BLOCKED_IN.gateway_inner[0])
        assert first(hub, BLOCKED_IN) == "port_blocked_here"


def test_doctor_finds_a_rule_that_blocks_the_port_and_mends_it(network: Topology, hub: Hub) -> None:
    with rules(network.b, "input", f"udp dport {PORT} drop"):
        asked = hub.gateway.command("doctor", hub.name, check=False)
        assert asked.returncode == 4
        assert f"wrong: this host drops datagrams to UDP port {PORT}: a rule in chain c" in asked.stdout
        assert "    nft delete rule inet broken c handle " in asked.stdout
        mended = hub.gateway.command("doctor", "--fix", hub.name, check=False)
        assert mended.stdout.startswith("# nft delete rule inet broken c handle ")
        assert "this host drops datagrams" not in mended.stdout
        assert "drop" not in network.b.run("nft", "list", "table", "inet", "broken").stdout


def test_an_endpoint_that_has_moved(network: Topology, hub: Hub) -> None:
    with WireguardGo(network.a, MOVED.keys, [f"{MOVED.inner[0]}/32"], [], PORT + 500):
        assert broken(network.b, MOVED.inner[0])
        found = why(hub, MOVED)["findings"][0]
        assert found["id"] == "port_closed"
        assert f"the host at {Topology.A4} answers that nothing listens on UDP port {MOVED.port}" in found["text"]
        with rules(network.a, "input", f"udp dport {MOVED.port} drop"):
            found = why(hub, MOVED)["findings"][0]
        assert found["id"] == "no_answer"
        assert f"{Topology.A4}:{MOVED.port}" in found["text"]
        assert "the peer is off or elsewhere, doesn't know our key, or UDP is blocked" in found["text"]
        assert "tcpdump" in found["mend"]


def test_all_is_well_and_a_peer_is_found_by_name_and_by_address(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        for about in (ANNA, "anna's", f"{ANNA.inner[0]}", ANNA.keys.public[:12]):
            found = why(hub, about)
            assert (found["findings"][0]["id"], found["healthy"], found["name"]) == ("well", True, "Anna's phone")
        until(
            lambda: any(f'"peer connected" interface={hub.name} peer="Anna' in log for log in hub.gateway.logs().values()),
            5, "the log to say who came",
        )  # fmt: skip
        said = hub.gateway.command("why", "Anna", hub.name).stdout
        assert said.startswith(
            f"Anna's phone ({ANNA.keys.public[:10]}): all is well from here; the last handshake was "
        )
        begun = time.monotonic()
        assert first(hub, ANNA, "--no-try") == "well"
        assert time.monotonic() - begun < 5  # 0.5 s on a machine that is not busy with other tests
    refused = hub.gateway.command("why", "Zoe", hub.name, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no peer has the name or key 'Zoe'" in refused.stderr


def test_a_name_that_does_not_resolve(network: Topology, hub: Hub) -> None:
    assert broken(network.b, UNNAMED.inner[0])
    assert first(hub, UNNAMED, "--no-try") == "name_not_resolved"


def test_a_port_that_is_blocked_on_the_way_out(network: Topology, hub: Hub) -> None:
    with (
        rules(network.b, "output", f"udp dport {BLOCKED_OUT.port} drop"),
        hub.wireguard_go(BLOCKED_OUT, network.a),
    ):
        assert broken(network.b, BLOCKED_OUT.inner[0])
        assert first(hub, BLOCKED_OUT) == "blocked_out"


@pytest.mark.parametrize("spoke", [PSK_HERE, PSK_THERE], ids=["here", "there"])
def test_a_pre_shared_key_at_one_end(network: Topology, hub: Hub, spoke: Spoke) -> None:
    with hub.wireguard_go(replace(spoke, psk=not spoke.psk), network.a, Topology.B4, keepalive=1):
        assert broken(network.a, spoke.gateway_inner[0])
        assert first(hub, spoke) == "psk_differs"


def test_a_way_back_that_is_blocked(network: Topology, hub: Hub) -> None:
    """Somewhere beyond this host, which can't see it."""
    with (
        rules(network.c, "forward", f"udp sport {PORT} udp dport {NO_WAY_BACK.port} drop"),
        hub.wireguard_go(NO_WAY_BACK, network.a, Topology.B4, keepalive=1),
    ):
        assert broken(network.a, NO_WAY_BACK.gateway_inner[0])
        until(lambda: counted(hub, NO_WAY_BACK, "response_unconfirmed") > 0, 15, "the peer to ask again")
        assert first(hub, NO_WAY_BACK, "--no-try") == "response_unconfirmed"
        assert first(hub, NO_WAY_BACK) == "way_back_blocked"


def test_a_peers_clock_that_went_back(network: Topology, hub: Hub) -> None:
    far = FarPeer(decode_key(hub.keys.public), decode_key(CLOCK.keys.private), Endpoint(bytes(4), 1).pack())
    [future] = [
        effect.data
        for effect in far.handshaker.want(far.ours, boot_time(), IN_2100)
        if isinstance(effect, SendHandshake)
    ]
    with network.a.udp_socket(Topology.A4, CLOCK.port) as opened:
        opened.sendto(future, (Topology.B4, PORT))
        until(lambda: hub.peer(CLOCK)["endpoint"] is not None, 5, "the handshake of the future")
    with hub.wireguard_go(CLOCK, network.a, Topology.B4, keepalive=1):
        assert broken(network.a, CLOCK.gateway_inner[0])
        until(lambda: counted(hub, CLOCK, "initiation_replayed") > 0, 10, "the refusal to be counted")
        assert first(hub, CLOCK, "--no-try") == "clock_back"


def test_a_nat_that_forgets(network: Topology, hub: Hub) -> None:
    nat = masquerade(network.c, network.link_b.b_interface)
    try:
        with hub.wireguard_go(BEHIND_NAT, network.a, Topology.B4):
            assert works(network.a, BEHIND_NAT.gateway_inner[0])
            until(lambda: hub.peer(BEHIND_NAT)["endpoint"] is not None, 5, "the endpoint to be learnt")
            nat.remove()
            nat.forget()
            network.a.run("ip", "route", "add", "blackhole", f"{Topology.B4}/32")  # it sleeps
            assert broken(network.b, BEHIND_NAT.inner[0])
            found = why(hub, BEHIND_NAT)["findings"][0]
            assert (found["id"], "PersistentKeepalive = 25" in found["mend"]) == ("nat_forgot", True)
    finally:
        network.a.run("ip", "route", "del", "blackhole", f"{Topology.B4}/32", check=False)


def test_a_wrong_key_for_the_peer_here(network: Topology, hub: Hub) -> None:
    real = replace(THEIR_KEY, keys=new_key_pair())
    with hub.wireguard_go(real, network.c, Topology.B4, keepalive=1):
        assert broken(network.c, THEIR_KEY.gateway_inner[0])
        until(lambda: real.keys.public in str(hub.gateway.status()["strangers"]), 10, "the stranger to be counted")
        found = why(hub, THEIR_KEY)["findings"][0]
        assert found["id"] == "our_key_for_them"
        assert real.keys.public in found["mend"]


def test_a_wrong_key_for_this_gateway_at_the_peer(network: Topology, hub: Hub) -> None:
    right, hub.keys = hub.keys, new_key_pair()
    try:
        far = hub.wireguard_go(OUR_KEY, network.c, Topology.B4, keepalive=1)
    finally:
        hub.keys = right
    with far:
        assert broken(network.c, OUR_KEY.gateway_inner[0])
        place = f"{Topology.CB4}:{OUR_KEY.port}"
        until(lambda: place in str(hub.gateway.status()["strangers"]), 10, "the stranger to be counted")
        found = why(hub, OUR_KEY)["findings"][0]
        assert found["id"] == "their_key_for_us"
        assert right.public in found["mend"]
        assert why(hub, Topology.CB4)["public_key"] in (OUR_KEY.keys.public, THEIR_KEY.keys.public)


def test_an_interface_that_is_down(network: Topology, hub: Hub) -> None:
    network.b.run("ip", "link", "set", hub.name, "down")
    try:
        assert network.b.run("ping", "-c1", "-W1", ANNA.inner[0], check=False).returncode
        until(lambda: hub.gateway.status()["link_up"] is False, 5, "it to be noticed")
        assert first(hub, ANNA) == "interface_down"
    finally:
        network.b.run("ip", "link", "set", hub.name, "up")


def test_a_stage_that_is_stopped(hub: Hub) -> None:
    """It has no spare here, which would take over."""
    stopped = hub.gateway.kill("conn", 19)
    try:
        until(lambda: first(hub, ANNA, "--no-try") == "service_away", 10, "it to be noticed")
    finally:
        os.kill(stopped, 18)
