"""Finds chains of other nftables tables that drop what a gateway forwards, and the rules that let it pass. Pure.

nftables drops a packet if any table drops it, so a table of ours can't let a packet pass that another keeps. A chain keeps
all packets if its policy is to drop, or if it ends with a rule that drops or rejects each. A rule for certain packets alone
is its operator's wish, and doesn't count.

A firewall that knows connections lets answers to peers pass by itself. Then a chain needs no rule for packets to peers,
unless others begin connections to peers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from host_service.firewall import COMMENT
from stagewire.control.gateway import GatewayRules
from stagewire.linux.nft_names import PREFIX

WAYS: Final = ("iifname", "oifname")
_UFW: Final = {"iifname": "in", "oifname": "out"}
_VERSIONS: Final = {"ip": {4}, "ip6": {6}, "inet": {4, 6}}
NEW, ANSWERS, PORTS = "new", "answers", "ports"
"""Kinds of packets that a chain may treat differently: any, those of connections that exist, those to forwarded ports."""
_TOLD: Final = {ANSWERS: ("state", "established"), PORTS: ("status", "dnat")}
"""What conntrack says of a kind of packets."""
_ENDS: Final = ("drop", "reject")
_BESIDE: Final = frozenset(["counter", "log", "limit", "comment"])
"""Statements of a rule that leave no packet out."""
_DEEPEST: Final = 16
Listed = Iterable[dict[str, Any]]
Needs = Mapping[str, Iterable[str]]
"""The kinds of packets that must pass, by WAYS."""
ALL_NEW: Final[Needs] = dict.fromkeys(WAYS, (NEW,))


@dataclass(frozen=True, slots=True)
class Chain:
    """Names a chain."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} of table {self.family} {self.table}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Describes a chain that keeps our packets. `ways` lack a rule that lets them pass; `place` is where to put it."""

    chain: Chain
    place: Chain
    ways: tuple[str, ...]
    firewall: str
    """The program that made the table: firewalld, ufw, docker, iptables, or empty if it isn't known."""


def comment(interface: str) -> str:
    """Returns the comment of our rules in other tables."""
    return f"{COMMENT} for {interface}"


def needs(rules: GatewayRules) -> Needs:
    """Returns the kinds of packets, from peers and to peers, that a gateway's rules need."""
    from_peers = (ANSWERS,) if rules.ports_alone else (NEW,)
    if {*rules.forwards} - {*rules.masquerades} and not rules.ports_alone:
        return {WAYS[0]: from_peers, WAYS[1]: (NEW,)}
    return {WAYS[0]: from_peers, WAYS[1]: (ANSWERS, PORTS) if rules.ports else (ANSWERS,)}


def obstacles(listed: Listed, interface: str, versions: Iterable[int], needs: Needs = ALL_NEW) -> list[Obstacle]:
    """Finds the chains that keep packets of these versions of IP, and of the kinds that are needed, from passing."""
    found = _Ruleset(listed)
    return [
        each for chain in found.hooked({*versions}) if (each := found.obstacle(chain, interface, needs)) is not None
    ]


def standing(listed: Listed, interface: str) -> list[tuple[Chain, int]]:
    """Returns our rules in other tables: (chain, handle)."""
    rules = (each["rule"] for each in listed if "rule" in each)
    return [
        (Chain(rule["family"], rule["table"], rule["chain"]), rule["handle"])
        for rule in rules
        if rule.get("comment") == comment(interface)
    ]


def opening(one: Obstacle, interface: str) -> Iterator[str]:
    """Yields the lines for nft that let packets pass."""
    place = f"{one.place.family} {one.place.table} {one.place.name}"
    for way in one.ways:
        yield f'insert rule {place} {way} "{interface}" counter accept comment "{comment(interface)}"'


def closing(rules: Iterable[tuple[Chain, int]]) -> Iterator[str]:
    """Yields the lines for nft that remove rules of ours."""
    for chain, handle in rules:
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
            return [f"{program} -I {one.place.name} -{way[0]} {interface} -j ACCEPT" for way in one.ways]
    place = f"{one.place.family} {one.place.table} {one.place.name}"
    return [f"nft insert rule {place} {way} {interface} accept" for way in one.ways]


def _of_firewalld(one: Obstacle, interface: str) -> list[str]:
    zone = f"--zone=trusted --add-interface={interface}"
    if WAYS[1] not in one.ways:
        return [f"firewall-cmd {zone}", f"firewall-cmd --permanent {zone}"]
    # A zone decides about packets from its interfaces, a policy also about those to them. A new policy needs a reload.
    policy = "--policy=to-trusted"
    ways = [f"{policy} --add-ingress-zone=ANY", f"{policy} --add-egress-zone=trusted", f"{policy} --set-target=ACCEPT"]
    lasting = [f"firewall-cmd --permanent {each}" for each in (zone, "--new-policy=to-trusted", *ways)]
    return [*lasting, "firewall-cmd --reload"]


