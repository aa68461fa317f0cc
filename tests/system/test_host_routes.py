"""Routes of others are never replaced: `up` refuses in one line, `wg set` warns; Debian's wg-quick beside it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.host_lab import Tunnel, network_of, refused

from lab.namespaces import Namespace, Topology
from lab.traffic import ping
from lab.wait import until
from lab.wireguard_go import SOCKETS

pytestmark = pytest.mark.system

V4, V6 = "10.77.0.0/24", "fd77::/64"
LAN4 = ["address", "add", "10.77.0.1/24", "dev", "e0"]
LAN6 = ["address", "add", "fd77::1/64", "dev", "e0", "nodad"]
STATIC4 = ["route", "add", V4, "via", "192.0.2.2"]
STATIC6 = ["-6", "route", "add", V6, "via", "2001:db8::2"]
BLACKHOLE = ["route", "add", "blackhole", V4]
MARKED = ["route", "add", "default", "dev", "e0", "table", "4660"]
TABLED = ["route", "add", V4, "dev", "e0", "table", "123"]
ECMP = ["route", "add", V4, "nexthop", "via", "192.0.2.2", "nexthop", "via", "192.0.2.3", "weight", "2"]
KINDS = {
    "lan4": (LAN4, V4, "", "dev e0 proto kernel"),
    "static4": (STATIC4, V4, "", "via 192.0.2.2 dev e0 proto boot"),
    "blackhole": (BLACKHOLE, V4, "", "blackhole proto boot"),
    "static6": (STATIC6, V6, "", "via 2001:db8::2 dev e0 proto boot"),
    "lan6": (LAN6, V6, "", "dev e0 proto kernel"),
    "main": (["link", "show", "lo"], "0.0.0.0/0", "Table = main", "via 192.0.2.2 dev e0 proto boot"),
    "table": (TABLED, V4, "Table = 123", "dev e0 proto boot"),
    "ecmp": (ECMP, V4, "", "nexthop via 192.0.2.2 dev e0 nexthop via 192.0.2.3 dev e0 proto boot"),
    "fwmark": (MARKED, "0.0.0.0/0", "FwMark = 0x1234", "dev e0 proto boot"),
}


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with a network of its own at e0, and a default route."""
    with Namespace("hr") as namespace:
        namespace.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "far")
        for command in (
            ["address", "add", "192.0.2.1/24", "dev", "e0"],
            ["address", "add", "2001:db8::1/64", "dev", "e0", "nodad"],
            ["link", "set", "e0", "up"],
            ["link", "set", "far", "up"],
            ["route", "add", "default", "via", "192.0.2.2"],
        ):
            namespace.run("ip", *command)
        until(lambda: "state UP" in namespace.run("ip", "link", "show", "e0").stdout, 5, "e0 to have a carrier")
        yield namespace


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_that_is_taken_is_named_and_nothing_is_left_behind(
    host: Namespace, lab_directory: Path, kind: str
) -> None:
    command, prefix, line, owner = KINDS[kind]
    host.run("ip", *command)
    before = network_of(host)
    said = refused(Tunnel(host, lab_directory, [prefix, "10.66.0.0/16"], line))
    where = {"fwmark": " in table 4660", "table": " in table 123"}.get(kind, "")
    assert f"route {prefix} is taken{where}: {owner}; " in said
    assert network_of(host) == before


@pytest.mark.parametrize("kind", ["lan4", "static6", "main", "fwmark"])
def test_wg_quick_refuses_as_well(host: Namespace, lab_directory: Path, kind: str) -> None:
    command, prefix, line, _ = KINDS[kind]
    host.run("ip", *command)
    tunnel = Tunnel(host, lab_directory, [prefix], line, name=f"swq{os.getpid() % 100000}")
    tunnel.gateway.write_config(tunnel.text)
    env = {"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go"}
    done = host.run("wg-quick", "up", tunnel.gateway.config_path, check=False, env=env, timeout=30)
    (SOCKETS / f"{tunnel.name}.sock").unlink(missing_ok=True)
    assert done.returncode != 0
    assert "File exists" in done.stderr


@pytest.mark.parametrize("prefix", [V4, V6])
def test_a_prefix_of_another_interface_of_ours_is_taken_too(host: Namespace, lab_directory: Path, prefix: str) -> None:
    first, second = Tunnel(host, lab_directory, [V4, V6]), Tunnel(host, lab_directory, [prefix], number=1)
    with first.gateway:
        before = network_of(host)
        assert f"route {prefix} is taken: dev wg0 proto stagewire; " in refused(second)
        assert network_of(host) == before
        assert first.gateway.status()["ready"]


