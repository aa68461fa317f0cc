"""Finds the rules of nftables that drop packets of one kind on this host: all of them, or a part. Pure.

Each chain at a hook is walked with packets of which only some properties are known. A rule's comparison then holds for all
of them, for none, or for a part (`Part`). A part is narrow if a rule is meant for it, such as one port, one sender, or
what exceeds a rate.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from stagewire.linux.nft_names import PREFIX

_VERSIONS: Final = {"ip": {4}, "ip6": {6}, "inet": {4, 6}, "netdev": {4, 6}, "bridge": set[int]()}
_INTERFACES: Final = {"iif": "incoming", "iifname": "incoming", "oif": "outgoing", "oifname": "outgoing"}
_ADDRESSES: Final = {"saddr": "source", "daddr": "destination"}
_PORTS: Final = {"sport": "source_port", "dport": "destination_port"}
_PROTOCOLS: Final = {"protocol", "nexthdr", "l4proto"}
_ENDS: Final = ("drop", "reject")
_LEADS_AWAY: Final = ("dnat", "redirect", "tproxy", "queue", "snat")
_TARGETS: Final = {
    "DROP": "drop", "REJECT": "reject", "DNAT": "dnat", "REDIRECT": "redirect", "TPROXY": "tproxy", "SNAT": "snat",
}  # fmt: skip
_BESIDE: Final = frozenset(("counter", "log", "comment"))
_KNOWN: Final = frozenset(("established", "related"))
_DEEPEST: Final = 16
Expression = dict[str, Any]


class Part(NamedTuple):
    """Describes a part of packets. `narrow`: a rule may well be meant for it."""

    text: str
    narrow: bool = False


RANDOM: Final = Part("some of them at random")
LENGTHS: Final = Part("those of certain lengths")
BEGINNING: Final = Part("those that begin a connection")
CONTINUING: Final = Part("those that belong to a connection")
OVER_RATE: Final = Part("those above a rate", narrow=True)
CERTAIN: Final = Part("certain ones", narrow=True)
STATES: Final = Part("those in certain states of a connection", narrow=True)
_MATCHES_OF_XT: Final = {"statistic": RANDOM, "length": LENGTHS, "hashlimit": OVER_RATE, "limit": OVER_RATE}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Describes packets of one kind by what is known of them; an empty field may be anything.

    `hooks` are those on their way, `version` is that of IP. `answers`: they answer packets of this host. `own_source`:
    the other end takes them from their own source alone. `any_state`: a rule for states of connections may be meant,
    though nft doesn't tell for which states iptables made it.
    """

    hooks: tuple[str, ...]
    version: int = 0
    protocol: str = ""
    incoming: str = ""
    outgoing: str = ""
    source: str = ""
    destination: str = ""
    source_port: int = 0
    destination_port: int = 0
    answers: bool = False
    own_source: bool = False
    any_state: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Describes what drops packets, and the command that mends it. `part` tells which of them; empty for all."""

    text: str
    mend: tuple[str, ...]
    part: str = ""
    narrow: bool = False


class Ruleset:
    """Holds the host's rules, as `nft -j list ruleset` lists them, without those of Stagewire."""

    def __init__(self, listed: Iterable[dict[str, Any]]) -> None:
        self.rules: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.sets: dict[tuple[str, str, str], list[Any]] = {}
        self.hooked: list[dict[str, Any]] = []
        for kind, each in (pair for entry in listed for pair in entry.items()):
            if kind not in {"chain", "rule", "set", "map"} or each["table"].startswith(PREFIX):
                continue
            if kind == "chain" and each.get("hook"):
                self.hooked.append(each)
            elif kind == "rule":
                place = each["family"], each["table"], each["chain"]
                self.rules.setdefault(place, []).append(each)
            elif kind in {"set", "map"}:
                self.sets[each["family"], each["table"], each["name"]] = each.get("elem", [])

    def blocks(self, traffic: Traffic) -> list[Block]:
        """Returns what drops such packets: first what drops all, then what drops a part, and narrow parts last."""
        found: list[Block] = []
        for hook in traffic.hooks:
            for chain in self.hooked:
                versions = _VERSIONS.get(chain["family"], set())
                meets = not traffic.version or traffic.version in versions
                if chain["hook"] == hook and meets and _at_device(chain, traffic):
                    found += _Walk(self, chain, traffic).found()
        return sorted(found, key=lambda one: (one.narrow, bool(one.part)))


