"""Reads and makes policy rules (ip-rule(8)), and knows which a default route through the tunnel needs.

    p      fwmark OTHER goto p+3     for each tunnel whose rules come later: its datagrams must not enter ours
    p+1    lookup main suppress_prefixlength 0
    p+2    not fwmark OURS lookup OURS
    p+3    nop                       where the datagrams of those tunnels go on

The newest tunnel's rules come first, as with wg-quick. The newest tunnel's datagrams go through the older tunnels; an older
tunnel's datagrams pass the newer ones. Without the first rule each tunnel would carry the other's datagrams, round and
round.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import netlink
from stagewire.linux.netlink import Netlink

MAIN: Final = 254
FAMILIES: Final = {4: 2, 6: 10}
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_LAST: Final = 32766
"""Priority of the kernel's own rule that looks into the main table."""
_BODY: Final = struct.Struct("=BBBBBBBBI")
"""family, bits of destination, of source, service, table, two reserved, action, flags"""
_FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS, _FRA_TABLE, _FRA_FWMASK = 4, 6, 10, 14, 15, 16
_FRA_PAD, _FRA_PROTOCOL = 18, 21
_PLAIN: Final = {
    _FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS, _FRA_TABLE, _FRA_FWMASK, _FRA_PAD, _FRA_PROTOCOL
}  # fmt: skip
"""Attributes of our own rules. Any other attribute may leave packets out."""
_TO_TABLE, _GOTO, _NOP = 1, 2, 3
_INVERT: Final = 0x2
_NO_SUPPRESSION: Final = 0xFFFFFFFF
_TABLE_COMPAT: Final = 252
_ALL_BITS: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Rule:
    """Describes one rule. `version` is 4 or 6; `suppress` is a prefix length, -1 for none; `protocol` is the maker's."""

    version: int
    priority: int
    action: int
    table: int = 0
    mark: int = 0
    inverted: bool = False
    suppress: int = -1
    goto: int = 0
    protocol: int = ROUTE_PROTOCOL

    @property
    def tunnel(self) -> int:
        """Returns the mark of the tunnel whose datagrams this rule lets pass; 0 for any other rule."""
        is_one = self.action == _TO_TABLE and self.inverted and self.mark and self.table not in {0, MAIN}
        return self.mark if is_one else 0

    @property
    def keeps_main(self) -> bool:
        """Tells whether the rule looks into the main table for all but a default route."""
        return self.action == _TO_TABLE and self.table == MAIN and self.suppress == 0


def parse(body: bytes) -> Rule | None:
    """Reads a rule. Returns None for a malformed message."""
    if len(body) < _BODY.size:
        return None
    family, to, source, service, table, _, _, action, flags = _BODY.unpack_from(body)
    found = netlink.attributes(body[_BODY.size :])
    versions = {number: version for version, number in FAMILIES.items()}
    if family not in versions:
        return None

    def value(kind: int, default: int = 0) -> int:
        return int.from_bytes(found[kind][:4], "little") if kind in found else default

    suppress = value(_FRA_SUPPRESS, _NO_SUPPRESSION)
    narrowed = bool(to or source or service or value(_FRA_FWMASK, _ALL_BITS) != _ALL_BITS or found.keys() - _PLAIN)
    return Rule(
        versions[family],
        value(_FRA_PRIORITY),
        # No tunnel has a rule for some packets only.
        0 if narrowed else action,
        value(_FRA_TABLE, table),
        value(_FRA_FWMARK),
        bool(flags & _INVERT),
        -1 if suppress == _NO_SUPPRESSION else suppress,
        value(_FRA_GOTO),
        value(_FRA_PROTOCOL),
    )


def standing(kernel: Netlink, version: int) -> list[Rule]:
    """Returns all rules of a family. Raises OSError."""
    body = _BODY.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0)
    return [rule for bodies in kernel.dump(RTM_GETRULE, body) for each in bodies if (rule := parse(each))]


def add(kernel: Netlink, rule: Rule) -> bool:
    """Makes a rule. Returns False if the same rule stands already. Raises OSError."""
    try:
        kernel.do(RTM_NEWRULE, netlink.CREATE | netlink.EXCLUSIVE, _message(rule))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def remove(kernel: Netlink, rule: Rule) -> bool:
    """Removes a rule. Returns False if the rule is gone already. Raises OSError."""
    try:
        kernel.do(RTM_DELRULE, 0, _message(rule))
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EAFNOSUPPORT}:
            raise
        return False
    return True