def test_a_route_behind_ours_stays_and_holds_again_after_down(host: Namespace, lab_directory: Path) -> None:
    """As DHCP clients make theirs, with a metric: wg-quick's goes before it, and so does ours."""
    host.run("ip", "address", "add", "10.77.0.1/24", "dev", "e0", "noprefixroute")
    host.run("ip", "route", "add", V4, "dev", "e0", "proto", "dhcp", "metric", "100")
    before = network_of(host)
    with Tunnel(host, lab_directory, [V4]).gateway:
        assert "dev wg0" in host.run("ip", "route", "get", "10.77.0.9").stdout
        assert f"{V4} dev e0 proto dhcp" in host.run("ip", "route", "show", V4).stdout
    assert network_of(host) == before


def test_a_prefix_within_an_address_is_routed_by_that(host: Namespace, lab_directory: Path) -> None:
    """As with wg-quick: another's route inside the address's network is no obstacle, and keeps what it has."""
    host.run("ip", "route", "add", "10.9.0.128/25", "via", "192.0.2.2")
    with Tunnel(host, lab_directory, ["10.9.0.128/25", "10.9.0.2/32"]).gateway as gateway:
        assert gateway.status()["ready"]
        assert "dev wg0" in host.run("ip", "route", "get", "10.9.0.2").stdout
        assert "dev e0" in host.run("ip", "route", "get", "10.9.0.129").stdout


@pytest.mark.parametrize(("table", "lookup"), [("off", ""), ("main", "main"), ("4242", "4242")])
def test_what_table_says(host: Namespace, lab_directory: Path, table: str, lookup: str) -> None:
    before = network_of(host)
    with Tunnel(host, lab_directory, [V4, "10.66.0.0/16", V6], f"Table = {table}").gateway:
        found = host.run("ip", "route", "show", "table", lookup or "all", "proto", "87").stdout
        assert (f"{V4} dev wg0" in found) == bool(lookup)
        assert host.run("ip", "rule").stdout == "\n".join(host.run("ip", "rule").stdout.splitlines()) + "\n"
        assert "proto 87" not in host.run("ip", "rule").stdout
    assert network_of(host) == before


def test_a_prefix_added_while_it_runs_that_is_taken(lab_directory: Path) -> None:
    """A warning; all else goes on. When the other route goes, ours is made."""
    with Topology("hr") as network:
        tunnel = Tunnel(network.b, lab_directory, ["10.66.0.0/16"], spares=0)
        tunnel.gateway.env["STAGEWIRE_WG_DIR"] = str(SOCKETS)
        name = tunnel.name = f"swt{os.getpid() % 100000}"
        tunnel.gateway.name = name
        tunnel.gateway.config_path = lab_directory / f"{name}.conf"
        network.b.run("ip", "route", "add", V4, "via", Topology.CB4, "proto", "static")
        network.b.run("ip", "-6", "route", "add", V6, "via", Topology.CB6)
        with tunnel.gateway, tunnel.other_end(network.a, "10.66.0.1/32", "10.67.0.1/32"):
            assert ping(network.b, tunnel.theirs, count=1).sent == 1
            allowed = f"10.9.0.2/32,10.66.0.0/16,{V4},{V6},10.67.0.0/16"
            network.b.run("wg", "set", name, "peer", tunnel.far.public, "allowed-ips", allowed)
            until(lambda: len(tunnel.host()["warnings"]) == 2, 5, "both warnings")
            warned = "\n".join(tunnel.host()["warnings"])
            assert f"route {V4} is taken: via {Topology.CB4} dev" in warned
            assert f"route {V6} is taken: via {Topology.CB6} dev" in warned
            assert tunnel.gateway.status()["ready"]
            for address in ("10.66.0.1", "10.67.0.1"):
                until(lambda a=address: ping(network.b, a).received, 10, f"{address} through the tunnel")  # type: ignore[misc]
            # A host-service that is killed doesn't give up for it either.
            tunnel.gateway.supervisorctl("restart", "host-service:*")
            until(lambda: tunnel.gateway.status()["ready"], 10, "host-service to be back")
            network.b.run("ip", "route", "del", V4)
            network.b.run("ip", "-6", "route", "del", V6)
            until(lambda: not tunnel.host()["warnings"], 5, "both to be free")
            for address in ("10.77.0.1", "fd77::1"):
                assert f"dev {name}" in network.b.run("ip", "route", "get", address).stdout
