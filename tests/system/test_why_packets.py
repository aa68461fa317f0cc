"""`stagewire why` on tunnels whose handshake works and whose packets go nowhere, each broken in one way."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.far_peer import FarPeer
from tests.system.whys import broken, counted, first, rules, why, works

from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Namespace, Topology, masquerade, veth
from lab.wait import until
from lab.wireguard_go import WireguardGo
from stagewire.config import decode_key
from stagewire.proto.constants import INITIATIONS_PER_SECOND
from stagewire.proto.endpoint import Endpoint

pytestmark = pytest.mark.system

SOURCE_HERE, ALLOWED_THERE = Spoke(1), Spoke(2)
NO_FORWARDING, NO_MASQUERADE, NO_WAY_BACK = Spoke(3), Spoke(4), Spoke(5)
BLACK_HOLE, TWO_DEVICES, OVERLAPPED = Spoke(6, Topology.A4), Spoke(7), Spoke(8)
SHARED = Spoke(14)
INTRUDER = Spoke(9, allowed_ips=[f"{OVERLAPPED.inner[0]}/32"])
NO_FORWARDING_6, NOWHERE, HERE = Spoke(11), Spoke(12, "203.0.113.9"), Spoke(13)
STRICT = Spoke(10, allowed_ips=["10.97.0.0/24"])
SPOKES = [
    SOURCE_HERE, ALLOWED_THERE, NO_FORWARDING, NO_MASQUERADE, NO_WAY_BACK, BLACK_HOLE, TWO_DEVICES, OVERLAPPED, INTRUDER,
    STRICT, NO_FORWARDING_6, NOWHERE, HERE, SHARED,
]  # fmt: skip
BEHIND = "10.77.0.2"
"""A host behind the gateway, without a route to the tunnel."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("z") as topology:
        yield topology


@pytest.fixture(scope="module")
def behind(network: Topology) -> Iterator[Namespace]:
    with Namespace("zd") as host:
        veth(network.b, host, ["10.77.0.1/24"], [f"{BEHIND}/24"])
        yield host


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {str(spoke.number): spoke for spoke in SPOKES}) as gateway:
        yield gateway


@contextlib.contextmanager
def connected(network: Topology, hub: Hub, spoke: Spoke, *allowed: str) -> Iterator[WireguardGo]:
    """Runs a peer whose tunnel works."""
    with hub.wireguard_go(spoke, network.a, Topology.B4, allowed_ips=allowed) as far:
        until(lambda: works(network.a, spoke.gateway_inner[0]), 15, "the tunnel to work")
        yield far


@contextlib.contextmanager
def calling_behind(network: Topology, hub: Hub, spoke: Spoke) -> Iterator[None]:
    """Runs a peer that reaches the gateway, and calls the host behind the gateway in vain."""
    with connected(network, hub, spoke, f"{BEHIND}/32", f"{spoke.gateway_inner[0]}/32"):
        assert not broken(network.a, spoke.gateway_inner[0], size=1300)
        until(lambda: hub.peer(spoke)["tx_bytes"] > 1300, 5, "its packets to be counted")
        for _ in range(3):
            assert broken(network.a, BEHIND, size=200)
        until(lambda: hub.peer(spoke)["rx_bytes_alone"] > 500, 5, "its packets to be counted")
        yield


def test_an_address_to_which_no_way_leads(network: Topology, hub: Hub) -> None:
    assert broken(network.b, NOWHERE.inner[0])
    found = why(hub, NOWHERE)["findings"][0]
    assert (found["id"], found["seen"]) == ("unreachable", f"ICMP from {Topology.CB4}")


def test_a_source_that_is_not_allowed_here(network: Topology, hub: Hub) -> None:
    with connected(network, hub, SOURCE_HERE) as far:
        network.a.run("ip", "address", "add", "10.99.1.2/32", "dev", far.interface)
        network.a.run("ping", "-c1", "-W1", "-I", "10.99.1.2", SOURCE_HERE.gateway_inner[0], check=False)
        assert network.a.run(
            *("ping", "-c1", "-W1", "-I", "10.99.1.2", SOURCE_HERE.gateway_inner[0]), check=False
        ).returncode
        until(lambda: counted(hub, SOURCE_HERE, "inner_source_not_allowed") > 0, 5, "the drop to be counted")
        found = why(hub, SOURCE_HERE)["findings"][0]
        assert (found["id"], "add 10.99.1.2 to its AllowedIPs here" in found["mend"]) == ("source_not_allowed", True)
        found = why(hub, "10.99.1.2")["findings"][0]
        assert (found["id"], SOURCE_HERE.keys.public[:10] in found["mend"]) == ("source_not_allowed", True)


