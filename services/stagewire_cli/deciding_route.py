"""Finds the rule or route by which this host decides where packets to an address go, and what removes it."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

from stagewire_cli.host_facts import Links, asked

_REFUSALS: Final = frozenset(("blackhole", "unreachable", "prohibit"))
_OTHERS: Final = ("fwmark", "iif", "oif", "uid_start", "tos", "ipproto", "sport", "dport", "l3mdev")
"""What a rule may ask for beside addresses: a packet of this host without a mark has none of it."""
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """Describes a rule or a route: where it leads (empty for nowhere), its text, and the command that removes it."""

    device: str
    text: str
    command: tuple[str, ...]


def find(address: str, links: Links, own: frozenset[str] = frozenset()) -> Decision | None:
    """Returns what decides for packets of this host to an address, from one of `own`; None if that can't be told."""
    ip = ("ip", "-6") if ":" in address else ("ip",)
    for rule in sorted(asked(*ip[:1], "-j", *ip[1:], "rule", "show") or [], key=lambda each: int(each["priority"])):
        if rule.get("table") == "local" or not _is_for(rule, address, own):
            continue
        removal = (*ip, "rule", "del", "pref", str(rule["priority"]))
        if rule.get("action") in _REFUSALS:
            return Decision("", f"rule {rule['priority']} of `ip rule` refuses them ({rule['action']})", removal)
        table = str(rule.get("table", "main"))
        found = asked(*ip[:1], "-j", *ip[1:], "route", "show", "table", table, "match", address) or []
        found = [each for each in found if _length(each, address) > int(rule.get("suppress_prefixlen", -1))]
        if not found:
            continue
        best = max(found, key=lambda each: (_length(each, address), -int(each.get("metric", 0))))
        if best.get("type") == "throw":
            continue
        device = "" if best.get("type") in _REFUSALS else str(best.get("dev", ""))
        if "dst" in rule or rule.get("src", "all") != "all":
            return Decision(device, f"rule {rule['priority']} of `ip rule` leads them to table {table}", removal)
        return _of_route(best, device, table, ip, links)
    return None


def rules_for_marks() -> list[Decision]:
    """Returns the rules that refuse packets with a mark."""
    return [
        Decision(
            "",
            f"rule {rule['priority']} of `ip rule` refuses packets with the mark {rule['fwmark']}",
            (*ip, "rule", "del", "pref", str(rule["priority"])),
        )
        for ip, family in ((("ip",), ()), (("ip", "-6"), ("-6",)))
        for rule in asked("ip", "-j", *family, "rule", "show") or []
        if "fwmark" in rule and rule.get("action") in _REFUSALS
    ]


def _of_route(route: Entry, device: str, table: str, ip: tuple[str, ...], links: Links) -> Decision:
    to, kind = str(route["dst"]), route.get("type", "")
    if route.get("protocol") == "kernel" and (address := links.address_for(to, device)):
        return Decision(device, f"{to} is the network of {device}", (*ip, "address", "del", address, "dev", device))
    where = ("table", table) if table != "main" else ()
    by = ("dev", device) if device else ()
    text = f"the route {f'{kind} ' if kind else ''}{to} of table {table}"
    return Decision(device, text, (*ip, "route", "del", *((kind,) if kind else ()), to, *by, *where))


def _is_for(rule: Entry, address: str, own: frozenset[str]) -> bool:
    others = any(name in rule for name in _OTHERS)
    to = "dst" not in rule or _holds(rule["dst"], rule.get("dstlen"), address)
    source = rule.get("src", "all")
    by = source == "all" or any(_holds(source, rule.get("srclen"), each) for each in own)
    return (to and by and not others) != ("not" in rule)


def _holds(network: str, length: Any, address: str) -> bool:
    if (":" in network) != (":" in address):
        return False
    return ip_address(address) in ip_network(network if length is None else f"{network}/{length}", strict=False)


def _length(route: Entry, address: str) -> int:
    to = str(route["dst"])
    return (
        0
        if to == "default"
        else ip_interface(to if "/" in to else f"{to}/{128 if ':' in address else 32}").network.prefixlen
    )
