"""Which of our addresses the answers leave from: of two links between the gateway in B and wireguard-go in A.

  first                     A has one address, behind both links;
A ====== B                  B has one on each of them, and one on neither.
  second
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.hub import Spoke
from lab.namespaces import Link, Namespace, add_addresses, veth
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import WgHub
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system


class Places(NamedTuple):
    """Outer addresses in one family."""

    far: str
    first: str
    also_first: str
    second: str
    neither: str


FOUR = Places("203.0.113.9", "192.0.2.1", "192.0.2.11", "198.51.100.1", "203.0.113.77")
SIX = Places("2001:db8:f::9", "2001:db8:1::1", "2001:db8:1::11", "2001:db8:2::1", "2001:db8:f::77")
NEXT = {FOUR: ("192.0.2.2", "198.51.100.2"), SIX: ("2001:db8:1::2", "2001:db8:2::2")}
"""A's own on the links."""
CONTACTED = {(family, name): Spoke(number + 10 * family) for family in (4, 6) for number, name in enumerate(
    ("first", "also_first", "second", "neither"), 1
)}  # fmt: skip
GOES, BETTER, FAILS, MARKED = ({4: Spoke(n), 6: Spoke(n + 1)} for n in (70, 80, 90, 100))
WAITED = {"conn": Spoke(110), "host": Spoke(111)}
MARK, TABLE = "0x51", "81"


class Hosts(NamedTuple):
    a: Namespace
    b: Namespace
    first: Link
    second: Link


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Namespace("a") as a, Namespace("b") as b:
        for namespace in (a, b):
            namespace.sysctl("net.ipv4.conf.all.rp_filter", 0)
            namespace.sysctl("net.ipv4.conf.default.rp_filter", 0)
        links = [
            veth(a, b, [f"{n4}/24", f"{n6}/64"], [f"{ours4}/24", f"{ours6}/64"])
            for n4, n6, ours4, ours6 in zip(NEXT[FOUR], NEXT[SIX], FOUR[1:4:2], SIX[1:4:2], strict=True)
        ]
        add_addresses(b, links[0].b_interface, [f"{FOUR.also_first}/24", f"{SIX.also_first}/64"])
        add_addresses(a, "lo", [f"{FOUR.far}/32", f"{SIX.far}/128"])
        add_addresses(b, "lo", [f"{FOUR.neither}/32", f"{SIX.neither}/128"])
        for places in (FOUR, SIX):
            a.run("ip", "route", "add", places.neither, "via", places.first, "src", places.far)
            for destination, link in (
                (places.first, links[0]),
                (places.also_first, links[0]),
                (places.second, links[1]),
            ):
                a.run("ip", "route", "add", destination, "dev", link.a_interface, "src", places.far)
            b.run("ip", "route", "add", places.far, "via", NEXT[places][0], "metric", "10")
        yield Hosts(a, b, *links)


@pytest.fixture(scope="module")
def hub(hosts: Hosts, shared_directory: Path) -> Iterator[WgHub]:
    spokes = [
        *CONTACTED.values(),
        *GOES.values(),
        *BETTER.values(),
        *FAILS.values(),
        *MARKED.values(),
        *WAITED.values(),
    ]
    with WgHub(hosts.b, shared_directory, {str(spoke.number): spoke for spoke in spokes}) as hub:
        yield hub


def literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def seen_at(hub: WgHub, peer: WireguardGo) -> str:
    """Where wireguard-go has heard from us last."""
    endpoint = peer.dump().peers[hub.keys.public].endpoint or ""
    return endpoint.rpartition(":")[0].strip("[]")


@pytest.mark.parametrize(("family", "name"), CONTACTED)
def test_answers_leave_from_the_address_that_was_contacted(hosts: Hosts, hub: WgHub, family: int, name: str) -> None:
    """By the link that routes say, which isn't the one that they came by when that was the second."""
    spoke, contacted = CONTACTED[family, name], getattr(FOUR if family == 4 else SIX, name)
    with hub.wireguard_go(spoke, hosts.a, literal(contacted)) as peer:
        for address in spoke.gateway_inner:
            assert ping(hosts.a, address).received == 1
        for address in spoke.inner:
            assert ping(hosts.b, address).received == 1
        assert seen_at(hub, peer) == contacted


@pytest.mark.parametrize("family", [4, 6])
def test_when_the_address_goes_the_next_packet_finds_another(hosts: Hosts, hub: WgHub, family: int) -> None:
    spoke, places = GOES[family], FOUR if family == 4 else SIX
    gone = f"{places.also_first}/{24 if family == 4 else 64}"
    with hub.wireguard_go(spoke, hosts.a, literal(places.also_first)) as peer:
        assert ping(hosts.a, spoke.gateway_inner[0]).received == 1
        assert seen_at(hub, peer) == places.also_first
        hosts.b.run("ip", "address", "del", gone, "dev", hosts.first.b_interface)
        try:
            assert ping(hosts.b, spoke.inner[0]).received == 1  # this very one
            assert seen_at(hub, peer) == places.first
            assert ping(hosts.a, spoke.gateway_inner[1], count=2).received == 2
        finally:
            add_addresses(hosts.b, hosts.first.b_interface, [gone])