def _at_device(chain: dict[str, Any], traffic: Traffic) -> bool:
    """Tells whether a chain of family netdev belongs to the packets' interface."""
    devices = chain.get("dev")
    if chain["family"] != "netdev" or devices is None:  # nft before 1.0.7 doesn't tell
        return True
    through = traffic.incoming if chain["hook"] == "ingress" else traffic.outgoing
    return through in ([devices] if isinstance(devices, str) else devices)


@dataclass(slots=True)
class _Walk:
    """Walks one chain at a hook, and what it jumps to."""

    ruleset: Ruleset
    base: dict[str, Any]
    traffic: Traffic
    blocks: list[Block] = field(default_factory=list)
    accepted: list[tuple[Part, ...]] = field(default_factory=list)
    """Parts that a rule lets pass."""

    def found(self) -> list[Block]:
        base = self.base
        place = base["family"], base["table"], base["name"]
        if not self._walk(place, (), 0) and base.get("policy") == "drop":
            opens = base.get("opens")
            mend = (*opens, *self._options(), "-j", "ACCEPT") if opens else _insertion(place, self._words())
            self._block(f"the policy of {named(place)}", mend, ())
        return self.blocks

    def _options(self) -> tuple[str, ...]:
        """Returns the options by which a rule of iptables knows such packets."""
        key, value = self._words()[-2:]
        names = {"dport": "--dport", "sport": "--sport", "iifname": "-i", "oifname": "-o"}
        protocol = ("-p", self.traffic.protocol) if key in {"dport", "sport"} else ()
        return (*protocol, names[key], value)

    def _words(self) -> tuple[str, ...]:
        """Returns the comparison by which a rule knows such packets."""
        traffic = self.traffic
        if traffic.destination_port:
            return (traffic.protocol, "dport", str(traffic.destination_port))
        if traffic.source_port:
            return (traffic.protocol, "sport", str(traffic.source_port))
        return ("iifname", traffic.incoming) if traffic.incoming else ("oifname", traffic.outgoing)

    def _walk(self, place: tuple[str, str, str], above: tuple[Part, ...], depth: int) -> bool:
        """Looks at each rule of a chain. Returns whether no packet comes out at its end."""
        for rule in self.ruleset.rules.get(place, []):
            parts = self._parts(rule)
            if parts is None:
                continue
            for verdict, target, more in self._verdicts(rule, place):
                whole, here = (*above, *parts, *more), (*parts, *more)
                match verdict:
                    case "drop" | "reject":
                        if self._counts(rule, whole):
                            self._block(f"a rule in {named(place)}", _removal(place, rule), whole)
                    case "away":
                        if self._counts(rule, whole):
                            does = "changes their source" if target == "snat" else "leads them elsewhere"
                            text = f"a rule in {named(place)}, which {does} ({target})"
                            self._block(text, _removal(place, rule), whole)
                    case "accept" if whole:
                        self.accepted.append(whole)
                    case "jump" | "goto" if depth < _DEEPEST:
                        ends = self._walk((*place[:2], target), whole, depth + 1)
                        if not here and (ends or verdict == "goto"):
                            return ends
                        continue
                    case "return" if not here:
                        return False
                if not here and verdict in {"drop", "reject", "away", "accept"}:
                    return True
        return False

    def _counts(self, rule: dict[str, Any], parts: tuple[Part, ...]) -> bool:
        """Tells whether a rule matters: one for a part of the packets that has met none so far does not."""
        counted = [each["counter"] for each in rule["expr"] if isinstance(each.get("counter"), dict)]
        return not parts or not counted or counted[0].get("packets", 1) > 0

    def _block(self, text: str, mend: tuple[str, ...], parts: tuple[Part, ...]) -> None:
        if not parts and self.accepted:  # what drops the rest drops only what no rule has let pass
            if any(part not in {CONTINUING, BEGINNING} for parts in self.accepted for part in parts):
                return
            parts = (BEGINNING,)
        if self.traffic.answers and BEGINNING in parts:
            return
        told = " and ".join(dict.fromkeys(part.text for part in parts))
        self.blocks.append(Block(text, mend, told, narrow=any(part.narrow for part in parts)))

    # --- one rule ------------------------------------------------------------------------------------------

    def _parts(self, rule: dict[str, Any]) -> tuple[Part, ...] | None:
        """Returns which parts of the packets a rule's comparisons leave; None if no packet is left."""
        found = []
        for each in rule["expr"]:
            if "match" in each:
                judged: bool | Part = self._judge(each["match"], rule)
            elif "limit" in each:
                judged = OVER_RATE
            elif (xt := each.get("xt", {})) and xt.get("type") == "match":
                name = xt.get("name", "")
                judged = _MATCHES_OF_XT.get(name, Part(f"certain ones ({name})", narrow=True))
                if name in {"conntrack", "state"}:
                    # Which states isn't told: mostly the known pass, and invalid ones don't.
                    refusing = STATES if self.traffic.any_state else False
                    judged = CONTINUING if any("accept" in one for one in rule["expr"]) else refusing
                elif name in {"comment", "addrtype"}:
                    continue
            else:
                continue
            if judged is False:
                return None
            if isinstance(judged, Part):
                found.append(judged)
        return tuple(found)

    def _verdicts(
        self, rule: dict[str, Any], place: tuple[str, str, str]
    ) -> Iterator[tuple[str, str, tuple[Part, ...]]]:
        """Yields what a rule does, the chain or the way that it names, and the part for which a map says so."""
        for each in rule["expr"]:
            if "vmap" in each:
                yield from self._of_map(each["vmap"], rule, place)
                continue
            name = next(iter(each))
            if name == "xt" and each["xt"].get("type") == "target":
                name = _TARGETS.get(each["xt"].get("name", ""), "")
            if name == "snat" and not self.traffic.own_source:
                continue
            if name in _LEADS_AWAY:
                yield "away", name, ()
            elif name in {"drop", "reject", "accept", "return"}:
                yield name, "", ()
            elif name in {"jump", "goto"}:
                yield name, each[name]["target"], ()

    def _of_map(
        self, vmap: Expression, rule: dict[str, Any], place: tuple[str, str, str]
    ) -> Iterator[tuple[str, str, tuple[Part, ...]]]:
        data = vmap["data"]
        entries = data.get("set", []) if isinstance(data, dict) else self.ruleset.sets.get((*place[:2], data[1:]), [])
        for value, verdict in (each for each in entries if isinstance(each, list) and len(each) == 2):
            judged = self._judge({"op": "==", "left": vmap["key"], "right": value}, rule)
            if judged is not False:
                name = next(iter(verdict))
                target = (verdict[name] or {}).get("target", "")
                yield name, target, (judged,) if isinstance(judged, Part) else ()

    def _judge(self, match: Expression, rule: dict[str, Any]) -> bool | Part:
        """Tells whether a comparison holds for all packets, for none, or for a part."""
        left, right, op, version = match["left"], match["right"], match.get("op", "=="), self.traffic.version
        if not isinstance(left, dict):
            return CERTAIN
        if "numgen" in left:
            return RANDOM
        if (key := (left.get("ct") or {}).get("key")) is not None:
            if key == "status":  # such as dnat
                return bool(op == "!=")
            return self._of_state(right, op) if key == "state" else CERTAIN
        key = str((left.get("meta") or {}).get("key") or (left.get("payload") or {}).get("field"))
        of = (left.get("payload") or {}).get("protocol", "")
        if key == "length":
            return LENGTHS
        if of in {"tcp", "udp", "icmp", "icmpv6", "sctp"} and (other := self._protocol(of, narrow=True)) is not True:
            return other
        if key in _PROTOCOLS:
            return self._of_protocol(right, op)
        if key == "nfproto":
            named_version = {"ipv4": 4, "ipv6": 6}.get(str(right), 0)
            return self._told(named_version == version, op) if version else CERTAIN
        name = _INTERFACES.get(key) or _ADDRESSES.get(key) or _PORTS.get(key)
        value = getattr(self.traffic, name) if name is not None else ""
        if key in _ADDRESSES and version and {"ip": 4, "ip6": 6}.get(of, version) != version:
            return False
        if key in _INTERFACES and not value:
            # A packet for this host leaves by no interface, and one that this host sends has come in by none.
            none = name == ("outgoing" if "input" in self.traffic.hooks else "incoming") or right == "lo"
            return op == "!=" if none and "forward" not in self.traffic.hooks else CERTAIN
        if not value:
            return CERTAIN
        holds = self._holds(value, right, rule)
        if op in {"<", ">", "<=", ">="}:
            return CERTAIN
        return CERTAIN if holds is None else self._told(holds, op)

    def _told(self, holds: bool, op: str) -> bool:
        return holds != (op == "!=")

    def _protocol(self, name: str, *, narrow: bool = False) -> bool | Part:
        """Tells whether the packets are of a protocol."""
        if self.traffic.protocol:
            return name == self.traffic.protocol
        return Part(f"certain {name.upper()} packets" if narrow else f"{name.upper()} packets", narrow=narrow)

    def _of_protocol(self, right: Any, op: str) -> bool | Part:
        names = [str(each) for each in (right.get("set", []) if isinstance(right, dict) else [right])]
        names = [
            "icmpv6" if name in {"ipv6-icmp", "58"} else {"6": "tcp", "17": "udp"}.get(name, name) for name in names
        ]
        if self.traffic.protocol:
            return self._told(self.traffic.protocol in names, op)
        told = " and ".join(name.upper() for name in names)
        return Part(f"{told} packets" if op != "!=" else f"all but {told} packets")

    def _of_state(self, right: Any, op: str) -> bool | Part:
        states = {*(right.get("set", []) if isinstance(right, dict) else right if isinstance(right, list) else [right])}
        begins, goes_on = "new" in states, bool(states & _KNOWN)
        if op == "!=":
            begins, goes_on = not begins, not goes_on
        if begins == goes_on:
            return begins
        return BEGINNING if begins else CONTINUING

    def _holds(self, value: Any, right: Any, rule: dict[str, Any]) -> bool | None:
        """Tells whether a value is what a comparison names; None if that can't be told."""
        if isinstance(right, list):
            right = {"set": right}
        if isinstance(right, dict) and "elem" in right:
            right = right["elem"]["val"]
        if isinstance(right, str) and right.startswith("@"):
            right = {"set": self.ruleset.sets.get((rule["family"], rule["table"], right[1:]), [])}
        match right:
            case {"set": values}:
                held = [self._holds(value, each, rule) for each in values]
                return True if True in held else None if None in held else False
            case {"range": [first, last]} if isinstance(value, int):
                return bool(first <= value <= last)
            case {"range": [first, last]}:
                try:
                    low, high, at = (ip_address(each) for each in (first, last, value))
                    return at.version == low.version and int(low) <= int(at) <= int(high)
                except ValueError:
                    return None
            case {"prefix": {"addr": address, "len": length}}:
                try:
                    return ip_address(value) in ip_network(f"{address}/{length}", strict=False)
                except ValueError:
                    return None
            case int():
                return bool(value == right)
            case str():
                return fnmatchcase(str(value), right) if isinstance(value, str) else None
        return None


def _insertion(place: tuple[str, str, str], words: tuple[str, ...]) -> tuple[str, ...]:
    return ("nft", "insert", "rule", *place, *words, "accept")


def _removal(place: tuple[str, str, str], rule: dict[str, Any]) -> tuple[str, ...]:
    if "removal" in rule:
        return tuple(rule["removal"])
    return ("nft", "delete", "rule", *place, "handle", str(rule["handle"]))


def named(place: tuple[str, str, str]) -> str:
    """Names a chain."""
    family, table, name = place
    return f"chain {name} of table {family} {table}"