def test_an_address_of_ours_that_is_not_allowed_there(network: Topology, hub: Hub) -> None:
    with connected(network, hub, ALLOWED_THERE) as far:
        far.set("peer", hub.keys.public, "allowed-ips", "10.98.0.0/16")
        assert broken(network.b, ALLOWED_THERE.inner[0])
        found = why(hub, ALLOWED_THERE.inner[0])["findings"][0]
        assert (found["id"], "its AllowedIPs contain" in found["mend"]) == ("no_inner_answer", True)


def test_packets_that_this_host_keeps_from_the_tunnel(network: Topology, hub: Hub) -> None:
    address = HERE.inner[0]
    with connected(network, hub, HERE):
        with rules(network.b, "output", f'oifname "{hub.name}" drop'):
            assert broken(network.b, address)
            found = why(hub, address)["findings"][0]
            assert (found["id"], "nft delete rule inet broken c handle" in found["mend"]) == (
                "tunnel_blocked_here",
                True,
            )
        network.b.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        try:
            assert first(hub, address) == "own_address"
        finally:
            network.b.run("ip", "address", "del", f"{address}/32", "dev", "lo")
        assert first(hub, address) == "well"


def test_forwarding_that_is_off(network: Topology, behind: Namespace, hub: Hub) -> None:
    behind.run("ip", "route", "replace", "default", "via", "10.77.0.1")
    network.b.sysctl("net.ipv4.ip_forward", 0)
    with calling_behind(network, hub, NO_FORWARDING):
        found = why(hub, NO_FORWARDING)["findings"][0]
        assert (found["id"], "net.ipv4.ip_forward=1" in found["mend"]) == ("forwarding_off", True)
        found = why(hub, BEHIND)["findings"][0]
        assert (found["id"], "net.ipv4.ip_forward=1" in found["mend"]) == ("forwarding_off", True)
    behind.run("ip", "route", "del", "default")


def test_forwarding_that_is_off_for_one_version(network: Topology, hub: Hub) -> None:
    network.b.sysctl("net.ipv4.ip_forward", 1)
    network.b.sysctl("net.ipv6.conf.all.forwarding", 0)
    with hub.wireguard_go(NO_FORWARDING_6, network.a, Topology.B4, allowed_ips=["fd77::2/128"]):
        for _ in range(3):
            assert broken(network.a, "fd77::2", size=200)
        until(lambda: hub.peer(NO_FORWARDING_6)["rx_bytes_alone"] > 500, 5, "its packets to be counted")
        found = why(hub, NO_FORWARDING_6, "--no-try")["findings"][0]
        assert (found["id"], "forwards no IPv6 packets" in found["text"]) == ("forwarding_off", True)


def test_no_masquerade(network: Topology, behind: Namespace, hub: Hub) -> None:
    network.b.sysctl("net.ipv4.ip_forward", 1)
    network.b.sysctl("net.ipv6.conf.all.forwarding", 1)
    with calling_behind(network, hub, NO_MASQUERADE):
        found = why(hub, NO_MASQUERADE)["findings"][0]
        assert (found["id"], "masquerade" in found["mend"]) == ("no_masquerade", True)


def test_a_return_route_that_is_missing(network: Topology, behind: Namespace, hub: Hub) -> None:
    network.b.sysctl("net.ipv4.ip_forward", 1)
    network.b.sysctl("net.ipv6.conf.all.forwarding", 1)
    nat = masquerade(network.b, network.link_b.a_interface)  # not where the host behind is
    try:
        with calling_behind(network, hub, NO_WAY_BACK):
            found = why(hub, NO_WAY_BACK)["findings"][0]
            assert found["id"] == "nothing_back"
            assert f"a route to {NO_WAY_BACK.networks[0]}" in found["mend"]
    finally:
        nat.remove()


