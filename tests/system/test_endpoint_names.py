"""Peers that are named, beside a default route through the tunnel: their names are looked up outside it.

B: the gateway. A: its peers. C, the router between them: the DNS server, which B reaches by its default route only.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import pytest

from lab.capture import Capture
from lab.dns_server import DnsServer
from lab.hub import Hub, Spoke
from lab.namespaces import Topology, add_addresses
from lab.traffic import ping
from lab.wait import until
from stagewire_cli.operands import NOT_RUNNING

pytestmark = pytest.mark.system

SERVER = "203.0.113.53"
INTERNET = ("203.0.113.1", "2001:db8:ffff::1")
"""Somewhere beyond the tunnel's other end."""
INSIDE = "10.66.1.53"
"""The tunnel's own DNS server, of which nobody answers."""
DEAD = ("192.0.2.99", "2001:db8:a::99")
MOVED = "192.0.2.2"
FULL = Spoke(1, "full.example", allowed_ips=("0.0.0.0/0", "::/0"))
DEAD4, DEAD6 = Spoke(2, "dead4.example"), Spoke(3, "dead6.example")
LATER = Spoke(4, "later.example")
NEAR = Spoke(5, "[fe80::c%to-rc]")
"""In C, by its address on the link and the link's name at B."""
NAMED = (FULL, DEAD4, DEAD6, LATER)
SPOKES = {"full": FULL, "dead4": DEAD4, "dead6": DEAD6, "later": LATER, "near": NEAR}
RECORDS = {
    "full.example": ["alias.example"],
    "alias.example": [Topology.A4],
    "dead4.example": [DEAD[0], Topology.A6],
    "dead6.example": [Topology.A4, DEAD[1]],
}
RESOLV_CONF = f"nameserver {SERVER}\noptions timeout:1\n"
OURS = ("10.66.0.0/16", "fd66::/16")
"""Whichever of its addresses the gateway speaks from."""
RESOLVER_IS_AWAY = 8.0
"""s after `up`."""
GONE = f"""
    add table inet gone
    add chain inet gone forwarded {{ type filter hook forward priority 0; }}
    add rule inet gone forwarded ip saddr {Topology.A4} drop
    add rule inet gone forwarded ip daddr {Topology.A4} drop
"""


class World(NamedTuple):
    network: Topology
    hub: Hub
    server: DnsServer
    etc: Path


@pytest.fixture(scope="module")
def world(shared_directory: Path) -> Iterator[World]:
    with Topology("r") as network, contextlib.ExitStack() as stack:
        add_addresses(network.c, "lo", [f"{SERVER}/32"])
        add_addresses(network.c, network.link_b.b_interface, ["fe80::c/64"])
        add_addresses(network.a, network.link_a.a_interface, [f"{MOVED}/24"])
        etc = stack.enter_context(network.b.etc(resolv_conf=RESOLV_CONF, hosts="127.0.0.1 localhost\n"))
        server = stack.enter_context(DnsServer(network.c, SERVER, dict(RECORDS)))
        hub = Hub(network.b, shared_directory, SPOKES, f"DNS = {INSIDE}")
        stack.callback(hub.gateway.cut_off)
        yield World(network, hub, server, etc)


@pytest.fixture
def answering(world: World) -> World:
    """The world with a gateway that is up, and a DNS server that answers."""
    if not is_up(world):
        begin(world)
    return world


def is_up(world: World) -> bool:
    return world.hub.gateway.command("status", world.hub.name, check=False).returncode != NOT_RUNNING


def begin(world: World, *, silent: bool = False) -> str:
    """Writes the file and brings the gateway up; returns what `up` said."""
    gateway = world.hub.gateway
    if is_up(world):
        gateway.down()
    world.server.silent = silent
    world.server.records.clear()
    world.server.records.update(RECORDS)
    (world.etc / "resolv.conf").write_text(RESOLV_CONF)
    gateway.write_config(world.hub.config)
    for folder in (gateway.run_directory, gateway.state_directory, gateway.log_directory):
        folder.mkdir(exist_ok=True)
    return gateway.command("up", str(gateway.config_path), timeout=60).stderr


def leaked(outer: Capture) -> list[bytes]:
    """The frames on the outer link to or from what lies beyond the tunnel."""
    inner = [ip_address(each).packed for each in (*INTERNET, *FULL.inner)]
    return [frame.data for frame in outer.frames() if any(each in frame.data[14:60] for each in inner)]


def endpoint(world: World, spoke: Spoke) -> str | None:
    found = world.hub.peer(spoke)["endpoint"]
    return None if found is None else str(found)


