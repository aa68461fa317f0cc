"""Looks at the settings of this host that decide what becomes of a tunnel's packets. Changes nothing."""

import json
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final

from stagewire.linux.nft_names import PREFIX, gateway_table_of

_LOOKED_AT: Final = 4
"""Prefixes whose route is looked up."""
_TICK: Final = os.sysconf("SC_CLK_TCK")


def forwards() -> dict[int, bool]:
    """Tells for IPv4 and IPv6 whether the host forwards packets."""
    found = {}
    for version, name in ((4, "ipv4/ip_forward"), (6, "ipv6/conf/all/forwarding")):
        with suppress(OSError):
            found[version] = _sysctl(name) != 0
    return found


def strict_source(interface: str) -> bool:
    """Tells whether the host drops what comes from the interface with a source whose route leads elsewhere."""
    try:
        return max(_sysctl(f"ipv4/conf/{each}/rp_filter") for each in ("all", interface)) == 1
    except (OSError, ValueError):
        return False


def _sysctl(name: str) -> int:
    return int((Path("/proc/sys/net") / name).read_text())


def source_drops() -> int:
    """Counts the packets that the host has dropped for their source's route."""
    return _counted("netstat", "TcpExt:", "IPReversePathFilter")


def refused_forwards() -> dict[int, int]:
    """Counts, by version of IP, the packets for others that came while the host forwarded none."""
    return {4: _counted("snmp", "Ip:", "InAddrErrors"), 6: _counted6("Ip6InAddrErrors")}


def _counted(file: str, group: str, name: str) -> int:
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in Path("/proc/net", file).read_text().splitlines()]
        names, values = [line for line in lines if line[0] == group]
        return int(values[names.index(name)])
    return 0


def _counted6(name: str) -> int:
    with suppress(OSError, ValueError, IndexError):
        pairs = [line.split() for line in Path("/proc/net/snmp6").read_text().splitlines()]
        return next((int(value) for found, value in pairs if found == name), 0)
    return 0


@dataclass(frozen=True, slots=True)
class Block:
    """Describes what drops our datagrams, and the command that mends it."""

    text: str
    mend: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Denied:
    """Counts the packets from a peer's address to another address that the access rules have dropped."""

    source: str
    destination: str
    packets: int


class Firewall:
    """Knows the host's rules of nftables, those of iptables-nft included."""

    def __init__(self) -> None:
        found = _json("nft", "-j", "list", "ruleset")
        self._known = found is not None
        self._rules = [each["rule"] for each in (found or {}).get("nftables", []) if "rule" in each]
        self._sets = [each["set"] for each in (found or {}).get("nftables", []) if "set" in each]
        self._chains = [each["chain"] for each in (found or {}).get("nftables", []) if "chain" in each]

    def masquerades(self) -> bool | None:
        """Tells whether a rule changes source addresses; None if that can't be seen."""
        words = ('"masquerade"', '"snat"')
        return any(word in json.dumps(rule) for rule in self._rules for word in words) if self._known else None

    def denied(self, interface: str) -> list[Denied]:
        """Returns what the interface's access rules have dropped within the last hour, most packets first."""
        table, found = gateway_table_of(interface), []
        for each in self._sets:
            if each["table"] == table and each["name"].startswith("denied"):
                for element in (one["elem"] for one in each.get("elem", [])):
                    source, destination = element["val"]["concat"]
                    found.append(Denied(source, destination, element["counter"]["packets"]))
        return sorted(found, key=lambda one: -one.packets)

    def isolates(self, interface: str) -> bool:
        """Tells whether the interface's rules keep peers apart."""
        table = gateway_table_of(interface)
        return any(rule["table"] == table and rule.get("comment") == "isolated" for rule in self._rules)

    def blocks(self, port: int) -> "Block | None":
        """Finds what drops datagrams to a UDP port of ours; None if nothing plainly does."""
        for rule in self._rules:
            text = json.dumps(rule["expr"])
            if _names_port(rule["expr"], port) and ('"drop"' in text or '"reject"' in text):
                place = rule["family"], rule["table"], rule["chain"]
                return Block(
                    f"a rule in {_chain(*place)}", ("nft", "delete", "rule", *place, "handle", str(rule["handle"]))
                )
        for chain in self._chains:
            rules = [rule for rule in self._rules if rule["table"] == chain["table"]]
            closed = chain.get("hook") == "input" and chain.get("policy") == "drop"
            if closed and not any(_names_port(rule["expr"], port) for rule in rules):
                place = chain["family"], chain["table"], chain["name"]
                mend = ("nft", "insert", "rule", *place, "udp", "dport", str(port), "accept")
                return Block(f"the policy of {_chain(*place)}", mend)
        return None

    def blocks_tunnel(self, interface: str) -> "Block | None":
        """Finds what drops an interface's packets to or from this host; None if nothing plainly does."""
        hooks = {
            (each["family"], each["table"], each["name"]): each.get("hook")
            for each in self._chains
            if not each["table"].startswith(PREFIX)
        }
        for rule in self._rules:
            place = rule["family"], rule["table"], rule["chain"]
            field = {"input": "iif", "output": "oif"}.get(hooks.get(place) or "")
            if field and _drops_all_of(rule["expr"], field, interface):
                mend = ("nft", "delete", "rule", *place, "handle", str(rule["handle"]))
                return Block(f"a rule in {_chain(*place)}", mend)
        return None