@pytest.mark.parametrize("family", [4, 6])
def test_a_better_route_is_taken_when_it_appears(hosts: Hosts, hub: WgHub, family: int) -> None:
    spoke, places = BETTER[family], FOUR if family == 4 else SIX
    better = ("ip", "route", "add", places.far, "via", NEXT[places][1], "metric", "1")
    with hub.wireguard_go(spoke, hosts.a, literal(places.first)) as peer:
        assert ping(hosts.a, spoke.gateway_inner[0]).received == 1
        assert seen_at(hub, peer) == places.first
        with NumberedStream(hosts.b, hosts.a, spoke.inner[0], rate=200) as stream:
            until(lambda: stream.received > 20, 5, "the stream to flow")
            hosts.b.run(*better)
            try:
                until(lambda: seen_at(hub, peer) == places.second, 5, "the better route's address")
                assert ping(hosts.a, spoke.gateway_inner[1], count=2).received == 2
            finally:
                hosts.b.run("ip", "route", "del", *better[3:])
            of_first = (places.first, places.also_first)  # IPv6 has no primary address
            until(lambda: seen_at(hub, peer) in of_first, 5, "an address of the only route's")
            hub.expect_whole(stream.finish())


@pytest.mark.parametrize("family", [4, 6])
def test_a_mark_chooses_the_table_as_soon_as_it_is_set(hosts: Hosts, hub: WgHub, family: int) -> None:
    spoke, places = MARKED[family], FOUR if family == 4 else SIX
    ip = ("ip", f"-{family}")
    hosts.b.run(*ip, "route", "add", places.far, "via", NEXT[places][1], "table", TABLE)
    hosts.b.run(*ip, "rule", "add", "fwmark", MARK, "table", TABLE, "priority", "100")
    try:
        with hub.wireguard_go(spoke, hosts.a, literal(places.first)) as peer:
            assert ping(hosts.a, spoke.gateway_inner[0]).received == 1
            assert seen_at(hub, peer) == places.first
            hub.set("fwmark", MARK)
            assert ping(hosts.b, spoke.inner[0]).received == 1
            assert seen_at(hub, peer) == places.second
            # Without the mark there is no way at all: it is on every packet.
            hosts.b.run(*ip, "rule", "add", "to", places.far, "prohibit", "priority", "101")
            assert ping(hosts.a, spoke.gateway_inner[1], count=2).received == 2
            hosts.b.run(*ip, "rule", "delete", "priority", "101")
            hub.set("fwmark", "0")
            assert ping(hosts.b, spoke.inner[0]).received == 1
            assert seen_at(hub, peer) in {places.first, places.also_first}
    finally:
        hub.set("fwmark", "0")
        for priority in ("100", "101"):
            hosts.b.run(*ip, "rule", "delete", "priority", priority, check=False)
        hosts.b.run(*ip, "route", "flush", "table", TABLE)


@pytest.mark.parametrize("stage", ["conn", "host"])
def test_a_mark_is_answered_once_datagrams_carry_it_and_leave_by_its_way(hosts: Hosts, hub: WgHub, stage: str) -> None:
    """However long the stages that do it get no processor."""
    spoke, ip = WAITED[stage], ("ip", "-4")
    hosts.b.run(*ip, "route", "add", FOUR.far, "via", NEXT[FOUR][1], "table", TABLE)
    hosts.b.run(*ip, "rule", "add", "fwmark", MARK, "table", TABLE, "priority", "100")
    try:
        with hub.wireguard_go(spoke, hosts.a, FOUR.first) as peer:
            assert ping(hosts.a, spoke.gateway_inner[0]).received == 1
            for mark, source in ((MARK, FOUR.second), ("0", FOUR.first)):
                stopped = hub.gateway.kill(stage, signal.SIGSTOP)
                setting = hosts.b.popen("wg", "set", hub.name, "fwmark", mark)
                try:
                    with pytest.raises(subprocess.TimeoutExpired):
                        setting.wait(0.7)
                finally:
                    os.kill(stopped, signal.SIGCONT)
                assert setting.wait(10) == 0
                assert ping(hosts.b, spoke.inner[0]).received == 1
                assert seen_at(hub, peer) == source
                assert ping(hosts.a, spoke.gateway_inner[0]).received == 1  # the way of its answer counts from now on
    finally:
        hub.set("fwmark", "0")
        hosts.b.run(*ip, "rule", "delete", "priority", "100", check=False)
        hosts.b.run(*ip, "route", "flush", "table", TABLE)


@pytest.mark.parametrize("family", [4, 6])
def test_when_a_link_fails_the_other_serves(hosts: Hosts, hub: WgHub, family: int) -> None:
    spoke, places = FAILS[family], FOUR if family == 4 else SIX
    back = ("ip", "route", "replace", places.far, "via")
    hosts.b.run(*back, NEXT[places][1], "metric", "20")
    try:
        with hub.wireguard_go(spoke, hosts.a, literal(places.first)) as peer:
            assert ping(hosts.a, spoke.gateway_inner[0]).received == 1
            hosts.b.run("ip", "link", "set", hosts.first.b_interface, "down")
            assert ping(hosts.b, spoke.inner[0], count=2).received == 2
            assert seen_at(hub, peer) == places.second
            assert ping(hosts.a, spoke.gateway_inner[1], count=2).received == 2
    finally:
        hosts.first.up()
        addresses = (f"{FOUR.first}/24", f"{FOUR.also_first}/24", f"{SIX.first}/64", f"{SIX.also_first}/64")
        for address in addresses:
            hosts.b.run("ip", "address", "replace", address, "dev", hosts.first.b_interface, "nodad", check=False)
        for each in (FOUR, SIX):
            hosts.b.run("ip", "route", "replace", each.far, "via", NEXT[each][0], "metric", "10")
