"""Lets packets of peers pass other nftables tables, which drop them: by commands for an operator, or by rules of ours. Pure.

nftables drops a packet if any table drops it, so a table of ours can't let a packet pass that another keeps. `forwarded`
finds the chains that do.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from host_service.firewall import COMMENT
from stagewire.control.gateway import GatewayRules
from stagewire.linux.forwarded import ANSWERS, NEW, PORTS, WAYS, Chain, Listed, Needs, Obstacle, Pass

_UFW: Final = {"iifname": "in", "oifname": "out"}
_ONLY: Final = {NEW: "", ANSWERS: "ct state established,related ", PORTS: "ct status dnat "}
"""What lets a kind pass and no other; a rule without it lets all pass."""


class Own(NamedTuple):
    """Describes a rule of ours in another program's chain."""

    chain: Chain
    handle: int
    lets: Pass


def comment(interface: str) -> str:
    """Returns the comment of our rules in other tables."""
    return f"{COMMENT} for {interface}"


def needs(rules: GatewayRules) -> Needs:
    """Returns the kinds of packets, from peers and to peers, that a gateway's rules need."""
    from_peers = (ANSWERS,) if rules.ports_alone else (NEW, ANSWERS)
    if {*rules.forwards} - {*rules.masquerades} and not rules.ports_alone:
        return {WAYS[0]: from_peers, WAYS[1]: (NEW, ANSWERS)}
    return {WAYS[0]: from_peers, WAYS[1]: (ANSWERS, PORTS) if rules.ports else (ANSWERS,)}


def standing(listed: Listed, interface: str) -> list[Own]:
    """Returns our rules in other tables."""
    rules = (each["rule"] for each in listed if "rule" in each)
    return [
        Own(Chain(rule["family"], rule["table"], rule["chain"]), rule["handle"], _lets(rule["expr"]))
        for rule in rules
        if rule.get("comment") == comment(interface)
    ]


def _lets(expressions: list[dict[str, Any]]) -> Pass:
    asked = [each["match"]["left"] for each in expressions if "match" in each]
    way = next((key for key in WAYS if {"meta": {"key": key}} in asked), "")
    about = next((each["ct"].get("key") for each in asked if "ct" in each), "")
    return Pass(way, {"state": ANSWERS, "status": PORTS}.get(about, NEW))


def without(listed: Listed, interface: str) -> list[dict[str, Any]]:
    """Returns what other programs have made."""
    return [each for each in listed if each.get("rule", {}).get("comment") != comment(interface)]


def opening(place: Chain, passes: Iterable[Pass], interface: str) -> Iterator[str]:
    """Yields the lines for nft that let packets pass."""
    for way, kind in passes:
        asked = f'{way} "{interface}" {_ONLY[kind]}'
        yield f'insert rule {place.family} {place.table} {place.name} {asked}counter accept comment "{comment(interface)}"'


def closing(rules: Iterable[Own]) -> Iterator[str]:
    """Yields the lines for nft that remove rules of ours."""
    for chain, handle, _ in rules:
        yield f"delete rule {chain.family} {chain.table} {chain.name} handle {handle}"


def commands(one: Obstacle, interface: str) -> list[str]:
    """Returns what an operator types to let packets pass, by the means of the program that made the table."""
    match one.firewall:
        case "firewalld":
            return _of_firewalld(one, interface)
        case "ufw":
            return [f"ufw route allow {_UFW[way]} on {interface}" for way in one.ways]
        case "docker" | "iptables":
            program = "ip6tables" if one.place.family == "ip6" else "iptables"
            return [f"{program} -I {one.place.name} {options}" for options in one.options(interface)]
    place = f"{one.place.family} {one.place.table} {one.place.name}"
    return [f"nft insert rule {place} {way} {interface} {_ONLY[kind]}accept" for way, kind in one.passes]


def _of_firewalld(one: Obstacle, interface: str) -> list[str]:
    zone = f"--zone=trusted --add-interface={interface}"
    if WAYS[1] not in one.ways:
        return [f"firewall-cmd {zone}", f"firewall-cmd --permanent {zone}"]
    # A zone decides about packets from its interfaces, a policy also about those to them. A new policy needs a reload.
    policy = "--policy=to-trusted"
    ways = [f"{policy} --add-ingress-zone=ANY", f"{policy} --add-egress-zone=trusted", f"{policy} --set-target=ACCEPT"]
    lasting = [f"firewall-cmd --permanent {each}" for each in (zone, "--new-policy=to-trusted", *ways)]
    return [*lasting, "firewall-cmd --reload"]
