"""What the command reads of the host: rules of nftables, routes, pings."""

import os
import struct
from typing import Any

import pytest

from stagewire_cli import host_facts, ping
from stagewire_cli.host_facts import Denied
from stagewire_cli.ruleset import Block


def ruleset(*rules: list[Any], policy: str = "accept") -> dict[str, Any]:
    chain = {"family": "inet", "table": "f", "name": "in", "hook": "input", "policy": policy}
    of = {"family": "inet", "table": "f", "chain": "in", "handle": 7}
    return {"nftables": [{"metainfo": {}}, {"chain": chain}, *({"rule": {**of, "expr": expr}} for expr in rules)]}


def dport(right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": right}}


RULE = Block("a rule in chain in of table inet f", ("nft", "delete", "rule", "inet", "f", "in", "handle", "7"))
POLICY = Block(
    "the policy of chain in of table inet f",
    ("nft", "insert", "rule", "inet", "f", "in", "udp", "dport", "51820", "accept"),
)


@pytest.mark.parametrize(
    ("found", "blocks"),
    [
        (ruleset([dport(51820), {"drop": None}]), RULE),
        (ruleset([dport({"set": [1, 51820]}), {"reject": {}}]), RULE),
        (ruleset([dport(51821), {"drop": None}]), None),
        (ruleset([dport(51820), {"accept": None}]), None),
        (ruleset([dport(22), {"accept": None}], policy="drop"), POLICY),
        (ruleset([dport(51820), {"accept": None}], policy="drop"), None),
        (None, None),
    ],
)
def test_what_drops_our_port(monkeypatch: pytest.MonkeyPatch, found: Any, blocks: Block | None) -> None:
    monkeypatch.setattr(host_facts, "asked", lambda *_: found)
    assert host_facts.Firewall().blocks(51820) == ([] if blocks is None else [blocks])


def test_a_network_that_another_link_has_too(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "wg0": ["10.9.0.1/24", "fe80::1/64", "fd00::1/64", "10.8.0.1/32"], "eth0": ["10.9.0.7/24", "fe80::2/64"],
        "eth1": ["10.9.0.129/25"], "wg1": ["10.8.0.1/32"], "eth2": ["10.0.0.1/8", "fd00:0:0:1::1/64"],
    }  # fmt: skip
    links = [
        {
            "ifname": name,
            "addr_info": [{"local": a, "prefixlen": int(n)} for a, n in (each.split("/") for each in all_)],
        }
        for name, all_ in held.items()
    ]
    monkeypatch.setattr(host_facts, "asked", lambda *_: links)
    shared = host_facts.Links().shared_networks("wg0")
    assert shared == [("10.9.0.0/24", "eth0"), ("10.9.0.0/24", "eth1")], "a wider network leaves ours to us"


def meta(key: str, right: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}


@pytest.mark.parametrize(
    ("found", "blocks"),
    [
        (ruleset([meta("iifname", "wg0"), {"drop": None}]), RULE),
        (ruleset([meta("iif", "wg0"), {"counter": {"packets": 3}}, {"reject": {}}]), RULE),
        (ruleset([meta("oifname", "wg0"), {"drop": None}]), None),
        (ruleset([meta("iifname", "wg1"), {"drop": None}]), None),
        (ruleset([meta("iifname", "wg0"), {"accept": None}]), None),
        (None, None),
    ],
)
def test_what_drops_all_of_the_tunnel(monkeypatch: pytest.MonkeyPatch, found: Any, blocks: Block | None) -> None:
    monkeypatch.setattr(host_facts, "asked", lambda *_: found)
    assert host_facts.Firewall().blocks_tunnel("wg0") == ([] if blocks is None else [blocks])


def test_whether_sources_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in (
        (ruleset([{"masquerade": None}]), True), (ruleset([{"snat": {"addr": "192.0.2.1"}}]), True),
        (ruleset([{"accept": None}]), False), (None, None),
    ):  # fmt: skip
        monkeypatch.setattr(host_facts, "asked", lambda *_, found=found: found)
        assert host_facts.Firewall().masquerades() is expected


def test_what_access_rules_dropped_is_read_most_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def element(source: str, destination: str, packets: int) -> dict[str, Any]:
        return {"elem": {"val": {"concat": [source, destination]}, "counter": {"packets": packets, "bytes": 1}}}

    place = {"family": "inet", "table": "stagewire-wg0/gateway"}
    some = {
        "set": {
            **place,
            "name": "denied4",
            "elem": [element("10.0.0.2", "10.9.0.1", 3), element("10.0.0.3", "10.9.0.2", 5)],
        }
    }
    none = {"set": {**place, "name": "denied6"}}
    other = {"set": {**place, "table": "stagewire-wg1/gateway", "name": "denied4", "elem": [element("a", "b", 1)]}}
    rule = {"rule": {**place, "chain": "forward", "comment": "isolated", "expr": []}}
    monkeypatch.setattr(host_facts, "asked", lambda *_: {"nftables": [some, none, other, rule]})
    firewall = host_facts.Firewall()
    assert firewall.denied("wg0") == [Denied("10.0.0.3", "10.9.0.2", 5), Denied("10.0.0.2", "10.9.0.1", 3)]
    assert firewall.denied("wg2") == []
    assert firewall.isolates("wg0")
    assert not firewall.isolates("wg1")


def test_routes_lead_somewhere_nowhere_or_to_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "10.0.0.2": [{"dev": "wg0"}], "10.1.255.254": [{"dev": "eth0"}], "8.8.8.8": [], "fd00::1": [{"type": "local"}]
    }  # fmt: skip
    monkeypatch.setattr(host_facts, "asked", lambda *words: answers.get(words[-1]))
    assert host_facts.routes(["10.0.0.2/32", "10.1.0.0/16", "0.0.0.0/0", "fd00::1/128", "10.9.0.0/16"]) == {
        "10.0.0.2/32": "wg0", "10.1.0.0/16": "eth0", "0.0.0.0/0": ""
    }  # fmt: skip


def test_settings_that_are_missing_are_no_error() -> None:
    assert host_facts.Links().mtu("no-such-link") == 0
    assert host_facts.strict_source("no-such-link") in (True, False)
    assert host_facts.source_drops() >= 0
    assert all(count >= 0 for count in host_facts.refused_forwards().values())
    assert set(host_facts.forwards()) <= {4, 6}
    assert host_facts.Firewall().masquerades() in (True, False, None)


def test_a_busy_process_is_told_from_an_idle_one() -> None:
    busy = host_facts.Busy({"me": os.getpid(), "gone": 0})
    end = os.times().user + 0.12
    while os.times().user < end:
        pass
    loads = busy.loads()
    assert loads["me"].uses > 0
    assert loads["me"].waits >= 0
    assert loads["gone"] == host_facts.Load(0)


def test_the_checksum_of_an_echo_request() -> None:
    data = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"odd"
    found = data[:2] + ping._checksum(data).to_bytes(2) + data[4:]
    total = sum(struct.unpack("!6H", found + b"\0"))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
