"""`stagewire why`, `doctor` and `check` on endpoints that are no peer's, and on ways that lead nowhere."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.whys import broken, why

from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology
from lab.wait import until

pytestmark = pytest.mark.system

OURSELVES, OURSELVES_6 = Spoke(1, Topology.B4, at_port=PORT), Spoke(2, f"[{Topology.B6}]", at_port=PORT)
EVERYBODY, MANY, NONE = Spoke(3, "255.255.255.255"), Spoke(4, "224.0.0.9"), Spoke(5, "0.0.0.0", at_port=PORT + 9)
FAR, FAR_6, INNER = Spoke(6, "203.0.113.9"), Spoke(7, "[2001:db8:f::9]"), Spoke(8, "10.66.8.2")
NEIGHBOUR, ALSO_OURS = Spoke(9, "198.51.100.77"), Spoke(10, allowed_ips=["10.66.10.1/32"])
SPOKES = [OURSELVES, OURSELVES_6, EVERYBODY, MANY, NONE, FAR, FAR_6, INNER, NEIGHBOUR, ALSO_OURS]


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("wp") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {str(spoke.number): spoke for spoke in SPOKES}) as gateway:
        yield gateway


def first(hub: Hub, spoke: Spoke, *options: str) -> tuple[str, str]:
    found: dict[str, Any] = why(hub, spoke, *options)["findings"][0]
    return found["id"], found["text"] + found["mend"]


def doctor(hub: Hub) -> str:
    return hub.gateway.command("doctor", hub.name, check=False).stdout


@pytest.mark.parametrize("spoke", [OURSELVES, OURSELVES_6], ids=["4", "6"])
def test_an_endpoint_that_is_this_gateway(network: Topology, hub: Hub, spoke: Spoke) -> None:
    assert broken(network.b, spoke.inner[0])
    for options in ((), ("--no-try",)):
        assert first(hub, spoke, *options)[0] == "endpoint_is_ourselves"
    assert f"its endpoint {spoke.host}:{PORT} is this gateway itself" in doctor(hub)


@pytest.mark.parametrize("spoke", [EVERYBODY, MANY, NONE], ids=["broadcast", "multicast", "unspecified"])
def test_an_endpoint_that_no_host_has(network: Topology, hub: Hub, spoke: Spoke) -> None:
    assert broken(network.b, spoke.inner[0])
    assert first(hub, spoke)[0] == "endpoint_no_host"
    assert f"its endpoint {spoke.host}:{spoke.at_port or spoke.port} is " in doctor(hub)
    checked = hub.gateway.command("check", str(hub.gateway.config_path), check=False)
    assert f"Endpoint {spoke.host}:{spoke.at_port or spoke.port} is " in checked.stderr


def test_an_endpoint_inside_the_tunnel(network: Topology, hub: Hub) -> None:
    assert broken(network.b, INNER.inner[0])
    for options in (("--no-try",), ()):
        name, text = first(hub, INNER, *options)
        assert name == "endpoint_in_own_tunnel", text
    checked = hub.gateway.command("check", str(hub.gateway.config_path), check=False)
    assert f"Endpoint {INNER.host}:{INNER.port} lies in 10.66.8.0/24" in checked.stderr


def test_a_peers_address_that_is_ours(network: Topology, hub: Hub) -> None:
    assert first(hub, ALSO_OURS, "--no-try")[0] in {"own_address", "never_called"}
    assert "10.66.10.1 is this host's own" in doctor(hub)
    checked = hub.gateway.command("check", str(hub.gateway.config_path), check=False)
    assert "10.66.10.1/32 of this [Peer] is this gateway's own" in checked.stderr


@contextlib.contextmanager
def route(network: Topology, *words: str) -> Iterator[None]:
    network.b.run("ip", "route", "add", *words)
    try:
        yield
    finally:
        network.b.run("ip", "route", "del", *words)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("unreachable", "has a route that says unreachable for"),
        ("prohibit", "has a route that prohibits"),
        ("blackhole", "has a blackhole route for"),
    ],
)
@pytest.mark.parametrize(("spoke", "prefix"), [(FAR, "203.0.113.0/24"), (FAR_6, "2001:db8:f::/64")], ids=["4", "6"])
def test_a_route_that_refuses(network: Topology, hub: Hub, spoke: Spoke, prefix: str, kind: str, said: str) -> None:
    with route(network, kind, prefix):
        assert broken(network.b, spoke.inner[0])
        name, text = first(hub, spoke, "--no-try")
        assert name == "no_way_out"
        assert said in text


def test_no_route_and_no_carrier(network: Topology, hub: Hub) -> None:
    network.b.run("ip", "-6", "route", "del", "default", "via", Topology.CB6)
    try:
        assert broken(network.b, FAR_6.inner[0])
        name, text = first(hub, FAR_6)
        assert (name, "has no route to 2001:db8:f::9" in text) == ("no_way_out", True)
    finally:
        network.b.run("ip", "-6", "route", "add", "default", "via", Topology.CB6)
    network.c.run("ip", "link", "set", network.link_b.b_interface, "down")
    try:
        until(lambda: "NO-CARRIER" in network.b.run("ip", "link", "show", network.link_b.a_interface).stdout, 5, "it")
        assert broken(network.b, FAR.inner[0])
        for options in ((), ("--no-try",)):
            assert first(hub, FAR, *options)[0] == "no_carrier"
    finally:
        network.c.run("ip", "link", "set", network.link_b.b_interface, "up")
        network.c.run("ip", "address", "replace", f"{Topology.CB6}/64", "dev", network.link_b.b_interface, "nodad")
    network.b.run("ip", "link", "set", network.link_b.a_interface, "down")
    try:
        assert broken(network.b, FAR.inner[0])
        name, text = first(hub, FAR)
        assert (name, f"{network.link_b.a_interface} is down" in text) == ("no_way_out", True)
    finally:
        network.link_b.up()
        network.b.run("ip", "route", "replace", "default", "via", Topology.CB4)


def test_a_neighbour_that_is_not_there(network: Topology, hub: Hub) -> None:
    assert broken(network.b, NEIGHBOUR.inner[0])
    assert first(hub, NEIGHBOUR)[0] == "no_neighbour"
