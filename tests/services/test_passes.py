"""Chains of other firewalls that keep packets of peers: seen, opened no wider than needed, and closed again."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.services.test_host_gateway import DEBIAN, EXIT, IPTABLES, a_port, fill, listed, needs_root, ruleset, runs

from host_service import passes
from lab.namespaces import Namespace
from stagewire.control.gateway import GatewayRules
from stagewire.linux.forwarded import WAYS, Chain, obstacles


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("pass") as made:
        yield made


DOCKER = (
    "-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A FORWARD -i docker0 -j ACCEPT",
    "-A DOCKER-USER -j RETURN",
)  # fmt: skip
UFW = ("-P FORWARD DROP", "-N ufw-before-forward", "-A FORWARD -j ufw-before-forward")
FIREWALLD = """table inet firewalld { chain filter_FORWARD_POLICIES { iifname "eth0" accept; }; chain filter_FORWARD {
    type filter hook forward priority 10; policy accept; ct state established accept; jump filter_FORWARD_POLICIES;
    reject with icmpx admin-prohibited; }; }"""


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
    [found] = obstacles(listed(namespace), "wg0", (4, 6))
    assert passes.commands(found, "wg0") == commands
    runs(namespace, passes.opening(found.place, found.passes, "wg0"))
    assert obstacles(listed(namespace), "wg0", (4, 6)) == []
    assert obstacles(listed(namespace), "wg1", (4, 6)) == [found]
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
    assert obstacles(listed(namespace), "wg0", (4, 6)) == []


@needs_root
@pytest.mark.parametrize(
    ("rules", "ways"),
    [
        (f"{FORWARD} accept; meta nfproto ipv6 drop; }};", WAYS),
        (f"{FORWARD} accept; meta protocol ip6 counter log reject; }};", WAYS),
        (f'{FORWARD} accept; iifname != "eth0" drop; }};', ("iifname",)),
        (f'{FORWARD} accept; oifname {{ "wg*", "tun*" }} drop; }};', ("oifname",)),
        (f"{FORWARD} accept; jump own; }}; chain own {{ iifname vmap {{ eth0 : accept }}; drop; }};", WAYS),
        (f"{FORWARD} accept; goto own; accept; }}; chain own {{ ct state vmap {{ new : drop }}; }};", WAYS),
        (f"{FORWARD} drop; jump own; accept; }}; chain own {{ return; accept; }};", ()),
        (f"{FORWARD} drop; limit rate 5/second accept; }};", WAYS),
    ],
)
def test_a_rule_that_drops_all_of_a_kind_is_seen_and_opened(
    namespace: Namespace, rules: str, ways: tuple[str, ...]
) -> None:
    own = rules.partition("chain own")
    fill(
        namespace, f"table inet f {{ {''.join(own[1:])} {own[0]} }}"
    )  # nft wants a chain before a rule that leads to it
    found = obstacles(listed(namespace), "wg0", (4, 6))
    assert [each.ways for each in found] == ([ways] if ways else [])
    for each in found:
        runs(namespace, passes.opening(each.place, each.passes, "wg0"))
    assert obstacles(listed(namespace), "wg0", (4, 6)) == []


STATEFUL = f"{FORWARD} drop; ct state {{ established, related }} accept; %s }}; }}"


@needs_root
@pytest.mark.parametrize(
    ("rules", "more", "ways"),
    [
        (EXIT, "", ("iifname",)),
        (EXIT, 'iifname "wg0" accept;', ()),
        (EXIT, 'iifname "wg0" tcp dport 443 accept;', ("iifname",)),
        (GatewayRules((4, 6), (4,)), 'iifname "wg0" accept;', ("oifname",)),
        (replace(EXIT, ports=a_port().ports), 'iifname "wg0" accept;', ("oifname",)),
        (replace(EXIT, ports=a_port().ports), 'iifname "wg0" accept; ct status dnat accept;', ()),
        (replace(EXIT, ports=a_port().ports), 'iifname "wg0" accept; ct state new accept;', ()),
        (replace(a_port(), forwards=(4,), ports_alone=True), "ct status dnat accept;", ()),
        (replace(a_port(), forwards=(4,), ports_alone=True), "", ("oifname",)),
    ],
)
def test_a_firewall_that_lets_answers_pass_needs_a_rule_for_what_others_begin_alone(
    namespace: Namespace, rules: GatewayRules, more: str, ways: tuple[str, ...]
) -> None:
    fill(namespace, f"table inet f {{ {STATEFUL % more}")
    found = obstacles(listed(namespace), "wg0", rules.forwards, passes.needs(rules))
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
    assert obstacles([{"chain": chain}], "wg0", (4,)) == []
    [found] = obstacles([{"chain": chain}], "wg0", (4, 6))
    assert found.chain == Chain("ip6", "filter", "FORWARD")
    assert passes.commands(found, "wg0")[0] == "ip6tables -I FORWARD -i wg0 -j ACCEPT"


def test_many_ways_to_one_chain_are_walked_once() -> None:
    place = {"family": "inet", "table": "f"}
    base = {**place, "name": "c0", "type": "filter", "hook": "forward", "policy": "drop"}
    jumps = [{**place, "chain": f"c{each}", "expr": [{"jump": {"target": f"c{each + 1}"}}]} for each in range(15)]
    ruleset: list[dict[str, Any]] = [{"chain": base}, *({"rule": each} for each in jumps for _ in range(9))]
    assert [each.ways for each in obstacles(ruleset, "wg0", (4, 6))] == [WAYS]