class _Ruleset:
    def __init__(self, listed: Listed) -> None:
        self._hooks: dict[Chain, dict[str, Any]] = {}
        self._rules: dict[Chain, list[list[dict[str, Any]]]] = {}
        for each in listed:
            if (chain := each.get("chain")) is not None:
                self._hooks[Chain(chain["family"], chain["table"], chain["name"])] = chain
            elif (rule := each.get("rule")) is not None:
                self._rules.setdefault(Chain(rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])

    def hooked(self, versions: set[int]) -> list[Chain]:
        """Returns the chains of other programs that see forwarded packets of these versions."""
        return [
            chain
            for chain, found in self._hooks.items()
            if found.get("hook") == "forward"
            and found.get("type") == "filter"
            and _VERSIONS.get(chain.family, set()) & versions
            and not chain.table.startswith(PREFIX)
        ]

    def obstacle(self, chain: Chain, interface: str, needs: Needs) -> Obstacle | None:
        closed = self._hooks[chain].get("policy") == "drop" or self._ends(chain, 0)
        packets = (
            {way: [_Packets(way, interface, kind) for kind in kinds] for way, kinds in needs.items()} if closed else {}
        )
        ways = tuple(way for way, all_of in packets.items() if not all(self._passes(chain, each, 0) for each in all_of))
        if not ways:
            return None
        user = Chain(chain.family, chain.table, "DOCKER-USER")
        place = user if user in self._hooks and self._jumps_to(chain, user.name) else chain
        return Obstacle(chain, place, ways, self._firewall(chain, place))

    def _firewall(self, chain: Chain, place: Chain) -> str:
        if chain.table == "firewalld":
            return "firewalld"
        if any(each.name.startswith("ufw") for each in self._hooks if each.table == chain.table):
            return "ufw"
        if place != chain:
            return "docker"
        return "iptables" if chain.table == "filter" and chain.name == "FORWARD" and chain.family != "inet" else ""

    def _jumps_to(self, chain: Chain, name: str) -> bool:
        return any(_target(rule) == name for rule in self._rules.get(chain, []))

    def _ends(self, chain: Chain, depth: int) -> bool:
        """Tells whether a rule for every packet drops it."""
        for rule in self._rules.get(chain, []):
            if _matches(rule):
                continue
            if any(end in statement for statement in rule for end in _ENDS):
                return True
            target = _target(rule)
            if target and depth < _DEEPEST and self._ends(Chain(chain.family, chain.table, target), depth + 1):
                return True
        return False

    def _passes(self, chain: Chain, packets: "_Packets", depth: int) -> bool:
        """Tells whether a rule lets all these packets pass, before a rule for every packet drops them."""
        for rule in self._rules.get(chain, []):
            if not all(map(packets.fit, _matches(rule))):
                continue
            if any("accept" in statement for statement in rule):
                return True
            if any(end in statement for statement in rule for end in _ENDS):
                return False
            target = _target(rule)
            if (
                target
                and depth < _DEEPEST
                and self._passes(Chain(chain.family, chain.table, target), packets, depth + 1)
            ):
                return True
        return False


def _matches(rule: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what a rule asks of a packet; statements that aren't known count as such."""
    known = {*_BESIDE, *_ENDS, "accept", "jump", "goto", "return"}
    return [statement for statement in rule if not known.issuperset(statement)]


@dataclass(frozen=True, slots=True)
class _Packets:
    """Describes packets of one kind, from an interface or to it."""

    way: str
    interface: str
    kind: str

    def fit(self, statement: dict[str, Any]) -> bool:
        """Tells whether all these packets are what a rule asks for."""
        said = statement.get("match", {})
        left, right = said.get("left"), said.get("right")
        if left == {"meta": {"key": self.way}}:
            return bool(said.get("op") == "==" and right == self.interface)
        key, value = _TOLD.get(self.kind, ("", ""))
        values = right.get("set", []) if isinstance(right, dict) else right if isinstance(right, list) else [right]
        return left == {"ct": {"key": key}} and said.get("op") in {"==", "in"} and value in values


def _target(rule: list[dict[str, Any]]) -> str:
    """Returns the chain that a rule leads to; empty for none."""
    for statement in rule:
        for verdict in ("jump", "goto"):
            if verdict in statement:
                return str(statement[verdict]["target"])
    return ""
