"""What isn't asked for may fail: hosts without IPv6, without IPv4 outside, without nft; MTUs that IPv6 doesn't take."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.host_lab import Tunnel, mtu_of, network_of, reached

from lab.namespaces import Namespace, Topology
from lab.wait import until

pytestmark = pytest.mark.system

BOTH = ["0.0.0.0/0", "::/0", "10.66.0.0/16", "fd66::/64"]
ADDRESSES = ["10.9.0.1/24", "fd09::1/64"]


@pytest.fixture
def network() -> Iterator[Topology]:
    with Topology("hn") as topology:
        yield topology


def without_ipv6(namespace: Namespace) -> None:
    """All that a network namespace can do without it: no interface, also no later one, has any."""
    for scope in ("all", "default"):
        namespace.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)


def test_a_host_without_ipv6(network: Topology, lab_directory: Path) -> None:
    without_ipv6(network.b)
    before = network_of(network.b)
    tunnel = Tunnel(network.b, lab_directory, BOTH, addresses=ADDRESSES)
    with tunnel.gateway, tunnel.other_end(network.a, "10.66.0.1/32", "203.0.113.1/32"):
        for address in ("10.66.0.1", "203.0.113.1"):
            until(lambda a=address: reached(network.b, a), 10, f"{address} through the tunnel")  # type: ignore[misc]
        (warning,) = tunnel.host()["warnings"]
        assert warning.startswith("IPv6 is off")
        assert "fd09" not in network.b.run("ip", "address", "show", "wg0").stdout
        assert "proto 87" not in network.b.run("ip", "-6", "rule").stdout
        assert tunnel.gateway.status()["ready"]
    assert network_of(network.b) == before


def test_a_host_without_ipv6_of_which_nothing_is_asked(network: Topology, lab_directory: Path) -> None:
    without_ipv6(network.b)
    tunnel = Tunnel(network.b, lab_directory, ["10.66.0.0/16"])
    with tunnel.gateway:
        assert tunnel.host()["warnings"] == []


@pytest.mark.parametrize("scope", ["all", "wg0"])
def test_ipv6_that_goes_and_comes_back(network: Topology, lab_directory: Path, scope: str) -> None:
    if scope == "all":
        without_ipv6(network.b)
    tunnel = Tunnel(network.b, lab_directory, BOTH, addresses=ADDRESSES)
    with tunnel.gateway, tunnel.other_end(network.a, "fd66::1/128", "2001:db8:f::1/128") as far:
        far.set("peer", tunnel.keys.public, "allowed-ips", "10.9.0.1/32,fd09::1/128")
        network.a.run("ip", "-6", "route", "replace", "fd09::1", "dev", far.interface)
        for _ in range(2):
            network.b.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
            until(lambda: "IPv6 is off" in str(tunnel.host()["warnings"]), 5, "the warning")
            network.b.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 0)
            for address in ("fd66::1", "2001:db8:f::1"):
                until(lambda a=address: reached(network.b, a), 5, f"{address} through the tunnel")  # type: ignore[misc]
            until(lambda: tunnel.host()["warnings"] == [], 5, "no warning")


def test_a_host_without_ipv4_outside(network: Topology, lab_directory: Path) -> None:
    for end, interface in ((network.b, network.link_b.a_interface), (network.a, network.link_a.a_interface)):
        end.run("ip", "-4", "address", "flush", "dev", interface)
    tunnel = Tunnel(network.b, lab_directory, BOTH, endpoint=Topology.A6, addresses=ADDRESSES)
    with tunnel.gateway, tunnel.other_end(network.a, "10.66.0.1/32", "203.0.113.1/32"):
        for address in ("10.66.0.1", "203.0.113.1"):
            until(lambda a=address: reached(network.b, a), 10, f"{address} through the tunnel")  # type: ignore[misc]
        assert mtu_of(network.b, "wg0") == 1420


def test_an_mtu_that_ipv6_does_not_take(network: Topology, lab_directory: Path) -> None:
    tunnel = Tunnel(network.b, lab_directory, ["10.66.0.0/16"], "MTU = 1200")
    with tunnel.gateway, tunnel.other_end(network.a, "10.66.0.1/32"):
        assert mtu_of(network.b, "wg0") == 1200
        until(lambda: reached(network.b, "10.66.0.1"), 10, "the tunnel")
        assert tunnel.host()["warnings"] == []
    both = Tunnel(network.b, lab_directory, ["10.66.0.0/16", "fd66::/64"], "MTU = 1200", addresses=ADDRESSES)
    with both.gateway, both.other_end(network.a, "10.66.0.1/32"):
        until(lambda: reached(network.b, "10.66.0.1"), 10, "the tunnel")
        assert both.host()["warnings"] == ["IPv6 needs an MTU of 1280: addresses and routes of IPv6 are left out"]


def test_an_mtu_of_the_operators_that_ipv6_does_not_take(network: Topology, lab_directory: Path) -> None:
    tunnel = Tunnel(network.b, lab_directory, BOTH, addresses=ADDRESSES)
    with tunnel.gateway, tunnel.other_end(network.a, "10.66.0.1/32"):
        until(lambda: reached(network.b, "10.66.0.1"), 10, "the tunnel")
        ours = ("ip", "-6", "route", "show", "table", "all", "proto", "87")
        before = network.b.run(*ours).stdout
        network.b.run("sh", "-c", "ip link set wg0 down; ip link set wg0 mtu 1000; ip link set wg0 up")
        text = "IPv6 needs an MTU of 1280: addresses and routes of IPv6 are left out"
        until(lambda: tunnel.host()["warnings"] == [text], 5, "the warning")
        until(lambda: reached(network.b, "10.66.0.1"), 5, "IPv4 through the tunnel")
        assert tunnel.gateway.status()["ready"]
        network.b.run("ip", "link", "set", "wg0", "mtu", "1420")
        until(lambda: network.b.run(*ours).stdout == before, 5, "IPv6's routes to be back")
        assert "fd09::1" in network.b.run("ip", "address", "show", "wg0").stdout
        until(lambda: tunnel.host()["warnings"] == [], 5, "no warning")


def test_without_nft(network: Topology, lab_directory: Path) -> None:
    folder = lab_directory / "bin"
    folder.mkdir()
    for name in ("ip", "sh", "env", "nice", "bash"):
        (folder / name).symlink_to(
            Path("/usr/bin") / name if (Path("/usr/bin") / name).exists() else Path("/bin") / name
        )
    tunnel = Tunnel(network.b, lab_directory, BOTH, env={"PATH": str(folder)})
    with tunnel.gateway, tunnel.other_end(network.a, "203.0.113.1/32"):
        until(lambda: reached(network.b, "203.0.113.1"), 10, "the tunnel")
        (warning,) = tunnel.host()["warnings"]
        assert warning.startswith("nft is not installed")
        assert tunnel.gateway.status()["ready"]


def test_with_the_path_that_cron_and_su_leave(network: Topology, lab_directory: Path) -> None:
    """Debian has nft in /usr/sbin. Without it, the tunnel's guards would be missing."""
    tunnel = Tunnel(network.b, lab_directory, BOTH, env={"PATH": "/usr/bin:/bin"})
    with tunnel.gateway:
        assert tunnel.host()["warnings"] == []
        assert "stagewire-wg0" in network.b.run("nft", "list", "tables").stdout
