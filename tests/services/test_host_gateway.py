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

from host_service import firewall, gateway_table, passes, undo
from host_service import forwarding as forwarding_of_host
from host_service.gateway_table import flattened
from host_service.ground import Wanted
from host_service.ledger import ForwardingSet, Ledger, NftTableMade, PassOpened
from host_service.passes import Chain
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


def _port(*, protocol: int = TCP, port: int = 80, address: bytes = bytes(4)) -> GatewayRules:
    return GatewayRules(ports=(PortForward(protocol, port, address, 80, keeps_source=False),))


def _reach(protocol: int, *ports: int) -> GatewayRules:
    return GatewayRules(access=(AccessClass((), False, (Destination(b"", protocol, ports),)),))


@pytest.mark.parametrize(
    "rules",
    [
        GatewayRules(masquerades=(5,)), _port(port=0), _port(address=bytes(3)), _port(protocol=ICMP),
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
DOCKER = (
    "-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A FORWARD -i docker0 -j ACCEPT",
    "-A DOCKER-USER -j RETURN",
)  # fmt: skip
UFW = ("-P FORWARD DROP", "-N ufw-before-forward", "-A FORWARD -j ufw-before-forward")
DEBIAN = "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }"
FIREWALLD = """table inet firewalld { chain filter_FORWARD_POLICIES { iifname "eth0" accept; }; chain filter_FORWARD {
    type filter hook forward priority 10; policy accept; ct state established accept; jump filter_FORWARD_POLICIES;
    reject with icmpx admin-prohibited; }; }"""


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


@needs_root
@pytest.mark.parametrize(
    ("rules", "commands"),
    [
        (IPTABLES, ["iptables -I FORWARD -i wg0 -j ACCEPT", "iptables -I FORWARD -o wg0 -j ACCEPT"]),
        (DOCKER, ["iptables -I DOCKER-USER -i wg0 -j ACCEPT", "iptables -I DOCKER-USER -o wg0 -j ACCEPT"]),
        (UFW, ["ufw route allow in on wg0", "ufw route allow out on wg0"]),
        (FIREWALLD, [f"firewall-cmd --permanent {each}" for each in (
            "--zone=trusted --add-interface=wg0", "--new-policy=to-trusted", "--policy=to-trusted --add-ingress-zone=ANY",
            "--policy=to-trusted --add-egress-zone=trusted", "--policy=to-trusted --set-target=ACCEPT",
        )] + ["firewall-cmd --reload"]),
        (DEBIAN, ["nft insert rule inet filter forward iifname wg0 accept",
                  "nft insert rule inet filter forward oifname wg0 accept"]),
    ],
    ids=["iptables", "docker", "ufw", "firewalld", "nftables"],
)  # fmt: skip
def test_each_firewall_that_keeps_packets_has_its_commands_and_is_opened_and_closed(
    namespace: Namespace, rules: str | tuple[str, ...], commands: list[str]
) -> None:
    fill(namespace, rules)
    before = ruleset(namespace)
    [found] = passes.obstacles(listed(namespace), "wg0", (4, 6))
    assert passes.commands(found, "wg0") == commands
    runs(namespace, passes.opening(found.place, found.passes, "wg0"))
    assert passes.obstacles(listed(namespace), "wg0", (4, 6)) == []
    assert passes.obstacles(listed(namespace), "wg1", (4, 6)) == [found]
    if isinstance(rules, tuple):
        shown = namespace.run("iptables-nft", "-S").stdout
        own = f'-A {found.place.name} -i wg0 -m comment --comment "made by stagewire for wg0" -j ACCEPT'
        assert own in shown, "iptables shows our rule as one of its own"
    ours = passes.standing(listed(namespace), "wg0")
    assert {each.chain for each in ours} == {found.place}
    runs(namespace, passes.closing(ours))
    assert ruleset(namespace) == before


FORWARD = "chain forward { type filter hook forward priority 0; policy"


@needs_root
@pytest.mark.parametrize(
    "rules",
    [
        f"table inet f {{ {FORWARD} accept; tcp dport 25 drop; }}; }}",
        f'table inet f {{ {FORWARD} drop; iifname "wg0" accept; oifname "wg0" accept; }}; }}',
        f"table inet f {{ {FORWARD} drop; counter accept; }}; }}",
        f'table inet f {{ {FORWARD} accept; iifname != "wg*" drop; oifname != {{ "wg0", "wg1" }} tcp dport 25 drop; }}; }}',
        (
            f"table inet f {{ chain o {{ ct state vmap {{ new : accept, established : accept }}; }}; {FORWARD} drop; "
            'iifname vmap { "wg0" : accept }; oifname "wg0" jump o; }; }'
        ),
        f"table inet f {{ {FORWARD} accept; ct state invalid drop; meta nfproto ipv6 limit rate over 9/second drop; }}; }}",
        f"table inet f {{ {FORWARD} accept; jump end; drop; }}; chain end {{ meta nfproto {{ ipv4, ipv6 }} accept; }}; }}",
        "table inet f { chain input { type filter hook input priority 0; policy drop; }; }",
        f"table bridge f {{ {FORWARD} drop; }}; }}",
    ],
)
def test_a_chain_that_keeps_none_of_our_packets_is_no_obstacle(namespace: Namespace, rules: str) -> None:
    fill(namespace, rules)
    assert passes.obstacles(listed(namespace), "wg0", (4, 6)) == []


@needs_root
@pytest.mark.parametrize(
    ("rules", "ways"),
    [
        (f"{FORWARD} accept; meta nfproto ipv6 drop; }};", passes.WAYS),
        (f"{FORWARD} accept; meta protocol ip6 counter log reject; }};", passes.WAYS),
        (f'{FORWARD} accept; iifname != "eth0" drop; }};', ("iifname",)),
        (f'{FORWARD} accept; oifname {{ "wg*", "tun*" }} drop; }};', ("oifname",)),
        (f"{FORWARD} accept; jump own; }}; chain own {{ iifname vmap {{ eth0 : accept }}; drop; }};", passes.WAYS),
        (f"{FORWARD} accept; goto own; accept; }}; chain own {{ ct state vmap {{ new : drop }}; }};", passes.WAYS),
        (f"{FORWARD} drop; jump own; accept; }}; chain own {{ return; accept; }};", ()),
        (f"{FORWARD} drop; limit rate 5/second accept; }};", passes.WAYS),
    ],
)
def test_a_rule_that_drops_all_of_a_kind_is_seen_and_opened(
    namespace: Namespace, rules: str, ways: tuple[str, ...]
) -> None:
    own = rules.partition("chain own")
    fill(
        namespace, f"table inet f {{ {''.join(own[1:])} {own[0]} }}"
    )  # nft wants a chain before a rule that leads to it
    found = passes.obstacles(listed(namespace), "wg0", (4, 6))
    assert [each.ways for each in found] == ([ways] if ways else [])
    for each in found:
        runs(namespace, passes.opening(each.place, each.passes, "wg0"))
    assert passes.obstacles(listed(namespace), "wg0", (4, 6)) == []


STATEFUL = f"{FORWARD} drop; ct state {{ established, related }} accept; %s }}; }}"


@needs_root
@pytest.mark.parametrize(
    ("rules", "more", "ways"),
    [
        (EXIT, "", ("iifname",)),
        (EXIT, 'iifname "wg0" accept;', ()),
        (EXIT, 'iifname "wg0" tcp dport 443 accept;', ("iifname",)),
        (GatewayRules((4, 6), (4,)), 'iifname "wg0" accept;', ("oifname",)),
        (replace(EXIT, ports=_port().ports), 'iifname "wg0" accept;', ("oifname",)),
        (replace(EXIT, ports=_port().ports), 'iifname "wg0" accept; ct status dnat accept;', ()),
        (replace(EXIT, ports=_port().ports), 'iifname "wg0" accept; ct state new accept;', ()),
        (replace(_port(), forwards=(4,), ports_alone=True), "ct status dnat accept;", ()),
        (replace(_port(), forwards=(4,), ports_alone=True), "", ("oifname",)),
    ],
)
def test_a_firewall_that_lets_answers_pass_needs_a_rule_for_what_others_begin_alone(
    namespace: Namespace, rules: GatewayRules, more: str, ways: tuple[str, ...]
) -> None:
    fill(namespace, f"table inet f {{ {STATEFUL % more}")
    found = passes.obstacles(listed(namespace), "wg0", rules.forwards, passes.needs(rules))
    assert [each.ways for each in found] == ([ways] if ways else [])


def test_a_family_that_is_not_forwarded_has_no_obstacles() -> None:
    chain = {
        "family": "ip6",
        "table": "filter",
        "name": "FORWARD",
        "type": "filter",
        "hook": "forward",
        "policy": "drop",
    }
    assert passes.obstacles([{"chain": chain}], "wg0", (4,)) == []
    [found] = passes.obstacles([{"chain": chain}], "wg0", (4, 6))
    assert found.chain == Chain("ip6", "filter", "FORWARD")
    assert passes.commands(found, "wg0")[0] == "ip6tables -I FORWARD -i wg0 -j ACCEPT"


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
            replace(OPENS, ports=_port().ports),
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