def test_an_mtu_black_hole(network: Topology, hub: Hub) -> None:
    with (
        connected(network, hub, BLACK_HOLE),
        rules(network.c, "forward", f"udp dport {BLACK_HOLE.port} meta length > 1300 drop"),
    ):
        assert works(network.b, BLACK_HOLE.inner[0])
        assert broken(network.b, BLACK_HOLE.inner[0], size=1300)
        found = why(hub, BLACK_HOLE.inner[0])["findings"][0]
        assert found["id"] == "mtu"
        mtu = int(found["mend"].split("MTU = ")[1].split()[0])
        assert 1200 <= mtu <= 1300 - 60 + 4
        assert first(hub, BLACK_HOLE) == "mtu", "also without an address of a host, by a guess"


def test_two_devices_with_one_key(network: Topology, hub: Hub) -> None:
    far = FarPeer(
        decode_key(hub.keys.public),
        decode_key(TWO_DEVICES.keys.private),
        Endpoint(bytes([198, 51, 100, 1]), PORT).pack(),
    )
    with network.a.udp_socket(Topology.A4) as one, network.a.udp_socket(Topology.A4) as other:
        for sender in (one, other) * 3:
            before = hub.peer(TWO_DEVICES)["rx_bytes"]
            sender.sendto(far.initiation(), (Topology.B4, PORT))
            until(lambda at=before: hub.peer(TWO_DEVICES)["rx_bytes"] > at, 5, "the handshake")  # type: ignore[misc]
            # The gateway refuses the next initiation within this time, counted from a clock that may be a turn old.
            again = time.monotonic() + 2 / INITIATIONS_PER_SECOND
            until(lambda at=again: time.monotonic() > at, 5, "another initiation to be welcome")  # type: ignore[misc]
        # Neither device keeps the session for long: the other takes it.
        until(lambda: counted(hub, TWO_DEVICES, "endpoint_contested") >= 2, 5, "it to be counted")
        assert first(hub, TWO_DEVICES, "--no-try") == "two_devices"


def test_two_real_devices_with_one_key(network: Topology, hub: Hub) -> None:
    with (
        hub.wireguard_go(SHARED, network.a, Topology.B4, keepalive=1),
        hub.wireguard_go(SHARED, network.c, Topology.B4, keepalive=1),
    ):
        until(lambda: counted(hub, SHARED, "endpoint_contested") >= 2, 20, "both to be heard")
        assert broken(network.a, SHARED.gateway_inner[0]) or broken(network.c, SHARED.gateway_inner[0])
        assert first(hub, SHARED) == "two_devices"


def test_allowed_ips_that_overlap(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(OVERLAPPED, network.a, Topology.B4, keepalive=1):
        network.a.run("ping", "-c2", "-W1", OVERLAPPED.gateway_inner[0], check=False)
        until(lambda: hub.peer(OVERLAPPED)["last_handshake_unix_s"] is not None, 10, "the handshake")
        assert broken(network.b, OVERLAPPED.inner[0])
        found = why(hub, OVERLAPPED)["findings"]
        assert found[0]["id"] == "overlap"
        assert INTRUDER.keys.public[:10] in str(found)
        found = why(hub, OVERLAPPED.inner[0])["findings"]
        assert [each["id"] for each in found[:2]] == ["overlap", "never_called"]


def test_a_strict_reverse_path_filter(network: Topology, hub: Hub) -> None:
    with connected(network, hub, STRICT) as far:
        network.a.run("ip", "address", "add", "10.97.0.2/32", "dev", far.interface)
        network.b.run("ip", "route", "add", "10.97.0.2/32", "via", Topology.CB4)
        network.b.sysctl("net.ipv4.conf.all.rp_filter", 1)
        try:
            pinged = ("ping", "-c1", "-W1", "-I", "10.97.0.2", STRICT.gateway_inner[0])
            assert network.a.run(*pinged, check=False).returncode
            assert first(hub, "10.97.0.2") == "rp_filter"
        finally:
            network.b.sysctl("net.ipv4.conf.all.rp_filter", 0)
            network.b.run("ip", "route", "del", "10.97.0.2/32")
