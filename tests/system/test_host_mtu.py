"""Without `MTU`, what the ways to the peers take less 80, as wg-quick has it; it follows the ways."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.host_lab import Tunnel, mtu_of, reached

from lab.namespaces import Namespace, Topology
from lab.traffic import tcp_fetch
from lab.wait import until
from lab.wireguard_go import SOCKETS, Peer, new_key_pair

pytestmark = pytest.mark.system

SOON = 5.0


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("hm", mtu=1400) as topology:
        yield topology


def set_link(network: Topology, mtu: int) -> None:
    """Of B's uplink, both ends."""
    network.b.run("ip", "link", "set", network.link_b.a_interface, "mtu", str(mtu))
    network.c.run("ip", "link", "set", network.link_b.b_interface, "mtu", str(mtu))


def becomes(namespace: Namespace, mtu: int, interface: str = "wg0") -> None:
    """Until the interface has this MTU."""
    until(lambda: mtu_of(namespace, interface) == mtu, SOON, f"{interface} to have an MTU of {mtu}")


@pytest.mark.parametrize("full", [False, True], ids=["split", "full"])
def test_it_follows_the_way_to_the_peer(network: Topology, lab_directory: Path, full: bool) -> None:
    prefixes = ["0.0.0.0/0"] if full else ["10.66.0.0/16", "10.9.0.0/24"]
    tunnel = Tunnel(network.b, lab_directory, prefixes)
    try:
        with tunnel.gateway, tunnel.other_end(network.a) as far:
            assert mtu_of(network.b, "wg0") == 1320
            network.a.run("ip", "link", "set", far.interface, "mtu", "1320")
            until(lambda: reached(network.b, tunnel.theirs), 10, "the tunnel")
            tcp_fetch(network.b, network.a, tunnel.ours, 300_000, seed=3)
            tcp_fetch(network.a, network.b, tunnel.theirs, 300_000, seed=4)
            # A route to the peer that says another, and a link that is another.
            route = ("ip", "route", "replace", f"{Topology.A4}/32", "via", Topology.CB4)
            network.b.run(*route, "mtu", "1350")
            becomes(network.b, 1270)
            network.b.run("ip", "route", "del", f"{Topology.A4}/32")
            becomes(network.b, 1320)
            set_link(network, 1500)
            becomes(network.b, 1420)
            set_link(network, 9000)
            becomes(network.b, 1420)
            # What somebody sets by hand stays, until the ways are others.
            network.b.run("ip", "link", "set", "wg0", "mtu", "1300")
            tunnel.gateway.supervisorctl("restart", "key-service:*", "host-service:*")
            until(lambda: tunnel.gateway.status()["ready"], 15, "all to be back")
            assert mtu_of(network.b, "wg0") == 1300
            set_link(network, 1400)
            becomes(network.b, 1320)
    finally:
        set_link(network, 1400)


def test_what_the_file_says_holds(network: Topology, lab_directory: Path) -> None:
    tunnel = Tunnel(network.b, lab_directory, ["10.66.0.0/16"], "MTU = 1380")
    with tunnel.gateway:
        assert mtu_of(network.b, "wg0") == 1380
        set_link(network, 1390)
        network.b.run("ip", "address", "add", "10.9.0.77/24", "dev", "wg0")
        assert mtu_of(network.b, "wg0") == 1380
    set_link(network, 1400)


def test_the_greatest_of_several_ways_counts_and_without_any_the_default_routes(
    network: Topology, lab_directory: Path
) -> None:
    network.b.run("ip", "route", "add", "203.0.113.9/32", "via", Topology.CB4, "mtu", "1300")
    try:
        narrow = Tunnel(network.b, lab_directory, ["10.66.0.0/16"], endpoint="203.0.113.9")
        with narrow.gateway:
            assert mtu_of(network.b, "wg0") == 1220
        wide = Tunnel(network.b, lab_directory, ["10.66.0.0/16"], endpoint="203.0.113.9")
        wide.text += Peer(new_key_pair().public, ["10.67.0.0/16"], f"[{Topology.A6}]:9").section() + "\n"
        wide.gateway._config_text = wide.text
        with wide.gateway:
            assert mtu_of(network.b, "wg0") == 1320
        nowhere = Tunnel(network.b, lab_directory, ["10.66.0.0/16"])
        nowhere.text = "\n".join(line for line in nowhere.text.splitlines() if not line.startswith("Endpoint")) + "\n"
        nowhere.gateway._config_text = nowhere.text
        with nowhere.gateway:
            assert mtu_of(network.b, "wg0") == 1320
    finally:
        network.b.run("ip", "route", "del", "203.0.113.9/32")


def test_with_an_ipv6_address_it_is_no_less_than_ipv6_takes(network: Topology, lab_directory: Path) -> None:
    network.b.run("ip", "route", "add", f"{Topology.A4}/32", "via", Topology.CB4, "mtu", "1300")
    try:
        with Tunnel(network.b, lab_directory, ["10.66.0.0/16"], addresses=["10.9.0.1/24", "fd09::1/64"]).gateway:
            assert mtu_of(network.b, "wg0") == 1280
            assert "fd09::1/64" in network.b.run("ip", "address", "show", "wg0").stdout
    finally:
        network.b.run("ip", "route", "del", f"{Topology.A4}/32")


def test_wg_quick_finds_the_same(network: Topology, lab_directory: Path) -> None:
    name = f"swm{os.getpid() % 100000}"
    tunnel = Tunnel(network.b, lab_directory, ["10.66.0.0/16"], name=name)
    tunnel.gateway.write_config(tunnel.text)
    env = {"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go"}
    try:
        network.b.run("wg-quick", "up", tunnel.gateway.config_path, env=env, timeout=30)
        assert mtu_of(network.b, name) == 1320
    finally:
        network.b.run("wg-quick", "down", tunnel.gateway.config_path, env=env, timeout=30, check=False)
        (SOCKETS / f"{name}.sock").unlink(missing_ok=True)