def _message(rule: Rule) -> bytes:
    table = rule.table if rule.table < 256 else _TABLE_COMPAT
    body = _BODY.pack(
        FAMILIES[rule.version], 0, 0, 0, table, 0, 0, rule.action, _INVERT if rule.inverted else 0
    ) + netlink.number(_FRA_PRIORITY, rule.priority)
    if rule.table:
        body += netlink.number(_FRA_TABLE, rule.table)
    if rule.mark:
        body += netlink.number(_FRA_FWMARK, rule.mark) + netlink.number(_FRA_FWMASK, _ALL_BITS)
    if rule.suppress >= 0:
        body += netlink.number(_FRA_SUPPRESS, rule.suppress)
    if rule.goto:
        body += netlink.number(_FRA_GOTO, rule.goto)
    return body + netlink.attribute(_FRA_PROTOCOL, bytes([rule.protocol]))


# --- what is wanted ------------------------------------------------------------------------------------------


def taken_numbers(rules: Iterable[Rule]) -> set[int]:
    """Returns the tables and marks that the rules name."""
    return {number for rule in rules for number in (rule.table, rule.mark) if number}


def claim(number: int) -> Rule:
    """Returns a rule without effect, which the kernel makes only once: its maker has the number."""
    return Rule(4, _LAST, _NOP, mark=number)


WAS_OFF: Final = Rule(4, _LAST + 1, _NOP)
"""A rule without effect: src_valid_mark was off before a tunnel of ours switched it on."""
DID_NOT_FORWARD: Final = {4: Rule(4, _LAST + 2, _NOP), 6: Rule(4, _LAST + 3, _NOP)}
"""Rules without effect, by version of IP: the host did not forward before a gateway of ours made it."""


def place(rules: Iterable[Rule], number: int) -> int:
    """Returns the priority of our first rule: where our rules stand, or else before all other tunnels' rules."""
    known = list(rules)
    for rule in known:
        if rule.protocol == ROUTE_PROTOCOL and rule.tunnel == number == rule.table:
            return rule.priority - 2
    return min((rule.priority for rule in known if rule.tunnel or rule.keeps_main), default=_LAST) - 4


def wanted(rules: Iterable[Rule], version: int, number: int, first: int) -> list[Rule]:
    """Returns our rules, in the order to make them. `first` is the first rule's priority."""
    later = sorted({rule.tunnel for rule in rules if rule.priority > first + 3} - {0, number})
    gotos = [Rule(version, first, _GOTO, mark=mark, goto=first + 3) for mark in later]
    return [
        *([Rule(version, first + 3, _NOP), *gotos] if gotos else []),
        Rule(version, first + 1, _TO_TABLE, table=MAIN, suppress=0),
        Rule(version, first + 2, _TO_TABLE, table=number, mark=number, inverted=True),
        *_past_newer(rules, version, number, first),
    ]


def _past_newer(rules: Iterable[Rule], version: int, number: int, first: int) -> Iterator[Rule]:
    """Leads our datagrams past another program's newer tunnel. A newer gateway of ours makes such a rule itself."""
    # Another program's rule may stand at `first`: the kernel puts a new rule right before ours.
    theirs = (rule for rule in rules if rule.protocol != ROUTE_PROTOCOL and rule.priority <= first)
    tunnels = [rule.priority for rule in theirs if rule.tunnel not in {0, number}]
    if tunnels and (before := min(tunnels) - 1) > 0:
        yield Rule(version, before, _GOTO, mark=number, goto=first + 1)


def passing(version: int, number: int, first: int) -> list[Rule]:
    """Returns rules that lead a number's datagrams past another number's four rules, which begin at `first`."""
    return [Rule(version, first + 3, _NOP), Rule(version, first, _GOTO, mark=number, goto=first + 3)]


def ours(rules: Iterable[Rule], number: int, first: int) -> set[Rule]:
    """Returns the standing rules that can only be ours, by protocol and priority."""
    return {
        rule for rule in rules
        if rule.protocol == ROUTE_PROTOCOL and first <= rule.priority <= first + 3 and rule.table in {0, MAIN, number}
    }  # fmt: skip
