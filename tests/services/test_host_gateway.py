"""The table of a gateway's rules, other tables that keep its packets, and forwarding: as texts, and in namespaces."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import Ether
from tests.services.host_kept import Kept

from host_service import firewall, gateway_table, undo
from host_service import forwarding as forwarding_of_host
from host_service.gateway_table import flattened
from host_service.ground import Wanted
from host_service.ledger import ForwardingSet, Ledger, NftTableMade, PassOpened
from lab.namespaces import Namespace, veth
from lab.wait import until
from stagewire.config import Network
from stagewire.control import gateway
from stagewire.control.gateway import NO_RULES, AccessClass, Destination, GatewayRules, PortForward
from stagewire.linux.nft_names import gateway_table_of
from stagewire.proto import prefix

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
TCP, UDP, ICMP = 6, 17, 1


def packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(prefix.pack(ip_network(text)) for text in texts)


EXIT = GatewayRules((4, 6), (4, 6))
OPENS = GatewayRules((4, 6), (4, 6), opens=True)
DESTINATIONS = (
    Destination(packed("10.0.0.0/24")[0], TCP, (443, 443, 8000, 8010)),
    Destination(b"", UDP, (53, 53)),
    Destination(b"", ICMP, ()),
    Destination(packed("::/0")[0], TCP, ()),
)
EVERYTHING = GatewayRules(
    (4, 6), (4,), isolates=True,
    access=(
        AccessClass(packed("10.66.0.2/32", "fd66::2/128"), False, DESTINATIONS),
        AccessClass(packed("10.66.0.0/24", "0.0.0.0/0"), True, ()),
    ),
    ports=(
        PortForward(TCP, 8080, ip_address("10.66.0.2").packed, 80, keeps_source=False),
        PortForward(UDP, 53, ip_address("fd66::2").packed, 53, keeps_source=True),
    ),
)  # fmt: skip

networks = st.builds(
    lambda at, length: IPv4Network((at, length), strict=False), st.ip_addresses(v=4), st.integers(0, 32)
)


@given(st.dictionaries(networks, st.integers(0, 2), max_size=12), st.ip_addresses(v=4))
def test_ranges_belong_to_the_longest_prefix(owned: dict[IPv4Network, int], some: IPv4Address) -> None:
    ranges = flattened(dict[Network, int](owned.items()))
    assert all(high < low for (_, high, _), (low, _, _) in pairwise(ranges))
    edges = [edge for each in owned for edge in (each.network_address, each.broadcast_address)]
    for address in (some, *edges):
        longest = max((each for each in owned if address in each), key=lambda each: each.prefixlen, default=None)
        found = [owner for low, high, owner in ranges if low <= int(address) <= high]
        assert found == ([] if longest is None else [owned[longest]])


def a_port(*, protocol: int = TCP, port: int = 80, address: bytes = bytes(4)) -> GatewayRules:
    return GatewayRules(ports=(PortForward(protocol, port, address, 80, keeps_source=False),))


def _reach(protocol: int, *ports: int) -> GatewayRules:
    return GatewayRules(access=(AccessClass((), False, (Destination(b"", protocol, ports),)),))


@pytest.mark.parametrize(
    "rules",
    [
        GatewayRules(masquerades=(5,)), a_port(port=0), a_port(address=bytes(3)), a_port(protocol=ICMP),
        GatewayRules(access=(AccessClass((b"x",), True, ()),)), _reach(TCP, 1), _reach(TCP, 1, 70000), _reach(99),
    ],
)  # fmt: skip
def test_rules_without_sense_are_refused_and_never_reach_nft(rules: GatewayRules) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        list(gateway_table.lines("wg0", rules))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("gate") as made:
        yield made


def ruleset(namespace: Namespace) -> str:
    return namespace.run("nft", "list", "ruleset").stdout


def listed(namespace: Namespace) -> list[dict[str, Any]]:
    return namespace.call(firewall.ruleset)


def renamed(text: str) -> str:
    """Gives each map of sources one name: each table has another."""
    return re.sub(r"(sources[46])_[0-9]+", r"\1", text)


def runs(namespace: Namespace, lines: Iterator[str]) -> None:
    text = "\n".join(lines)
    assert namespace.call(lambda: firewall.run(text)) == ""


@needs_root
@pytest.mark.parametrize("name", ["wg0", "a=b+c.d_e-f"])
def test_nft_takes_the_whole_table_and_replaces_it_in_one_step(namespace: Namespace, name: str) -> None:
    runs(namespace, gateway_table.lines(name, EVERYTHING))
    first = ruleset(namespace)
    standing = namespace.call(lambda: firewall.find(gateway_table_of(name)))
    assert standing is not None
    assert standing.is_ours
    assert namespace.call(gateway_table.standing_forwards)
    runs(namespace, gateway_table.lines(name, EVERYTHING, standing.handle))
    assert renamed(ruleset(namespace)) == renamed(first)


IPTABLES = ("-P FORWARD DROP",)
DEBIAN = "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }"


def fill(namespace: Namespace, rules: str | tuple[str, ...]) -> None:
    if isinstance(rules, str):
        namespace.run("nft", rules)
        return
    for rule in rules:
        namespace.run("iptables-nft", *rule.split())


@needs_root
def test_neighbours_change_their_class_in_every_way(namespace: Namespace) -> None:
    """A new range may overlap an old one in part: nft must not compare them."""
    ways = [number for each in range(16) for number in (each, 15 - each, each ^ 5)]
    for way in ways:
        classes: tuple[list[str], list[str]] = ([], [])
        for peer in range(4):
            classes[way >> peer & 1].append(f"10.66.0.{peer + 2}/32")
        access = tuple(AccessClass(packed(*each), bool(number), ()) for number, each in enumerate(classes) if each)
        standing = namespace.call(lambda: firewall.find(gateway_table_of("wg0")))
        handle = standing.handle if standing else 0
        runs(namespace, gateway_table.lines("wg0", GatewayRules((4,), (), access=access), handle))


# --- the host ------------------------------------------------------------------------------------------------

FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.accept_redirects")


def set_sysctl(namespace: Namespace, name: str, value: str) -> None:
    namespace.run("sysctl", "-w", f"{name}={value}")


def forwarding(namespace: Namespace) -> list[str]:
    return [namespace.run("sysctl", "-n", name).stdout.strip() for name in FORWARDING]


def wanted(rules: GatewayRules) -> Wanted:
    return Wanted(("10.66.0.1/24", "fd66::1/64"), 1420, "auto", 0, rules)


@pytest.fixture
def kept(namespace: Namespace, tmp_path: Path) -> Iterator[Kept]:
    for name in FORWARDING:
        set_sysctl(namespace, name, "0")
    made = Kept(namespace, tmp_path, (), wanted(NO_RULES))
    yield made
    made.close()


def tables(namespace: Namespace) -> str:
    return namespace.run("nft", "list", "tables").stdout


@needs_root
def test_an_exit_comes_and_goes_with_all_it_changed(kept: Kept) -> None:
    assert tables(kept.namespace) == ""
    kept.begin(wanted(EXIT))
    assert kept.said[-1] == ""
    assert forwarding(kept.namespace)[:2] == ["1", "1"]
    assert "stagewire-wg0/gateway" in tables(kept.namespace)
    kept.begin(wanted(NO_RULES))
    assert tables(kept.namespace) == ""
    assert forwarding(kept.namespace) == ["0", "0", "0"]
    assert [each for each in kept.ground.ledger.operations() if isinstance(each, ForwardingSet | NftTableMade)] == []


@needs_root
def test_what_others_undo_is_put_back(kept: Kept) -> None:
    kept.begin(wanted(EXIT))
    kept.namespace.run("nft", "flush", "ruleset")
    kept.until(lambda: "stagewire-wg0/gateway" in tables(kept.namespace), "the table to be back")
    set_sysctl(kept.namespace, "net.ipv4.ip_forward", "0")
    kept.until(lambda: forwarding(kept.namespace)[0] == "1", "forwarding to be back on")
    assert kept.ground.put_back == {"firewall": 1, "sysctl": 1}


@needs_root
def test_a_foreign_policy_of_drop_is_named_or_opened_and_closed_again(kept: Kept) -> None:
    namespace = kept.namespace
    fill(namespace, IPTABLES)
    before = ruleset(namespace)
    kept.begin(wanted(EXIT))
    [warning] = kept.ground.warnings.values()
    assert "chain FORWARD of table ip filter drops what peers send through this host" in warning
    answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    assert f"`iptables -I FORWARD -i wg0 -j ACCEPT; iptables -I FORWARD -o wg0 {answers}`" in warning
    assert gateway.kept(["another", warning]) == tuple(warning.split(": ", 1)), "`why` knows the warning"
    assert gateway.kept(["another"]) is None
    kept.begin(wanted(OPENS))
    assert kept.ground.warnings == {}
    assert PassOpened("ip", "filter", "FORWARD") in kept.ground.ledger
    namespace.run("iptables-nft", "-F", "FORWARD")
    kept.until(lambda: "-i wg0" in namespace.run("iptables-nft", "-S").stdout, "our rules to be back")
    namespace.run("nft", DEBIAN)
    kept.until(lambda: "iifname" in namespace.run("nft", "list", "table", "inet", "filter").stdout, "a later firewall")
    namespace.run("nft", "delete", "table", "inet", "filter")
    kept.begin(wanted(NO_RULES))
    assert ruleset(namespace) == before


@needs_root
def test_an_open_firewall_lets_pass_what_is_needed_alone(kept: Kept) -> None:
    namespace = kept.namespace
    fill(namespace, DEBIAN)
    before = ruleset(namespace)

    def ours() -> set[str]:
        found = re.findall(r'([io]ifname "wg0" .*?)counter', ruleset(namespace).partition("table inet filter")[2])
        return {each.replace('"wg0" ', "").strip() for each in found}

    for rules, lets in (
        (OPENS, {"iifname", "oifname ct state established,related"}),
        (replace(OPENS, masquerades=(4,)), {"iifname", "oifname"}),
        (
            replace(OPENS, ports=a_port().ports),
            {"iifname", "oifname ct state established,related", "oifname ct status dnat"},
        ),
        (OPENS, {"iifname", "oifname ct state established,related"}),
    ):
        kept.begin(wanted(rules))
        assert ours() == lets
    namespace.run("nft", "insert rule inet filter forward drop")
    kept.until(lambda: not re.search(r"policy drop;\n\t\tdrop", ruleset(namespace)), "ours to come first again")
    assert ours() == {"iifname", "oifname ct state established,related"}
    kept.begin(wanted(NO_RULES))
    namespace.run("nft", "flush chain inet filter forward")
    assert ruleset(namespace) == before


@needs_root
def test_forwarding_stays_for_a_program_that_came_to_need_it(kept: Kept) -> None:
    kept.begin(wanted(EXIT))
    kept.namespace.run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-o", "docker0", "-j", "MASQUERADE")
    kept.begin(wanted(NO_RULES))
    assert forwarding(kept.namespace)[0] == "1"


@needs_root
def test_the_last_of_two_gateways_gives_forwarding_back(kept: Kept) -> None:
    kept.begin(wanted(EXIT))
    runs(kept.namespace, gateway_table.lines("wg1", EXIT))
    kept.begin(wanted(NO_RULES))
    assert forwarding(kept.namespace)[:2] == ["1", "1"]
    kept.namespace.run("nft", "flush", "ruleset")
    kept.begin(wanted(EXIT))
    kept.begin(wanted(NO_RULES))
    assert forwarding(kept.namespace)[:2] == ["0", "0"]


@needs_root
def test_a_table_of_the_name_that_is_not_ours_refuses_the_rules(kept: Kept) -> None:
    kept.namespace.run("nft", "add", "table", "inet", "stagewire-wg0/gateway")
    kept.begin(wanted(EXIT))
    assert "nftables table inet stagewire-wg0/gateway is not ours" in kept.said[-1]
    assert forwarding(kept.namespace)[0] == "0"


@needs_root
@pytest.mark.parametrize("ledger_lost", [False, True])
def test_all_is_undone_after_the_service_is_gone(kept: Kept, tmp_path: Path, ledger_lost: bool) -> None:
    namespace = kept.namespace
    fill(namespace, DEBIAN)
    before = ruleset(namespace)
    kept.begin(wanted(OPENS))
    assert "oifname" in namespace.run("nft", "list", "table", "inet", "filter").stdout
    if ledger_lost:
        (tmp_path / "ledger").unlink()
    operations = Ledger(tmp_path / "ledger").operations()
    told: list[str] = []
    namespace.call(lambda: undo.undo("wg0", 0, operations, told.append))
    assert told == []
    assert ruleset(namespace) == before
    assert forwarding(namespace)[:2] == ["0", "0"]
    assert "nop" not in namespace.run("ip", "rule").stdout


@needs_root
def test_rules_without_sense_refuse_the_settings(kept: Kept) -> None:
    kept.begin(wanted(GatewayRules(masquerades=(5,))))
    assert "make no sense" in kept.said[-1]


class ReadOnly:
    """A value of /proc/sys in a container."""

    def read_text(self) -> str:
        return "0\n"

    def write_text(self, _value: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@needs_root
def test_forwarding_that_cannot_be_switched_on_is_a_warning_with_the_command(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding_of_host, "PATHS", {4: ReadOnly(), 6: forwarding_of_host.PATHS[6]})
    kept.begin(wanted(EXIT))
    assert kept.said[-1] == ""
    assert kept.ground.warnings["forwarding 4"].endswith(
        "no IPv4, and this can't be changed here (Read-only file system): `sysctl -w net.ipv4.ip_forward=1`"
    )
    assert forwarding(kept.namespace)[1] == "1"


def advertise(router: Namespace, link: str) -> None:
    """A router tells its neighbours a default route."""
    said = IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
    frame = bytes(Ether(src="02:00:00:00:00:01", dst="33:33:00:00:00:01") / said)
    with router.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as line:
        line.bind((link, 0))
        line.send(frame)


@needs_root
def test_a_host_keeps_the_routes_that_a_router_has_advertised(kept: Kept) -> None:
    host = kept.namespace
    with Namespace("router") as router:
        link = veth(router, host, ["fe80::1/64"], ["2001:db8::2/64"])

        def has_route() -> bool:
            return "default via fe80::1" in host.run("ip", "-6", "route").stdout

        def told() -> bool:
            advertise(router, link.a_interface)
            return has_route()

        until(told, 10, "a default route by advertisement")
        path = f"net.ipv6.conf.{link.b_interface}.accept_ra"
        kept.begin(wanted(EXIT))
        assert has_route()
        assert host.run("sysctl", "-n", path).stdout.strip() == "2"
        kept.begin(wanted(NO_RULES))
        assert host.run("sysctl", "-n", path).stdout.strip() == "1"
