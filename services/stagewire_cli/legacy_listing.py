"""Lists rules of iptables-legacy in the form in which nft lists its own, so that one walk judges both."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stagewire.limits import MAX_PORT

TABLES: Final = {"iptables": Path("/proc/net/ip_tables_names"), "ip6tables": Path("/proc/net/ip6_tables_names")}
"""Lists the tables of iptables-legacy in this network namespace, for root."""
_HOOKS: Final = {
    "PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output", "POSTROUTING": "postrouting"
}  # fmt: skip
_ENDS: Final = {"DROP": "drop", "REJECT": "reject", "ACCEPT": "accept", "RETURN": "return"}
_AWAY: Final = {"DNAT": "dnat", "REDIRECT": "redirect", "TPROXY": "tproxy"}
_OTHERS: Final = frozenset(("LOG", "MARK", "CT", "MASQUERADE", "SNAT", "TCPMSS", "NOTRACK", "CONNMARK", "NFLOG"))
_PLAIN: Final = frozenset(("udp", "tcp", "icmp", "icmp6", "comment", "multiport", "conntrack", "state"))
"""Matches whose options are read here, or change nothing."""
Entry = dict[str, Any]


def entries() -> Iterator[Entry]:
    """Yields all chains and rules of iptables-legacy in this network namespace."""
    for program, tables in TABLES.items():
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            save = shutil.which(f"{program}-legacy-save") if tables.read_text().split() else None
            if save is not None:
                done = subprocess.run([save], capture_output=True, text=True, timeout=3, check=True)
                yield from listed(program, done.stdout)


def listed(program: str, saved: str) -> Iterator[Entry]:
    """Turns what `iptables-legacy-save` writes into chains and rules. Raises ValueError."""
    family, table = "ip6" if program.startswith("ip6") else "ip", ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
            continue
        place = {"family": family, "table": f"{table} ({program}-legacy)"}
        if line.startswith(":"):
            name, policy, *_ = line[1:].split()
            kind = "nat" if table == "nat" else "filter"
            hook = {"type": kind, "hook": _HOOKS[name], "policy": policy.lower()} if name in _HOOKS else {}
            opens = (f"{program}-legacy", "-t", table, "-I", name)
            yield {"chain": {**place, "name": name, "opens": opens, **hook}}
        elif line.startswith("-A "):
            _, name, *words = shlex.split(line)
            removal = (f"{program}-legacy", "-t", table, "-D", name, *words)
            yield {"rule": {**place, "chain": name, "expr": list(_expressions(words, family)), "removal": removal}}


def _expressions(words: list[str], family: str) -> Iterator[Entry]:
    rest, op, protocol = iter(words), "==", "th"
    for word in rest:
        match word:
            case "!":
                op = "!="
                continue
            case "-p":
                protocol = next(rest)
                yield _match({"meta": {"key": "l4proto"}}, "ipv6-icmp" if protocol == "icmpv6" else protocol, op)
            case "-i" | "-o":
                name = next(rest)
                wild = f"{name[:-1]}*" if name.endswith("+") else name
                yield _match({"meta": {"key": "iifname" if word == "-i" else "oifname"}}, wild, op)
            case "-s" | "-d":
                field = "saddr" if word == "-s" else "daddr"
                address, _, length = next(rest).partition("/")
                prefix = {"prefix": {"addr": address, "len": int(length or (128 if family == "ip6" else 32))}}
                yield _match({"payload": {"protocol": family, "field": field}}, prefix, op)
            case "--dport" | "--sport" | "--dports" | "--sports" | "--ports":
                field = "sport" if word.startswith("--sport") else "dport"
                ports = {"set": [_port(each) for each in next(rest).split(",")]}
                yield _match({"payload": {"protocol": protocol, "field": field}}, ports, op)
            case "--ctstate" | "--state":
                yield _match({"ct": {"key": "state"}}, next(rest).lower().split(","), op)
            case "--ctstatus":
                yield _match({"ct": {"key": "status"}}, next(rest).lower().split(","), op)
            case _ if word.startswith("--ct"):
                yield {"xt": {"type": "match", "name": word}}
            case "-m":
                if (name := next(rest)) not in _PLAIN:
                    yield {"xt": {"type": "match", "name": name}}
            case "-j" | "-g":
                yield _verdict(word, next(rest))
        op = "=="


def _match(left: Entry, right: Any, op: str) -> Entry:
    return {"match": {"left": left, "right": right, "op": op}}


def _port(text: str) -> Any:
    first, colon, last = text.partition(":")
    return {"range": [int(first or 0), int(last or MAX_PORT)]} if colon else int(text)


def _verdict(word: str, target: str) -> Entry:
    if target in _ENDS:
        return {_ENDS[target]: None}
    if target in _AWAY:
        return {_AWAY[target]: None}
    if target in _OTHERS:
        return {"xt": {"type": "target", "name": target}}
    return {"jump" if word == "-j" else "goto": {"target": target}}
