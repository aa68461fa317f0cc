"""Finds chains that drop packets which a host passes on, from an interface or to it, among those that nft lists. Pure.

A chain keeps such packets if a rule drops or rejects all of one kind, or if the chain's policy does. A rule for a part of
them, such as one port, is its operator's wish, and doesn't count.

A firewall that knows connections lets answers pass by itself. Then a chain needs no rule for packets to the interface,
unless others begin connections to what is behind it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from stagewire.linux.nft_names import PREFIX

WAYS: Final = ("iifname", "oifname")
_VERSIONS: Final = {"ip": {4}, "ip6": {6}, "inet": {4, 6}}
NEW, ANSWERS, PORTS = "new", "answers", "ports"
"""Kinds of packets that a chain may treat differently: of a new connection, of one that exists, to a forwarded port."""
_STATES: Final = {NEW: "new", ANSWERS: "established", PORTS: "new"}
"""What conntrack says of each kind."""
_BY_IPTABLES: Final = frozenset(["docker", "iptables", "ufw"])
"""Programs that refuse a table with a rule which knows connections by nftables' own means."""
_ENDS: Final = ("drop", "reject")
_VERDICTS: Final = frozenset([*_ENDS, "accept", "jump", "goto", "return"])
_BESIDE: Final = _VERDICTS | {"counter", "log", "comment", "mangle"}
"""Statements of a rule that leave no packet out."""
_DEEPEST: Final = 16
_KNOWN: Final = "-m conntrack --ctstate RELATED,ESTABLISHED "
Listed = Iterable[dict[str, Any]]
Needs = Mapping[str, Iterable[str]]
"""The kinds of packets that must pass, by WAYS."""
ALL_NEW: Final[Needs] = dict.fromkeys(WAYS, (NEW, ANSWERS))


@dataclass(frozen=True, slots=True)
class Chain:
    """Names a chain."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} of table {self.family} {self.table}"


class Pass(NamedTuple):
    """Names what a rule of ours lets pass: packets of a kind, from our interface or to it."""

    way: str
    kind: str


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Describes a chain that keeps our packets. `lacks` names what no rule lets pass; `place` is where to put such rules."""

    chain: Chain
    place: Chain
    lacks: tuple[Pass, ...]
    firewall: str
    """The program that made the table: firewalld, ufw, docker, iptables, or empty if it isn't known."""

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.way for each in self.lacks))

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Returns what rules of ours have to let pass: no more than what is lacking, where such rules may stand."""
        broad = {each.way for each in self.lacks if each.kind == NEW or self.firewall in _BY_IPTABLES}
        return tuple(dict.fromkeys(Pass(each.way, NEW) if each.way in broad else each for each in self.lacks))

    def options(self, interface: str) -> list[str]:
        """Returns the options by which rules of iptables let such packets pass."""
        known = [way for way in self.ways if {each.kind for each in self.lacks if each.way == way} == {ANSWERS}]
        return [f"-{way[0]} {interface} {_KNOWN if way in known else ''}-j ACCEPT" for way in self.ways]


def obstacles(listed: Listed, interface: str, versions: Iterable[int], needs: Needs = ALL_NEW) -> list[Obstacle]:
    """Finds the chains that keep packets of these versions of IP, and of the kinds that are needed, from passing."""
    return _Ruleset(listed, interface, {*versions}).obstacles(needs)


class _Ruleset:
    def __init__(self, listed: Listed, interface: str, versions: set[int]) -> None:
        self._interface, self._versions = interface, versions
        self._hooks: dict[Chain, dict[str, Any]] = {}
        self._rules: dict[Chain, list[list[dict[str, Any]]]] = {}
        self._decided: dict[tuple[Chain, _Packets], dict[str, Any]] = {}
        for each in listed:
            if (chain := each.get("chain")) is not None:
                self._hooks[Chain(chain["family"], chain["table"], chain["name"])] = chain
            elif (rule := each.get("rule")) is not None:
                self._rules.setdefault(Chain(rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])

    def obstacles(self, needs: Needs) -> list[Obstacle]:
        return [each for chain in self._hooks if (each := self._obstacle(chain, needs)) is not None]

    def _obstacle(self, chain: Chain, needs: Needs) -> Obstacle | None:
        """Looks at a chain of another program that sees forwarded packets; None if it keeps none of ours."""
        hook = self._hooks[chain]
        versions = _VERSIONS.get(chain.family, set()) & self._versions
        if hook.get("hook") != "forward" or hook.get("type") != "filter" or chain.table.startswith(PREFIX):
            return None
        lacks = tuple(
            Pass(way, kind)
            for way, kinds in needs.items()
            for kind in kinds
            if any(self._keeps(chain, _Packets(way, self._interface, kind, version)) for version in versions)
        )
        if not lacks:
            return None
        user = Chain(chain.family, chain.table, "DOCKER-USER")
        place = user if user in self._hooks and self._jumps_to(chain, user.name) else chain
        return Obstacle(chain, place, lacks, self._firewall(chain, place))

    def _firewall(self, chain: Chain, place: Chain) -> str:
        if chain.table == "firewalld":
            return "firewalld"
        if any(each.name.startswith("ufw") for each in self._hooks if each.table == chain.table):
            return "ufw"
        if place != chain:
            return "docker"
        return "iptables" if chain.table == "filter" and chain.name == "FORWARD" and chain.family != "inet" else ""

    def _jumps_to(self, chain: Chain, name: str) -> bool:
        verdicts = (verdict for rule in self._rules.get(chain, []) for verdict, _ in _branches(rule))
        return name in map(_target, verdicts)

    def _keeps(self, chain: Chain, packets: "_Packets") -> bool:
        verdict = self._verdict(chain, packets, 0)
        return not verdict.keys().isdisjoint(_ENDS) if verdict else self._hooks[chain].get("policy") == "drop"

    def _verdict(self, chain: Chain, packets: "_Packets", depth: int) -> dict[str, Any]:
        """Returns what a chain decides about all these packets; nothing if they, or a part of them, come out at its end."""
        for rule in self._rules.get(chain, []):
            for verdict, asked in _branches(rule):
                if not all(packets.fit(each, lets="accept" in verdict) for each in asked):
                    continue
                if "return" in verdict:
                    return {}
                if not (target := _target(verdict)):
                    return verdict
                below = Chain(chain.family, chain.table, target)
                found = self._decided.get((below, packets))
                if found is None:  # many rules may lead to one chain
                    found = self._verdict(below, packets, depth + 1) if depth < _DEEPEST else {}
                    self._decided[below, packets] = found
                if found or "goto" in verdict:
                    return found
        return {}


def _branches(rule: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yields each verdict of a rule, and what packets have to be for it; what isn't known counts as such."""
    asked = [each for each in rule if not _BESIDE.issuperset(each) and "vmap" not in each]
    for each in rule:
        if not _VERDICTS.isdisjoint(each):
            yield each, asked
        data = each["vmap"]["data"] if "vmap" in each else {}
        for pair in data.get("set", []) if isinstance(data, dict) else []:
            match pair:
                case [value, dict(verdict)]:
                    yield verdict, [*asked, {"match": {"op": "==", "left": each["vmap"]["key"], "right": value}}]


