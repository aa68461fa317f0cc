"""Looks at the settings of this host that decide what becomes of a tunnel's packets. Changes nothing."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Final

from stagewire.linux.nft_names import gateway_table_of
from stagewire_cli import legacy_listing
from stagewire_cli.ruleset import Block, Ruleset, Traffic

_LOOKED_AT: Final = 4
"""Prefixes whose route is looked up."""
_FULL: Final = 0.98
_TICK: Final = os.sysconf("SC_CLK_TCK")
_INWARDS: Final = ("ingress", "prerouting", "input")
_OUTWARDS: Final = ("output", "postrouting", "egress")
"""Hooks on the way of a packet for this host, and of one from it."""


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


def ipv6_off(interface: str) -> bool:
    """Tells whether the host has IPv6 switched off on an interface."""
    try:
        return _sysctl(f"ipv6/conf/{interface}/disable_ipv6") != 0
    except (OSError, ValueError):
        return False


def hop_limit(version: int) -> int:
    """Returns the hops that the host gives its packets; 0 if that can't be told."""
    try:
        return _sysctl({4: "ipv4/ip_default_ttl", 6: "ipv6/conf/default/hop_limit"}[version])
    except (OSError, ValueError):
        return 0


def source_drops() -> int:
    """Counts the packets that the host has dropped for their source's route."""
    return _counted("netstat", "TcpExt:", "IPReversePathFilter")


def tracks_no_more() -> bool:
    """Tells whether the table of connections is full (nf_conntrack), or nearly so."""
    try:
        return _sysctl("netfilter/nf_conntrack_count") >= _FULL * _sysctl("netfilter/nf_conntrack_max")
    except (OSError, ValueError):  # it tracks none
        return False


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
class Denied:
    """Counts the packets from a peer's address to another address that the access rules have dropped."""

    source: str
    destination: str
    packets: int


class Firewall:
    """Knows the host's rules of nftables, those of iptables-nft included."""

    def __init__(self) -> None:
        found = asked("nft", "-j", "list", "ruleset")
        self._known = found is not None
        self._rules = [each["rule"] for each in (found or {}).get("nftables", []) if "rule" in each]
        self._sets = [each["set"] for each in (found or {}).get("nftables", []) if "set" in each]
        self._ruleset = Ruleset([*(found or {}).get("nftables", []), *legacy_listing.entries()])

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

    def blocks(self, port: int, device: str = "", source: str = "") -> list[Block]:
        """Finds what drops datagrams to a UDP port of ours, from a device and an address if these are known."""
        version = 0 if not source else 6 if ":" in source else 4
        traffic = Traffic(_INWARDS, version, "udp", device, "", source, destination_port=port)
        return self._ruleset.blocks(traffic) if port else []

    def blocks_out(self, port: int, place: str, device: str = "") -> list[Block]:
        """Finds what drops our datagrams to a place."""
        host, _, to = place.rpartition(":")
        host = host.strip("[]").partition("%")[0]
        version = 6 if ":" in host else 4
        traffic = Traffic(_OUTWARDS, version, "udp", "", device, "", host, port, int(to), any_state=True)
        return self._ruleset.blocks(traffic)

    def blocks_tunnel(self, interface: str, address: str = "", *, answers: bool = False) -> list[Block]:
        """Finds what drops an interface's packets to or from this host, with the address of a peer if it is known."""
        version = 0 if not address else 6 if ":" in address else 4
        inwards = Traffic(_INWARDS, version, incoming=interface, source=address, answers=answers)
        outwards = Traffic(_OUTWARDS, version, outgoing=interface, destination=address, own_source=True)
        return self._ruleset.blocks(inwards) + self._ruleset.blocks(outwards)

    def blocks_through(self, interface: str) -> list[Block]:
        """Finds what drops packets that come from an interface and leave by another, or the other way round."""
        there = self._ruleset.blocks(Traffic(("forward",), incoming=interface))
        back = self._ruleset.blocks(Traffic(("forward",), outgoing=interface, answers=True))
        return [*dict.fromkeys(there + back)]


def _network(address: str) -> IPv4Network | IPv6Network:
    return ip_interface(address).network


