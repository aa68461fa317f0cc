"""`stagewire why ADDRESS` for hosts behind a peer that itself answers: broken at the peer's side in one way each."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.whys import broken, rules, why, works

from lab.hub import Hub, Spoke
from lab.namespaces import Namespace, Topology, veth
from lab.wait import until
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

SITE = Spoke(1, allowed_ips=["10.66.1.2/32", "fd66:1::2/128", "10.88.0.0/24", "fd88::/64", "10.89.0.0/24", "fd89::/64"])
"""A peer with a network behind it; nothing is behind it where 10.89.0.0/24 and fd89::/64 should be."""
HOSTS = {4: "10.88.0.2", 6: "fd88::2"}
ROUTERS = {4: "10.88.0.1", 6: "fd88::1"}
OFF = {4: "10.88.0.77", 6: "fd88::77"}
NOWHERE = {4: "10.89.0.1", 6: "fd89::1"}
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
both = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("wb") as topology:
        yield topology


@pytest.fixture(scope="module")
def host(network: Topology) -> Iterator[Namespace]:
    with Namespace("wbd") as made:
        veth(network.a, made, ["10.88.0.1/24", "fd88::1/64"], ["10.88.0.2/24", "fd88::2/64"])
        yield made


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"1": SITE}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def far(network: Topology, hub: Hub, host: Namespace) -> Iterator[WireguardGo]:
    with hub.wireguard_go(SITE, network.a, Topology.B4) as peer:
        until(lambda: works(network.a, SITE.gateway_inner[0]), 15, "the tunnel to work")
        yield peer


@contextlib.contextmanager
def forwarding(network: Topology, host: Namespace, *, way_back: bool = True) -> Iterator[None]:
    """Has the peer forward packets, and the host behind it know the way back."""
    for name in FORWARDING:
        network.a.sysctl(name, 1)
    ways = [("-4", ROUTERS[4]), ("-6", ROUTERS[6])] if way_back else []
    try:
        for family, router in ways:
            host.run("ip", family, "route", "add", "default", "via", router)
        yield
    finally:
        for family, router in ways:
            host.run("ip", family, "route", "del", "default", "via", router)
        for name in FORWARDING:
            network.a.sysctl(name, 0)


def found(hub: Hub, address: str) -> tuple[str, str]:
    first = why(hub, address)["findings"][0]
    return first["id"], first["text"] + first["mend"]


@both
def test_a_peer_that_does_not_forward(
    network: Topology, hub: Hub, host: Namespace, far: WireguardGo, version: int
) -> None:
    for name in FORWARDING:
        network.a.sysctl(name, 0)
    assert broken(network.b, HOSTS[version])
    name, text = found(hub, HOSTS[version])
    assert name == "forwarding_off_there"
    assert f"the peer itself answers at {SITE.inner[version == 6]}" in text
    assert {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}[version] in text


@both
def test_a_host_without_a_way_back(
    network: Topology, hub: Hub, host: Namespace, far: WireguardGo, version: int
) -> None:
    with forwarding(network, host, way_back=False):
        assert broken(network.b, HOSTS[version])
        name, text = found(hub, HOSTS[version])
    assert (name, "doesn't know the way back" in text, "tcpdump" in text) == ("nothing_from_behind", True, True)


@both
def test_a_peer_whose_firewall_forwards_nothing(
    network: Topology, hub: Hub, host: Namespace, far: WireguardGo, version: int
) -> None:
    with forwarding(network, host):
        assert works(network.b, HOSTS[version])
        assert found(hub, HOSTS[version])[0] == "well"
        with rules(network.a, "forward", "drop"):
            assert broken(network.b, HOSTS[version])
            name, text = found(hub, HOSTS[version])
            assert (name, "its chain FORWARD drops them" in text) == ("nothing_from_behind", True)
        with rules(network.a, "forward", "reject with icmpx admin-prohibited"):
            assert broken(network.b, HOSTS[version])
            assert found(hub, HOSTS[version])[0] == "forwarding_refused_there"


@both
def test_a_host_that_is_down_and_a_network_that_is_not_there(
    network: Topology, hub: Hub, host: Namespace, far: WireguardGo, version: int
) -> None:
    with forwarding(network, host):
        assert broken(network.b, OFF[version])
        assert found(hub, OFF[version])[0] == "host_behind_down"
        network.a.run("ip", "route", "add", "unreachable", "10.89.0.0/24")
        network.a.run("ip", "route", "add", "unreachable", "fd89::/64")
        try:
            assert broken(network.b, NOWHERE[version])
            assert found(hub, NOWHERE[version])[0] in {"no_route_behind", "host_behind_down"}
        finally:
            network.a.run("ip", "route", "del", "unreachable", "10.89.0.0/24")
            network.a.run("ip", "route", "del", "unreachable", "fd89::/64")


def test_one_family_that_the_peer_does_not_let_in(network: Topology, hub: Hub, far: WireguardGo) -> None:
    with rules(network.a, "input", f'iifname "{far.interface}" meta nfproto ipv6 drop'):
        assert broken(network.b, SITE.inner[1])
        assert works(network.b, SITE.inner[0])
        name, text = found(hub, SITE.keys.public)
    assert name == "no_inner_answer"
    assert f"its address {SITE.inner[1]} doesn't answer a ping through the tunnel, while {SITE.inner[0]} does" in text
    assert found(hub, SITE.keys.public)[0] == "well"


def test_packets_that_the_peer_loses(network: Topology, hub: Hub, far: WireguardGo) -> None:
    with rules(network.a, "input", f'iifname "{far.interface}" numgen inc mod 3 0 drop'):
        assert found(hub, SITE.inner[0])[0] == "loss"