def _target(verdict: dict[str, Any]) -> str:
    """Returns the chain that a verdict leads to; empty for none."""
    return next((str(verdict[each]["target"]) for each in ("jump", "goto") if each in verdict), "")


@dataclass(frozen=True, slots=True)
class _Packets:
    """Describes packets of one kind and version of IP, from an interface or to it."""

    way: str
    interface: str
    kind: str
    version: int

    def fit(self, statement: dict[str, Any], *, lets: bool) -> bool:
        """Tells whether all these packets are what a rule asks for. `lets`: the rule lets them pass."""
        if (
            "xt" in statement
        ):  # nft doesn't list which states iptables asks for: such a rule mostly lets the known ones pass
            return lets and self.kind == ANSWERS and statement["xt"].get("name") in {"conntrack", "state"}
        said = statement.get("match", {})
        left, op = said.get("left"), said.get("op")
        is_one = self._is_one_of(left, _values(said.get("right"))) if isinstance(left, dict) else None
        return is_one is not None and op in {"==", "in", "!="} and is_one != (op == "!=")

    def _is_one_of(self, left: dict[str, Any], values: list[Any]) -> bool | None:
        """Tells whether the packets have one of some values; None if some of them may, or if that isn't known."""
        match left:
            case {"meta": {"key": "iif" | "iifname" | "oif" | "oifname" as key}} if key.startswith(self.way[:3]):
                return any(fnmatchcase(self.interface, str(each)) for each in values)
            case {"meta": {"key": "nfproto"}}:
                return f"ipv{self.version}" in values
            case {"meta": {"key": "protocol"}}:
                return {4: "ip", 6: "ip6"}[self.version] in values
            case {"ct": {"key": "state"}}:
                return _STATES[self.kind] in values
            case {"ct": {"key": "status"}} if self.kind == PORTS:
                return True if "dnat" in values else None
        return None


def _values(right: Any) -> list[Any]:
    if isinstance(right, dict):
        right = right.get("set", right)
    return right if isinstance(right, list) else [right]
