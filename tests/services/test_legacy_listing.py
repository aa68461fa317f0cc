"""Rules of iptables-legacy, judged as those of nftables are."""

import pytest

from stagewire_cli.legacy_listing import listed
from stagewire_cli.ruleset import Block, Ruleset, Traffic

DATAGRAMS = Traffic(("prerouting", "input"), 4, "udp", "eth0", "", "192.0.2.1", destination_port=51820)
TABLE = "*filter\n:INPUT {policy} [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:sub - [0:0]\n{rules}COMMIT\n"


def blocks(*rules: str, policy: str = "ACCEPT", program: str = "iptables") -> list[Block]:
    text = TABLE.format(policy=policy, rules="".join(f"-A {rule}\n" for rule in rules))
    return Ruleset(listed(program, text)).blocks(DATAGRAMS)


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("INPUT -p udp -m udp --dport 51820 -j DROP", ""),
        ("INPUT -p udp -m multiport --dports 53,51000:52000 -j REJECT --reject-with icmp-port-unreachable", ""),
        ("INPUT -s 192.0.2.0/24 -i eth+ -j DROP", ""),
        (
            "INPUT -p udp -m udp --dport 51820 -m statistic --mode random --probability 0.5 -j DROP",
            "some of them at random",
        ),
        ("INPUT -p udp -m length --length 1000:65535 -j DROP", "those of certain lengths"),
        ("INPUT -m conntrack --ctstate NEW -j DROP", "those that begin a connection"),
        (
            "INPUT -p udp -m recent --update --seconds 9 --name x --mask 255.255.255.255 -j DROP",
            "certain ones (recent)",
        ),
    ],
)
def test_what_a_rule_drops(rule: str, part: str) -> None:
    [block] = blocks(rule)
    assert block.part == part
    assert block.text == "a rule in chain INPUT of table ip filter (iptables-legacy)"
    assert block.mend == ("iptables-legacy", "-t", "filter", "-D", *rule.split())


@pytest.mark.parametrize(
    "rule",
    [
        "INPUT -p tcp -m tcp --dport 51820 -j DROP",
        "INPUT ! -s 192.0.2.0/24 -j DROP",
        "INPUT ! -i eth0 -j DROP",
        "INPUT -i lo -j DROP",
        "INPUT -p udp -j LOG",
        "FORWARD -j DROP",
        "OUTPUT -j DROP",
    ],
)
def test_a_rule_that_leaves_our_datagrams_alone(rule: str) -> None:
    assert blocks(rule) == []


def test_policies_and_other_chains() -> None:
    [block] = blocks(policy="DROP")
    assert block.mend == (
        "iptables-legacy",
        "-t",
        "filter",
        "-I",
        "INPUT",
        "-p",
        "udp",
        "--dport",
        "51820",
        "-j",
        "ACCEPT",
    )
    assert blocks("INPUT -p udp -m udp --dport 51820 -j ACCEPT", policy="DROP") == []
    [block] = blocks("INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", policy="DROP")
    assert block.part == "those that begin a connection"
    assert blocks("INPUT -p udp -j sub", "sub -p udp -j DROP") != []
    assert blocks("INPUT -p udp -j sub", "sub -p udp -j RETURN") == []
    assert blocks("INPUT -j DROP", program="ip6tables") == []
