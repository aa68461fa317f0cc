"""Finds chains of other nftables tables that drop what a gateway forwards, and the rules that let it pass. Pure.

nftables drops a packet if any table drops it, so a table of ours can't let a packet pass that another keeps. A chain keeps
all packets if its policy is to drop, or if it ends with a rule that drops or rejects each. A rule for certain packets alone
is its operator's wish, and doesn't count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from host_service.firewall import COMMENT
from stagewire.linux.nft_names import PREFIX

WAYS: Final = ("iifname", "oifname")
_UFW: Final = {"iifname": "in", "oifname": "out"}
_VERSIONS: Final = {"ip": {4}, "ip6": {6}, "inet": {4, 6}}
_ENDS: Final = ("drop", "reject")
_BESIDE: Final = frozenset(["counter", "log", "limit", "comment"])
"""Statements of a rule that leave no packet out."""
_DEEPEST: Final = 16
Listed = Iterable[dict[str, Any]]


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


def obstacles(listed: Listed, interface: str, versions: Iterable[int]) -> list[Obstacle]:
    """Finds the chains that keep packets of these versions of IP from or to an interface."""
    found = _Ruleset(listed)
    return [each for chain in found.hooked(set(versions)) if (each := found.obstacle(chain, interface)) is not None]


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
            return [f"firewall-cmd --zone=trusted --add-interface={interface}"]
        case "ufw":
            return [f"ufw route allow {_UFW[way]} on {interface}" for way in one.ways]
        case "docker" | "iptables":
            program = "ip6tables" if one.place.family == "ip6" else "iptables"
            return [f"{program} -I {one.place.name} -{way[0]} {interface} -j ACCEPT" for way in one.ways]
    place = f"{one.place.family} {one.place.table} {one.place.name}"
    return [f"nft insert rule {place} {way} {interface} accept" for way in one.ways]


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

    def obstacle(self, chain: Chain, interface: str) -> Obstacle | None:
        closed = self._hooks[chain].get("policy") == "drop" or self._ends(chain, 0)
        ways = tuple(way for way in WAYS if not self._passes(chain, way, interface, 0)) if closed else ()
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

    def _passes(self, chain: Chain, way: str, interface: str, depth: int) -> bool:
        """Tells whether a rule lets all packets of an interface pass, before a rule for every packet drops them."""
        for rule in self._rules.get(chain, []):
            matches = _matches(rule)
            if matches and not all(_is_of(match, way, interface) for match in matches):
                continue
            if any("accept" in statement for statement in rule):
                return True
            if any(end in statement for statement in rule for end in _ENDS):
                return False
            target = _target(rule)
            if (
                target
                and depth < _DEEPEST
                and self._passes(Chain(chain.family, chain.table, target), way, interface, depth + 1)
            ):
                return True
        return False


def _matches(rule: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what a rule asks of a packet; statements that aren't known count as such."""
    known = {*_BESIDE, *_ENDS, "accept", "jump", "goto", "return"}
    return [statement for statement in rule if not known.issuperset(statement)]


def _is_of(match: dict[str, Any], way: str, interface: str) -> bool:
    said = match.get("match", {})
    return bool(
        said.get("op") == "==" and said.get("left") == {"meta": {"key": way}} and said.get("right") == interface
    )


def _target(rule: list[dict[str, Any]]) -> str:
    """Returns the chain that a rule leads to; empty for none."""
    for statement in rule:
        for verdict in ("jump", "goto"):
            if verdict in statement:
                return str(statement[verdict]["target"])
    return ""