def _drops_all_of(expressions: list[Any], field: str, interface: str) -> bool:
    """Tells whether a rule drops all packets of an interface, and compares nothing else."""
    others = [each for each in expressions if "counter" not in each]
    match others:
        case [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}, {"drop": _} | {"reject": _}]:
            return key in {field, f"{field}name"} and right == interface
    return False


def is_own(address: str) -> bool:
    """Tells whether an address is this host's."""
    answer = _json("ip", "-j", "route", "get", address)
    return bool(answer) and answer[0].get("type") == "local"


def _chain(family: str, table: str, name: str) -> str:
    return f"chain {name} of table {family} {table}"


def _names_port(expressions: list[Any], port: int) -> bool:
    """Tells whether a rule compares the destination port with one port, or with a set that holds it."""
    matches = [each["match"] for each in expressions if "match" in each]
    fields = [
        (match["left"].get("payload", {}), match["right"]) for match in matches if isinstance(match["left"], dict)
    ]
    return any(
        field.get("field") == "dport" and (right == port or (isinstance(right, dict) and port in right.get("set", [])))
        for field, right in fields
    )


def routes(prefixes: list[str]) -> dict[str, str]:
    """Finds the device that packets to each of the first prefixes take; empty for none. Our own addresses are left out."""
    found = {}
    for prefix in prefixes[:_LOOKED_AT]:
        network = (IPv6Network if ":" in prefix else IPv4Network)(prefix)
        address = network.network_address if network.num_addresses == 1 else network.broadcast_address - 1
        if network.prefixlen == 0:  # the last addresses of all are reserved
            address = type(address)("2001:4860:4860::8888" if network.version == 6 else "8.8.8.8")
        answer = _json("ip", "-j", "route", "get", str(address))
        if answer is None or not answer:
            found[prefix] = ""
        elif answer[0].get("type") != "local":
            found[prefix] = answer[0].get("dev", "")
    return found


def mtu(interface: str) -> int:
    """Returns the MTU of an interface (bytes); 0 if there is none of that name."""
    with suppress(OSError, ValueError):
        return int((Path("/sys/class/net") / interface / "mtu").read_text())
    return 0


def _json(*command: str) -> Any:
    """Runs a program and returns what it says in JSON; None if it can't."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=3).stdout)
    return None


class Busy:
    """Measures which share of a core each process uses, from its making to `shares`."""

    LEAST: Final = 0.15
    """s of a measurement that says something."""

    def __init__(self, processes: dict[str, int]) -> None:
        """Takes the pid of each process by its name."""
        self._begun = time.monotonic()
        self._before = {name: (pid, used(pid)) for name, pid in processes.items()}

    def shares(self) -> dict[str, float]:
        """Returns the share by name."""
        time.sleep(max(0.0, self._begun + self.LEAST - time.monotonic()))
        passed = time.monotonic() - self._begun
        return {name: (used(pid) - before) / passed for name, (pid, before) in self._before.items()}


def used(pid: int) -> float:
    """Returns the s of processor time that a process has used (proc(5), `stat`, fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, ValueError, IndexError):
        return 0.0
