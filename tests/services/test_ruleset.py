"""Which rules of nftables drop packets of one kind: all, a part, or only what a rule is meant for."""

from typing import Any

import pytest

from stagewire_cli.ruleset import Block, Ruleset, Traffic

IN = ("ingress", "prerouting", "input")
DATAGRAMS = Traffic(IN, 4, "udp", "eth0", "", "192.0.2.1", destination_port=51820)
TUNNEL = Traffic(IN, 4, incoming="wg0", source="10.0.0.2")
DROP: dict[str, Any] = {"drop": None}
ACCEPT: dict[str, Any] = {"accept": None}
Rule = list[dict[str, Any]]


def chain(name: str = "in", hook: str = "input", policy: str = "accept", **more: Any) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "f", "name": name, "hook": hook, "policy": policy, **more}}


def rule(*expressions: dict[str, Any], of: str = "in", handle: int = 7) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "f", "chain": of, "handle": handle, "expr": [*expressions]}}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": field}}, right, op)


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, right, op)


def xt(name: str, kind: str = "match") -> dict[str, Any]:
    return {"xt": {"type": kind, "name": name}}


PORT = payload("udp", "dport", 51820)
STATE = {"ct": {"key": "state"}}
RANDOM = match({"numgen": {"mode": "random", "mod": 100, "offset": 0}}, 50, "<")
KNOWN = match(STATE, ["established", "related"], "in")


