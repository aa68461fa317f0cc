"""A default route through the tunnel, with the host's reverse path filter off, strict and loose, and neighbours who pry.

B: the gateway, whose peer in A takes everything; C, the router between them, is B's neighbour.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.host_lab import set_mark

from lab.capture import Capture
from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until

pytestmark = pytest.mark.system

INTERNET = ("203.0.113.1", "2001:db8:ffff::1")
"""Somewhere beyond the tunnel's other end."""
EVERYTHING = ("0.0.0.0/0", "::/0")
V4, V6 = Spoke(1, Topology.A4, allowed_ips=EVERYTHING), Spoke(2, f"[{Topology.A6}]", allowed_ips=EVERYTHING)
MARKS: dict[Spoke, list[str]] = {V4: [], V6: ["FwMark = 0x7001"]}
"""The default, and one of the operator's choice."""
OFF, STRICT, LOOSE = 0, 1, 2
IPV6_STRICT = """
    add table ip6 strict
    add chain ip6 strict in { type filter hook prerouting priority -10; }
    add rule ip6 strict in meta l4proto udp fib saddr . mark . iif oif missing drop
"""
"""As firewalls have it, since the kernel's own filter is for IPv4 alone."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("d") as topology:
        topology.b.run("nft", "-f", "-", input=IPV6_STRICT)
        yield topology


@pytest.fixture(scope="module", params=[V4, V6], ids=["ipv4", "ipv6"])
def hub(request: pytest.FixtureRequest, network: Topology, shared_directory: Path) -> Iterator[Hub]:
    """A running gateway that sends everything to one peer. When both are gone, so is all that was set for them."""
    spoke: Spoke = request.param
    before = tables(network)
    hub = Hub(network.b, shared_directory / str(spoke.number), {"default": spoke}, *MARKS[spoke])
    with hub, hub.wireguard_go(spoke, network.a) as peer:
        for address in INTERNET:
            network.a.run("ip", "address", "add", address, "dev", peer.interface)
        yield hub
        hub.gateway.down()
    assert tables(network) == before


@pytest.fixture
def spoke(hub: Hub) -> Spoke:
    return hub.spokes["default"]


def tables(network: Topology) -> str:
    return network.b.run("nft", "list", "ruleset").stdout


@contextlib.contextmanager
def without_the_rules(network: Topology) -> Iterator[None]:
    """While they are away host-service stands still; then it puts them back."""
    name = ("table", "inet", "stagewire-wg0")
    hosts = [pid for pid in network.b.pids() if b"host-service" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in hosts:
        os.kill(pid, signal.SIGSTOP)
    network.b.run("nft", "delete", *name)
    try:
        yield
    finally:
        for pid in hosts:
            os.kill(pid, signal.SIGCONT)
        until(lambda: network.b.run("nft", "list", *name, check=False).returncode == 0, 5, "the rules to be back")


def set_reverse_path_filter(network: Topology, strictness: int) -> None:
    for scope in ("all", network.link_b.a_interface, "wg0"):  # the greater one holds
        network.b.sysctl(f"net.ipv4.conf.{scope}.rp_filter", strictness)


def test_no_reverse_path_filter_cuts_the_outer_path_off(network: Topology, spoke: Spoke) -> None:
    with Capture(network.b, network.link_b.a_interface) as outer:
        for strictness in (OFF, LOOSE, STRICT):
            set_reverse_path_filter(network, strictness)
            for address in (*INTERNET, *spoke.inner):
                assert ping(network.b, address, count=2).received == 2, (strictness, address)
        for address in INTERNET:
            assert "dev wg0" in network.b.run("ip", "route", "get", address).stdout
        sources = {datagram.source[0] for datagram in outer.datagrams(spoke.port)}
        assert sources == {Topology.A4, Topology.B4} if spoke is V4 else {Topology.A6, Topology.B6}
        with without_the_rules(network):  # it is they that make the difference
            assert ping(network.b, INTERNET[0], timeout=0.3).received == 0
        assert ping(network.b, INTERNET[0]).received == 1


def test_neighbours_cannot_reach_the_tunnels_own_addresses(network: Topology, spoke: Spoke) -> None:
    set_reverse_path_filter(network, OFF)
    assert ping(network.b, spoke.inner[0]).received == 1
    for address, via in zip(spoke.gateway_inner, (Topology.B4, Topology.B6), strict=True):
        assert ping(network.a, address).received == 1  # through the tunnel, one can
        assert ping(network.b, address).received == 1  # and from the host itself
        family = "-6" if ":" in address else "-4"
        network.c.run("ip", family, "route", "add", address, "via", via)
        try:
            assert ping(network.c, address, timeout=0.3).received == 0
            with without_the_rules(network):
                assert ping(network.c, address).received == 1
        finally:
            network.c.run("ip", family, "route", "del", address)


def test_another_mark_neither_stops_the_tunnel_nor_lets_anything_out(network: Topology, hub: Hub, spoke: Spoke) -> None:
    """With a strict filter, and one flow that is never answered: its datagrams come in by conntrack's word alone."""
    set_reverse_path_filter(network, STRICT)
    ours, theirs = spoke.gateway_inner[0], spoke.inner[0]
    with (
        Capture(network.b, network.link_b.a_interface) as outer,
        NumberedStream(network.b, network.a, theirs, rate=500) as out,
        NumberedStream(network.a, network.b, ours, rate=500) as back,
    ):
        for mark in (0x71, 0x72, 0):
            flowing = out.received + 50, back.received + 50
            until(lambda f=flowing: out.received > f[0] and back.received > f[1], 10, "the streams to flow")  # type: ignore[misc]
            assert set_mark(hub.gateway, mark) == 0
            held = f"{mark or 0x72:#x}"
            assert status_mark(hub) == int(held, 16)
            assert looked_into(network) == {str(int(held, 16))}, "the others are gone when it is answered"
            until(lambda h=held: marks(network) == {h}, 5, "no rule to know another mark")  # type: ignore[misc]
        hub.expect_whole(out.finish(), back.finish())
    leaked = [frame for frame in outer.frames() if out.marker in frame.data or back.marker in frame.data]
    assert not leaked


def status_mark(hub: Hub) -> int:
    mark = hub.gateway.status()["host"]["mark"]
    assert isinstance(mark, int)
    return mark


def rules(network: Topology) -> str:
    return "".join(network.b.run("ip", family, "rule").stdout for family in ("-4", "-6"))


def marks(network: Topology) -> set[str]:
    return set(re.findall(r"fwmark (0x\w+)", rules(network)))


def looked_into(network: Topology) -> set[str]:
    """The tunnels' tables."""
    return set(re.findall(r"lookup (\d+)", rules(network)))
