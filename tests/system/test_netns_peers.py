"""What peers may and may not do: whose packets are delivered, which keys are spoken to, where an endpoint may lie.

B: the gateway, set by `wg`; wireguard-go at the other ends, in A.
"""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import WgHub
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

FILTERED = {4: Spoke(1), 6: Spoke(2)}
WIDE = Spoke(3, Topology.A4, allowed_ips=["10.70.0.0/16", "fd70::/32"])
NARROW = Spoke(4, f"[{Topology.A6}]", allowed_ips=["10.70.1.0/24", "10.70.1.128/25", "fd70:0:1::/48"])
LOOPED = {4: Spoke(5, Topology.A4), 6: Spoke(6, f"[{Topology.A6}]")}
LATER = {4: Spoke(7, Topology.A4), 6: Spoke(8, f"[{Topology.A6}]")}
GATEWAY = {4: Topology.B4, 6: f"[{Topology.B6}]"}
STRANGER = ("10.99.0.9", "fd99::9")
"""Inner addresses that nobody is allowed."""
LOW_ORDER = (
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
)
"""Points on the curve and its twist from which no secret comes, whatever our key."""
NOWHERE, NOWHERE_PORT = (Topology.CB4, f"[{Topology.CB6}]"), 1111
"""Where nobody listens, but whoever asks is heard."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("k") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    spokes = [*FILTERED.values(), WIDE, NARROW, *LATER.values(), *LOOPED.values()]
    with WgHub(network.b, shared_directory, {str(spoke.number): spoke for spoke in spokes}) as hub:
        yield hub


def endpoint_of(hub: WgHub, spoke: Spoke) -> str | None:
    return hub.dump().peers[spoke.keys.public].endpoint


@pytest.mark.parametrize("family", [4, 6])
def test_what_comes_from_anothers_address_is_not_delivered_but_the_peer_has_moved(
    network: Topology, hub: WgHub, family: int
) -> None:
    spoke = FILTERED[family]
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]) as peer, Capture(network.b, hub.name) as delivered:
        network.a.run("ip", "address", "add", f"{STRANGER[0]}/32", "dev", peer.interface)
        network.a.run("ip", "address", "add", f"{STRANGER[1]}/128", "dev", peer.interface, "nodad")
        assert ping(network.a, spoke.gateway_inner[0]).received == 1
        for port, source, address in zip((40404, 40405), STRANGER, spoke.gateway_inner, strict=True):
            refused = hub.counters()["inner_source_not_allowed"]
            peer.set("listen-port", str(port))
            sent = network.a.udp_socket(source)
            sent.sendto(b"not from here", (address, 9))
            until(lambda: hub.counters()["inner_source_not_allowed"] > refused, 5, "the packet to be refused")  # noqa: B023
            host = f"[{Topology.A6}]" if family == 6 else Topology.A4
            assert endpoint_of(hub, spoke) == f"{host}:{port}"
        assert not delivered.contains(b"not from here")
        for address in spoke.inner:  # by where it is now
            assert ping(network.b, address).received == 1


def test_the_longest_of_overlapping_prefixes_says_whose_an_address_is(network: Topology, hub: WgHub) -> None:
    of_wide, of_narrow = ("10.70.2.1", "fd70:0:2::1"), ("10.70.1.1", "10.70.1.200", "fd70:0:1::1")
    with hub.wireguard_go(WIDE, network.a) as wide, hub.wireguard_go(NARROW, network.a) as narrow:
        for peer, addresses in ((wide, of_wide), (narrow, of_narrow)):
            for address in addresses:
                network.a.run("ip", "address", "add", address, "dev", peer.interface)
        # Each answers only for what is sent to it: both have all addresses, being in one namespace.
        for spoke, peer, addresses in ((WIDE, wide, of_wide), (NARROW, narrow, of_narrow)):
            assert ping(network.b, spoke.inner[0]).received == 1
            for address in addresses:
                sent = received_by(peer, hub)
                network.b.udp_socket("::" if ":" in address else "0.0.0.0").sendto(bytes(500), (address, 9))
                until(lambda: received_by(peer, hub) >= sent + 500, 5, f"{address} to be the peer's")  # noqa: B023
        # And may not send from what is the other's, though a shorter prefix of its own covers it.
        refused = hub.counters()["inner_source_not_allowed"]
        network.a.run("ip", "route", "replace", WIDE.gateway_inner[0], "dev", wide.interface, "src", of_narrow[0])
        network.a.udp_socket(of_narrow[0]).sendto(b"whose?", (WIDE.gateway_inner[0], 9))
        until(lambda: hub.counters()["inner_source_not_allowed"] == refused + 1, 5, "the packet to be refused")
        # When the longer one goes, the shorter holds.
        left = ",".join(NARROW.networks)
        hub.set("peer", NARROW.keys.public, "allowed-ips", left)
        sent = received_by(wide, hub)
        network.b.udp_socket().sendto(bytes(500), (of_narrow[1], 9))
        until(lambda: received_by(wide, hub) >= sent + 500, 5, "the address to be the other's now")


@pytest.mark.parametrize("family", [4, 6])
def test_a_default_route_allowed_later_does_not_cost_the_host_its_own(
    network: Topology, hub: WgHub, family: int
) -> None:
    """There is no mark by then, so that our own outer packets would follow it."""
    later = LATER[family]
    before = [network.b.run("ip", family, "route", "show", "default").stdout for family in ("-4", "-6")]
    with hub.wireguard_go(later, network.a):
        assert ping(network.b, later.inner[0]).received == 1
        hub.set(
            "peer", later.keys.public, "allowed-ips", ",".join([*later.networks, "0.0.0.0/0", "::/0", "10.72.0.0/16"])
        )
        until(lambda: network.b.run("ip", "route", "show", "10.72.0.0/16").stdout, 5, "the other route")
        assert [network.b.run("ip", family, "route", "show", "default").stdout for family in ("-4", "-6")] == before
        assert ping(network.b, later.inner[1]).received == 1
        hub.set("peer", later.keys.public, "allowed-ips", ",".join(later.networks))
        until(lambda: not network.b.run("ip", "route", "show", "10.72.0.0/16").stdout, 5, "the other route to go")


def received_by(peer: WireguardGo, hub: WgHub) -> int:
    return peer.dump().peers[hub.keys.public].received


def test_a_peer_with_our_own_key_or_one_of_low_order_is_never_spoken_to(network: Topology, hub: WgHub) -> None:
    own = hub.wg("show", hub.name, "public-key").stdout.strip()
    with Capture(network.b, network.link_b.a_interface) as wire:
        for number, key in enumerate((*LOW_ORDER, own)):
            host = NOWHERE[number % 2]
            prefixes = f"10.71.{number}.0/24,fd71:{number}::/64"
            options = ("persistent-keepalive", "1", "endpoint", f"{host}:{NOWHERE_PORT}", "allowed-ips", prefixes)
            hub.wg("set", hub.name, "peer", key, *options, check=False)
            network.b.run("ip", "route", "replace", f"10.71.{number}.0/24", "dev", hub.name)
        try:
            assert own not in hub.dump().peers
            until(lambda: hub.counters()["low_order_key"] >= len(LOW_ORDER), 5, "each key to be refused")
            for number in range(len(LOW_ORDER)):
                assert ping(network.b, f"10.71.{number}.1", timeout=0.05).received == 0
            refused = hub.counters()["low_order_key"]
            until(lambda: hub.counters()["low_order_key"] > refused, 5, "one more to be tried")
            states = hub.dump().peers
            assert [states[key].sent for key in LOW_ORDER if key in states] == [0] * len(set(LOW_ORDER) & set(states))
        finally:
            for key in (*LOW_ORDER, own):
                hub.set("peer", key, "remove")
        assert wire.datagrams(NOWHERE_PORT) == []
        assert wire.dropped == 0


def test_keys_read_back_clamped(hub: WgHub) -> None:
    for raw in (b"\xff" * 32, bytes(32), b"\x01" + bytes(30) + b"\x80"):
        clamped = bytes([raw[0] & 248, *raw[1:31], (raw[31] & 127) | 64])
        hub.set("private-key", "/dev/stdin", data=base64.b64encode(raw).decode() + "\n")
        shown = hub.wg("show", hub.name, "private-key").stdout.strip()
        # All zeros is how `wg` says that there is to be none.
        assert shown == ("(none)" if not any(raw) else base64.b64encode(clamped).decode())
        if any(raw):
            derived = hub.wg("pubkey", data=base64.b64encode(clamped).decode()).stdout
            assert hub.wg("show", hub.name, "public-key").stdout == derived
    hub.set("private-key", "/dev/stdin", data=hub.keys.private + "\n")
    assert hub.wg("show", hub.name, "public-key").stdout.strip() == hub.keys.public


@pytest.mark.parametrize("family", [4, 6])
def test_an_endpoint_moved_into_its_own_tunnel_makes_no_storm(network: Topology, hub: WgHub, family: int) -> None:
    """With a session, so that each packet would be wrapped, come back by the tunnel, and be wrapped again."""
    spoke = LOOPED[family]
    inside = spoke.inner[0] if family == 4 else f"[{spoke.inner[1]}]"
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]), Capture(network.b, hub.name) as tunnel:
        assert ping(network.b, spoke.inner[0]).received == 1
        failed, before = hub.counters()["endpoint_in_own_tunnel"], len(tunnel.frames())
        sent = hub.dump().peers[spoke.keys.public].sent
        hub.set("peer", spoke.keys.public, "endpoint", f"{inside}:{spoke.port}")
        with NumberedStream(network.b, network.a, spoke.inner[0], rate=500, size=1392) as stream:
            until(lambda: stream.sent >= 100, 5, "packets to be sent")
            until(lambda: hub.counters()["endpoint_in_own_tunnel"] > failed, 5, "them to be refused")
            report = stream.finish()
        assert report.received == 0
        assert len(tunnel.frames()) - before <= report.sent + 20
        assert not tunnel.datagrams(spoke.port)
        assert hub.dump().peers[spoke.keys.public].sent - sent <= (report.sent + 20) * 1500
        # It is found again when it speaks.
        assert ping(network.a, spoke.gateway_inner[0]).received == 1
        assert ping(network.b, spoke.inner[1]).received == 1
        assert endpoint_of(hub, spoke) != f"{inside}:{spoke.port}"