def test_a_resolver_that_answers_late_and_a_default_route_through_the_tunnel(world: World) -> None:
    """What was reported: it never connected. Until it does nothing leaves in clear, and `up` and `status` say why."""
    network, hub, server, _ = world
    with Capture(network.b, network.link_b.a_interface) as outer:
        said = begin(world, silent=True).splitlines()
        for spoke in NAMED:
            (line,) = (line for line in said if spoke.keys.public[:10] in line)
            assert f"{spoke.host}:{spoke.port} is not resolved yet" in line
        assert hub.peer(FULL)["unresolved"]
        assert hub.peer(FULL)["endpoint_name"] == f"full.example:{FULL.port}"
        assert "not resolved yet" in hub.gateway.command("status", hub.name, check=False).stdout
        with hub.wireguard_go(FULL, network.a, allowed_ips=OURS) as peer:
            for address in INTERNET:
                network.a.run("ip", "address", "add", address, "dev", peer.interface)
                assert ping(network.b, address, timeout=0.2).received == 0
            Timer(RESOLVER_IS_AWAY, lambda: setattr(server, "silent", False)).start()
            soon = RESOLVER_IS_AWAY + 5
            until(lambda: hub.peer(FULL)["last_handshake_unix_s"], soon, "a handshake that no packet asked for")
            for address in (*INTERNET, *FULL.inner):
                assert ping(network.b, address, count=2).received == 2
        assert hub.peer(FULL)["unresolved"] == ""
        assert not leaked(outer)
        assert outer.dropped == 0


def test_a_second_address_is_tried_where_the_first_one_is_dead(answering: World) -> None:
    """Whichever family that is, and whether packets vanish or are refused."""
    network, hub, *_ = answering
    network.b.run("ip", "route", "replace", "unreachable", DEAD[1])
    with hub.wireguard_go(DEAD4, network.a), hub.wireguard_go(DEAD6, network.a):
        for spoke, place in ((DEAD4, f"[{Topology.A6}]:{DEAD4.port}"), (DEAD6, f"{Topology.A4}:{DEAD6.port}")):
            until(lambda: ping(network.b, spoke.inner[0], timeout=0.5).received, 25, f"an answer of {spoke.host}")  # noqa: B023
            assert endpoint(answering, spoke) == place


def test_a_server_that_moved_is_found_again_though_resolv_conf_leads_into_the_tunnel(answering: World) -> None:
    network, hub, server, etc = answering
    with hub.wireguard_go(FULL, network.a, allowed_ips=OURS):
        until(lambda: ping(network.b, FULL.inner[0], timeout=0.5).received, 15, "an answer")
        assert endpoint(answering, FULL) == f"{Topology.A4}:{FULL.port}"
        (etc / "resolv.conf").write_text(f"nameserver {INSIDE}\n")  # as resolvconf(8) leaves it
        server.records["alias.example"] = [MOVED]
        # Nothing comes from or goes to the old address any more.
        network.c.run("nft", "-f", "-", input=GONE)
        try:
            network.a.run("ip", "route", "replace", "default", "via", Topology.CA4, "src", MOVED)
            os.kill(hub.gateway.pid("device", hub.peer(FULL)["worker"]), signal.SIGKILL)  # or it is 15 s more
            until(lambda: ping(network.b, FULL.inner[0], timeout=0.5).received, 45, "an answer from the new address")
            assert endpoint(answering, FULL) == f"{MOVED}:{FULL.port}"
        finally:
            network.c.run("nft", "delete", "table", "inet", "gone")
            network.a.run("ip", "route", "replace", "default", "via", Topology.CA4)


def test_a_name_that_comes_to_exist_is_found_by_the_next_resolver_service_at_once(answering: World) -> None:
    network, hub, server, _ = answering
    until(lambda: "no such name" in hub.peer(LATER)["unresolved"], 10, "the server's word")
    server.records["later.example"] = [Topology.A6]
    with hub.wireguard_go(LATER, network.a):
        hub.gateway.kill("resolver", signal.SIGKILL)
        until(lambda: ping(network.b, LATER.inner[1], timeout=0.5).received, 15, "an answer")
    assert hub.peer(LATER)["unresolved"] == ""


def test_an_address_with_the_name_of_its_link(answering: World) -> None:
    network, hub, *_ = answering
    with hub.wireguard_go(NEAR, network.c):
        assert ping(network.b, NEAR.inner[0], count=2).received == 2
    assert hub.peer(NEAR)["unresolved"] == ""


def test_nothing_of_it_is_left_after_down(answering: World) -> None:
    answering.hub.gateway.down()
    assert "51820" not in answering.network.b.run("ip", "rule").stdout