class Links:
    """Holds this host's links and their addresses, as they were at its making."""

    def __init__(self) -> None:
        self._links = asked("ip", "-j", "address", "show") or []

    def addresses(self, interface: str = "") -> frozenset[str]:
        """Returns the addresses of an interface, or all."""
        links = [link for link in self._links if not interface or link.get("ifname") == interface]
        return frozenset(each.get("local", "") for link in links for each in link.get("addr_info", []))

    def is_own(self, address: str) -> bool:
        """Tells whether an address is this host's."""
        found = ip_address(address)
        return found.is_loopback or str(found) in self.addresses()

    def holder(self, address: str) -> tuple[str, str]:
        """Returns the link that has an address, and the address with its length; empty texts for none."""
        return next((found for found in self._held() if found[1].partition("/")[0] == address), ("", ""))

    def address_for(self, network: str, device: str) -> str:
        """Returns the address, with its length, by which a link has a network; empty for none."""
        wanted = ip_network(network, strict=False)
        return next(
            (each for name, each in self._held() if name == device and ip_interface(each).network == wanted), ""
        )

    def shared_networks(self, interface: str) -> list[tuple[str, str]]:
        """Lists networks of an interface that another link has an address of: (the network, the link).

        Several tunnels may have one address: a network of a single address counts as none.
        """
        ours = {_network(each) for name, each in self._held() if name == interface}
        ours = {network for network in ours if network.num_addresses > 1 and not network.is_link_local}
        return [
            (str(network), name)
            for name, each in self._held()
            for network in ours
            if name != interface and _network(each).prefixlen >= network.prefixlen and ip_interface(each).ip in network
        ]

    def _held(self) -> Iterator[tuple[str, str]]:
        for link in self._links:
            for each in link.get("addr_info", []):
                if "local" in each:
                    yield link["ifname"], f"{each['local']}/{each['prefixlen']}"

    def mtu(self, interface: str) -> int:
        """Returns the MTU of an interface (bytes); 0 if there is none of that name."""
        return next((int(link.get("mtu", 0)) for link in self._links if link.get("ifname") == interface), 0)

    def carries(self, device: str) -> bool:
        """Tells whether a link is up and has a carrier; True if that can't be told."""
        return all(_is_up(link) for link in self._links if link.get("ifname") == device)

    def idle(self) -> list[str]:
        """Lists the links that are meant to be used, as they are set up or have an address, and carry nothing."""
        used = [link for link in self._links if "UP" in link.get("flags", ()) or link.get("addr_info")]
        return sorted(link["ifname"] for link in used if link.get("ifname", "lo") != "lo" and not _is_up(link))


def _is_up(link: dict[str, Any]) -> bool:
    return {"UP", "LOWER_UP"} <= {*link.get("flags", ())}


def routes(prefixes: list[str]) -> dict[str, str]:
    """Finds the device that packets to each of the first prefixes take; empty for none. Our own addresses are left out."""
    found = {}
    for prefix in prefixes[:_LOOKED_AT]:
        answer = asked("ip", "-j", "route", "get", address_in(prefix))
        if answer is None or not answer:
            found[prefix] = ""
        elif answer[0].get("type") != "local":
            found[prefix] = answer[0].get("dev", "")
    return found


def address_in(prefix: str) -> str:
    """Returns the address that stands for a prefix."""
    network = (IPv6Network if ":" in prefix else IPv4Network)(prefix)
    if network.prefixlen == 0:  # the last addresses of all are reserved
        return "2001:4860:4860::8888" if network.version == 6 else "8.8.8.8"
    return str(network.network_address if network.num_addresses == 1 else network.broadcast_address - 1)


def asked(*command: str) -> Any:
    """Runs a program and returns what it says in JSON; None if it can't."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=3).stdout)
    return None


@dataclass(frozen=True, slots=True)
class Load:
    """Tells which share of the time a process had a core, and for which share it waited for one."""

    uses: float
    waits: float = 0.0


class Busy:
    """Measures the load of each process, from its making to `loads`."""

    LEAST: Final = 0.15
    """s of a measurement that says something."""

    def __init__(self, processes: dict[str, int]) -> None:
        """Takes the pid of each process by its name."""
        self._begun = time.monotonic()
        self._before = {name: (pid, *_run_and_waited(pid)) for name, pid in processes.items()}

    def loads(self) -> dict[str, Load]:
        """Returns the load by name."""
        time.sleep(max(0.0, self._begun + self.LEAST - time.monotonic()))
        passed = time.monotonic() - self._begun
        found = {}
        for name, (pid, run, waited) in self._before.items():
            has_run, has_waited = _run_and_waited(pid)
            found[name] = Load((has_run - run) / passed, (has_waited - waited) / passed)
        return found


def _run_and_waited(pid: int) -> tuple[float, float]:
    """Returns the s for which a process had a processor, and for which it waited; a kernel may not tell the latter."""
    try:
        run, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
        return int(run) / 1e9, int(waited) / 1e9
    except (OSError, ValueError):
        return used(pid), 0.0


def used(pid: int) -> float:
    """Returns the s of processor time that a process has used (proc(5), `stat`, fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, ValueError, IndexError):
        return 0.0