@pytest.mark.parametrize(
    ("expressions", "part", "narrow"),
    [
        ([PORT, DROP], "", False),
        ([DROP], "", False),
        ([PORT, {"counter": {"packets": 0, "bytes": 0}}, DROP], "", False),
        ([payload("udp", "dport", {"range": [51000, 52000]}), DROP], "", False),
        ([payload("udp", "dport", {"set": [53, {"range": [51000, 52000]}]}), DROP], "", False),
        ([payload("th", "dport", 51820), {"reject": {}}], "", False),
        ([PORT, xt("REJECT", "target")], "", False),
        ([payload("ip", "saddr", "192.0.2.1"), DROP], "", False),
        ([payload("ip", "saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}), PORT, DROP], "", False),
        ([payload("ip", "saddr", "@bad"), PORT, DROP], "", False),
        ([meta("iifname", "eth*"), DROP], "", False),
        ([meta("iifname", "wg0", "!="), PORT, DROP], "", False),
        ([PORT, RANDOM, DROP], "some of them at random", False),
        ([PORT, xt("statistic"), DROP], "some of them at random", False),
        ([PORT, meta("length", 1200, ">"), DROP], "those of certain lengths", False),
        ([payload("udp", "length", 1200, ">"), DROP], "those of certain lengths", False),
        ([PORT, match(STATE, "new"), DROP], "those that begin a connection", False),
        ([PORT, {"limit": {"rate": 5, "per": "second", "inv": True}}, DROP], "those above a rate", True),
        ([PORT, meta("mark", 7), DROP], "certain ones", True),
        ([PORT, xt("recent"), DROP], "certain ones (recent)", True),
    ],
)
def test_what_a_rule_drops_of_our_datagrams(expressions: Rule, part: str, narrow: bool) -> None:
    bad = {
        "set": {"family": "inet", "table": "f", "name": "bad", "elem": [{"prefix": {"addr": "192.0.0.0", "len": 8}}]}
    }
    [block] = Ruleset([chain(), bad, rule(*expressions)]).blocks(DATAGRAMS)
    assert (block.part, block.narrow) == (part, narrow)
    assert block.mend == ("nft", "delete", "rule", "inet", "f", "in", "handle", "7")


@pytest.mark.parametrize(
    "expressions",
    [
        [PORT, ACCEPT],
        [payload("udp", "dport", 53), DROP],
        [payload("tcp", "dport", 51820), DROP],
        [meta("l4proto", "tcp"), DROP],
        [payload("ip", "protocol", "icmp"), DROP],
        [payload("ip6", "saddr", "2001:db8::1"), DROP],
        [payload("ip", "saddr", "203.0.113.1"), DROP],
        [payload("ip", "saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}, "!="), DROP],
        [meta("iifname", "lo"), DROP],
        [meta("iif", "wg0"), DROP],
        [meta("oifname", "eth0"), DROP],
        [match(STATE, "invalid"), DROP],
        [xt("conntrack"), DROP],
        [match({"ct": {"key": "status"}}, "dnat"), DROP],
        [PORT, RANDOM, {"counter": {"packets": 0, "bytes": 0}}, DROP],
    ],
)
def test_a_rule_that_leaves_our_datagrams_alone(expressions: Rule) -> None:
    assert Ruleset([chain(), rule(*expressions)]).blocks(DATAGRAMS) == []


def test_a_policy_drops_what_no_rule_lets_pass() -> None:
    closed = chain(policy="drop")
    mend = ("nft", "insert", "rule", "inet", "f", "in", "udp", "dport", "51820", "accept")
    assert Ruleset([closed]).blocks(DATAGRAMS) == [Block("the policy of chain in of table inet f", mend)]
    [block] = Ruleset([closed, rule(KNOWN, ACCEPT)]).blocks(DATAGRAMS)
    assert block.part == "those that begin a connection"
    assert Ruleset([closed, rule(PORT, ACCEPT)]).blocks(DATAGRAMS) == []
    assert Ruleset([closed, rule(meta("iifname", "eth0"), ACCEPT)]).blocks(DATAGRAMS) == []
    # Nobody can tell what a mark means.
    assert Ruleset([closed, rule(meta("mark", 3), ACCEPT)]).blocks(DATAGRAMS) == []
    by_map = {"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT], ["invalid", DROP]]}}}
    [block] = Ruleset([closed, rule(by_map)]).blocks(DATAGRAMS)
    assert block.part == "those that begin a connection"


def test_firewalls_as_they_come() -> None:
    """The walk must blame neither firewalld nor ufw for what they let pass."""
    zones, public = ({"chain": {"family": "inet", "table": "f", "name": name}} for name in ("zones", "public"))
    firewalld = [
        chain(), zones, public, rule(KNOWN, ACCEPT), rule(match({"ct": {"key": "status"}}, "dnat"), ACCEPT),
        rule(meta("iifname", "lo"), ACCEPT), rule(match(STATE, "invalid"), DROP), rule({"jump": {"target": "zones"}}),
        rule({"reject": {"type": "icmpx", "expr": "admin-prohibited"}}),
        rule(meta("iifname", "eth0"), {"goto": {"target": "public"}}, of="zones"),
        rule({"goto": {"target": "public"}}, of="zones"),
        rule(payload("tcp", "dport", 22), ACCEPT, of="public"),
    ]  # fmt: skip
    [block] = Ruleset(firewalld).blocks(DATAGRAMS)
    assert block.part == "those that begin a connection"
    assert Ruleset([*firewalld, rule(PORT, ACCEPT, of="public")]).blocks(DATAGRAMS) == []
    ufw = [
        chain(policy="drop"), zones, rule({"jump": {"target": "zones"}}), rule(meta("iifname", "lo"), ACCEPT, of="zones"),
        rule(xt("conntrack"), ACCEPT, of="zones"), rule(xt("conntrack"), DROP, of="zones"),
        rule(meta("l4proto", "icmp"), ACCEPT, of="zones"), rule(xt("addrtype"), {"return": None}, of="zones"),
        rule(xt("limit"), {"jump": {"target": "log"}}, of="zones"), rule(DROP, of="zones"),
    ]  # fmt: skip
    [block] = Ruleset(ufw).blocks(DATAGRAMS)
    assert (block.part, block.mend[1]) == ("those that begin a connection", "insert")
    assert Ruleset([*ufw[:3], rule(PORT, ACCEPT, of="zones"), *ufw[3:]]).blocks(DATAGRAMS) == []


def test_rules_in_order_and_in_other_chains() -> None:
    jump = rule(PORT, {"jump": {"target": "sub"}})
    listed = [chain(), {"chain": {"family": "inet", "table": "f", "name": "sub"}}]
    assert Ruleset([*listed, rule(PORT, ACCEPT), rule(PORT, DROP)]).blocks(DATAGRAMS) == []
    [block] = Ruleset([*listed, jump, rule(DROP, of="sub", handle=9)]).blocks(DATAGRAMS)
    assert block.text == "a rule in chain sub of table inet f"
    assert Ruleset([*listed, jump, rule(ACCEPT, of="sub"), rule(DROP)]).blocks(DATAGRAMS) == []
    assert Ruleset([*listed, jump, rule({"return": None}, of="sub"), rule(DROP)]).blocks(DATAGRAMS) != []
    loop = rule({"jump": {"target": "sub"}}, of="sub")
    assert Ruleset([*listed, jump, loop]).blocks(DATAGRAMS) == []


def test_what_leads_our_datagrams_elsewhere() -> None:
    listed = [chain("pre", "prerouting"), rule(PORT, {"redirect": {"port": 53}}, of="pre")]
    [block] = Ruleset(listed).blocks(DATAGRAMS)
    assert block.text == "a rule in chain pre of table inet f, which leads them elsewhere (redirect)"
    assert Ruleset([chain("pre", "prerouting"), rule(PORT, xt("DNAT", "target"), of="pre")]).blocks(DATAGRAMS) != []


def test_a_chain_of_another_device_or_version_or_of_ours() -> None:
    for family, device, expected in (
        ("netdev", "eth0", 1),
        ("netdev", "eth1", 0),
        ("netdev", "?", 1),
        ("ip6", "", 0),
        ("bridge", "", 0),
    ):
        of = {"family": family, "table": "f", "name": "in"}
        listed = [
            {"chain": {**of, "hook": "ingress", **({"dev": device} if device != "?" else {})}},
            {"rule": {**rule(PORT, DROP)["rule"], **of}},
        ]
        assert len(Ruleset(listed).blocks(DATAGRAMS)) == expected
    ours = {**chain()["chain"], "table": "stagewire-wg0"}
    assert (
        Ruleset([{"chain": ours}, {"rule": {**rule(DROP)["rule"], "table": "stagewire-wg0"}}]).blocks(DATAGRAMS) == []
    )


@pytest.mark.parametrize(
    ("expressions", "part", "narrow"),
    [
        ([meta("iifname", "wg0"), DROP], "", False),
        ([meta("iifname", "wg0"), meta("l4proto", "tcp"), DROP], "TCP packets", False),
        ([payload("ip", "protocol", "icmp"), DROP], "ICMP packets", False),
        ([meta("iifname", "wg0"), payload("tcp", "dport", 22), DROP], "certain TCP packets", True),
        ([payload("ip", "saddr", {"prefix": {"addr": "10.0.0.0", "len": 24}}), DROP], "", False),
    ],
)
def test_what_a_rule_drops_of_the_tunnel(expressions: Rule, part: str, narrow: bool) -> None:
    [block] = Ruleset([chain(), rule(*expressions)]).blocks(TUNNEL)
    assert (block.part, block.narrow) == (part, narrow)


def test_answers_pass_a_firewall_that_knows_connections() -> None:
    listed = [chain("fwd", "forward", "drop"), rule(KNOWN, ACCEPT, of="fwd")]
    assert Ruleset(listed).blocks(Traffic(("forward",), outgoing="wg0", answers=True)) == []
    [block] = Ruleset(listed).blocks(Traffic(("forward",), incoming="wg0"))
    assert block.mend == ("nft", "insert", "rule", "inet", "f", "fwd", "iifname", "wg0", "accept")
