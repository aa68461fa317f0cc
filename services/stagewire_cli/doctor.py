"""Examines an interface and its host without a peer in mind, and mends what it can.

Each trouble names the exact commands that mend it. `--fix` runs them after showing them. They last until the next boot.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any, Final

from stagewire import config
from stagewire.config import ConfigError, InterfaceConfig
from stagewire.config.peer_names import label, operand
from stagewire.control import gateway
from stagewire.environment import Environment
from stagewire.proto.kernel import rule
from stagewire_cli import (
    flow,
    host_facts,
    kernels,
    legacy_rules,
    readiness,
    services_away,
    show,
    the_file,
    trials,
    unprotected,
    way_out,
    why,
)
from stagewire_cli.causes.handshakes import CLOCK
from stagewire_cli.causes.here import lets_answers_in, overloaded
from stagewire_cli.causes.place import KINDS, REASONS
from stagewire_cli.done import DoneList
from stagewire_cli.evidence import RECENT, Away
from stagewire_cli.host_facts import Denied
from stagewire_cli.ruleset import Block
from stagewire_cli.way_out import host_of

FORMAT: Final = 1
"""Version of the JSON object."""
_LISTED: Final = 5
_FORWARDING: Final = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}
_WITHIN: Final = 10
"""s for a command of the host, and for one of ours, which replaces processes one by one."""
_OURS_WITHIN: Final = 90
_SETTLES: Final = 1.5
"""s after a mending until the services know of it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Describes what is wrong, what to do, and the commands that do it. `wrong` is false for a hint."""

    id: str
    text: str
    mend: str
    commands: tuple[tuple[str, ...], ...] = ()
    wrong: bool = True


@dataclass(slots=True)
class Facts:
    """Holds what is examined. `status` is as `stagewire status --json` shows it."""

    status: dict[str, Any]
    now: float
    """Unix s."""
    away: list[Away] = field(default_factory=list)
    blocked: list[Block] = field(default_factory=list)
    """What drops datagrams to our port."""
    tunnel_blocked: list[Block] = field(default_factory=list)
    """What drops the tunnel's packets to or from this host."""
    through_blocked: list[Block] = field(default_factory=list)
    """What drops the tunnel's packets through this host."""
    endpoints: list[tuple[str, str, str]] = field(default_factory=list)
    """Endpoints to which nothing can go: the peer's label, what is wrong, what to do."""
    shared_networks: list[tuple[str, str]] = field(default_factory=list)
    """Networks of ours that another link has addresses of: the network, and the link."""
    own_addresses: frozenset[str] = frozenset()
    """All addresses of this host."""
    file: list[str] = field(default_factory=list)
    """Warnings of the configuration file."""
    forwards: dict[int, bool] = field(default_factory=dict)
    refused_forwards: dict[int, int] = field(default_factory=dict)
    masquerades: bool | None = None
    legacy: list[str] = field(default_factory=list)
    """Warnings of rules that nftables does not show."""
    denied: list[Denied] = field(default_factory=list)
    strict_source: bool = False
    source_drops: int = 0
    tracks_no_more: bool = False
    """The table of connections is full."""
    busy: dict[str, host_facts.Load] = field(default_factory=dict)
    unready: list[str] = field(default_factory=list)
    """Why no traffic can flow, as /readyz says."""
    dns_failure: str = ""
    """Why the servers of `DNS` aren't set; empty if they are."""
    ipv6_off: bool = False
    """IPv6 is switched off on the interface."""
    unprotected: list[str] = field(default_factory=list)
    """What keeps services less apart than they could be."""


def gather(environment: Environment) -> Facts:
    """Looks at an interface and its host. Raises Failed."""
    status, interface = show.known(environment), environment.interface
    busy, firewall, port = why.busy_workers(status), host_facts.Firewall(), status.get("listen_port") or 0
    away, links = services_away.found(status), host_facts.Links()
    return Facts(
        status,
        time.time(),
        away=away,
        blocked=firewall.blocks(port),
        tunnel_blocked=firewall.blocks_tunnel(interface),
        through_blocked=firewall.blocks_through(interface),
        endpoints=list(_endpoints(status["peers"], port, (status.get("host") or {}).get("mark", 0), links)),
        shared_networks=links.shared_networks(interface),
        own_addresses=links.addresses(),
        file=_of_file(environment),
        forwards=host_facts.forwards(),
        refused_forwards=host_facts.refused_forwards(),
        masquerades=firewall.masquerades(),
        legacy=[*legacy_rules.warnings(interface, _that_forwards(environment))],
        denied=firewall.denied(interface),
        strict_source=host_facts.strict_source(interface),
        source_drops=host_facts.source_drops(),
        tracks_no_more=host_facts.tracks_no_more(),
        busy=busy.loads(),
        unready=[] if away else readiness.why_not(environment),
        dns_failure=_dns_failure(environment),
        ipv6_off=host_facts.ipv6_off(interface),
        unprotected=unprotected.found(environment, status),
    )


def _dns_failure(environment: Environment) -> str:
    with suppress(OSError):
        done = DoneList(environment.run).read()  # root alone reads it
        return done.dns_failure if done is not None else ""
    return ""


def _that_forwards(environment: Environment) -> InterfaceConfig | None:
    """Returns what the configuration file says, if it has us pass packets on."""
    with suppress(ConfigError, OSError):
        found = config.load(the_file.of(environment))
        if found.exit != "off" or found.access.forwards or any(peer.access.forwards for peer in found.peers):
            return found
    return None


def _of_file(environment: Environment) -> list[str]:
    """Returns the warnings of the configuration file; its mistakes are told by `stagewire status`."""
    with suppress(ConfigError, OSError):
        if the_file.what_was_read(environment) is not None:
            return [str(warning) for warning in config.load(the_file.of(environment)).warnings]
    return []


def _endpoints(
    peers: list[dict[str, Any]], port: int, mark: int, links: host_facts.Links
) -> Iterator[tuple[str, str, str]]:
    for peer in peers:
        place = peer["endpoint"]
        if not place:
            continue
        fault = ""
        host, to = host_of(place), place.rpartition(":")[2]
        if to == str(port) and (links.is_own(host) or way_out.kind_of(host) == "unspecified"):
            fault, mend = "is this gateway itself", "put the peer's own address and port into its Endpoint"
        elif (kind := way_out.kind_of(host)) in KINDS:
            fault, mend = f"is {KINDS[kind]}", "put the address where the peer listens into its Endpoint"
        elif error := way_out.error_of(place, mark):
            what, mend = REASONS.get(error, ("can't send to", f"the kernel says: {os.strerror(error)}"))
            fault = f"can't be reached: this host {what} it"
        if fault:
            yield label(peer["public_key"], peer["name"]), f"its endpoint {place} {fault}", mend


def examine(facts: Facts) -> list[Trouble]:
    """Returns all troubles, then all hints."""
    found = [trouble for check in _CHECKS for trouble in check(facts)]
    return sorted(found, key=lambda trouble: not trouble.wrong)


def _gateway(facts: Facts) -> Iterator[Trouble]:
    name = facts.status["interface"]
    renamed = next((each for each in facts.away if each.renamed), None)
    if renamed is not None:
        commands = services_away.rename_back(renamed.renamed, name)
        yield Trouble("renamed", f"{name} is called {renamed.renamed} now", "give it its name back", commands)
    elif facts.status.get("link_up") is False:
        command = ("ip", "link", "set", name, "up")
        yield Trouble("interface_down", f"{name} is set down, so no packet passes", "set it up", (command,))
    for service in (each for each in facts.away if not each.renamed):
        text = f"a part of the gateway does no work: {service}"
        yield Trouble("service_away", text, service.mend, (service.command,) if service.command else ())
    if facts.status.get("link_up") is not False and not facts.away:
        for reason in facts.unready:
            mend = "see what `stagewire status` counts below each service, and what `stagewire why PEER` says"
            yield Trouble("not_ready", f"no traffic gets through: {reason}", mend)
    for warning in (each for each in facts.status["warnings"] if not each.startswith(show.SILENT)):
        yield Trouble("warning", warning, "do what it says", wrong=False)
    for busy in map(overloaded, facts.busy, facts.busy.values()):
        if busy is not None:
            yield Trouble(busy.id, busy.text, busy.mend, wrong=busy.wrong)


def _kernel(facts: Facts) -> Iterator[Trouble]:
    for kernel in kernels.in_use(facts.status):
        if rule.CANNOT in kernel:
            yield Trouble(
                "plain_kernel", f"packets cost several times as much CPU: {kernel}", kernels.MEND, wrong=False
            )


def _protection(facts: Facts) -> Iterator[Trouble]:
    for text in facts.unprotected[:_LISTED]:
        yield Trouble("unprotected", text, "see docs/OPERATING.md, `What root needs`", wrong=False)


def _host(facts: Facts) -> Iterator[Trouble]:
    name = facts.status["interface"]
    yield from _rules(facts)
    if facts.ipv6_off and any(":" in prefix for peer in facts.status["peers"] for prefix in peer["allowed_ips"]):
        names = (f"net.ipv6.conf.{each}.disable_ipv6=0" for each in ("all", name))
        text = f"this host has IPv6 switched off on {name}, and peers have IPv6 addresses"
        yield Trouble("ipv6_off", text, "switch it on, or take IPv6 out of the file", (("sysctl", "-w", *names),))
    if facts.dns_failure:
        mend = f"mend that, then `stagewire down {name}` and `stagewire up {name}`"
        yield Trouble("dns_not_set", facts.dns_failure, mend)
    for network, link in facts.shared_networks[:_LISTED]:
        text = f"{link} has an address of {network} as well, so packets for a part of it don't go to {name}"
        yield Trouble("shared_network", text, f"give {name} an Address of another network", wrong=False)
    off = [version for version, on in facts.forwards.items() if not on]
    refused = any(facts.refused_forwards.get(version) for version in off) and _sends_in_vain(facts)
    if off and (refused or not _is_client(facts)):
        yield Trouble(
            "forwarding_off",
            f"this host forwards no {' and no '.join(f'IPv{version}' for version in off)}, so peers reach nothing behind it",
            "if peers are to reach other hosts, write `# stagewire: Exit = on` into [Interface] and `stagewire reload`; "
            "or switch it on, and put it into /etc/sysctl.d to last",
            tuple(("sysctl", "-w", _FORWARDING[version]) for version in off),
            wrong=refused,
        )
    elif facts.masquerades is False and not _is_client(facts):
        yield Trouble(
            "no_masquerade",
            "no rule changes source addresses, so hosts behind this one must know the way back to the peers",
            "write `# stagewire: Exit = on` into [Interface] and `stagewire reload`; or give their router a route; "
            "or masquerade",
            (
                ("nft", "add", "table", "ip", "nat"),
                ("nft", "add chain ip nat post { type nat hook postrouting priority 100; }"),
                ("nft", "add", "rule", "ip", "nat", "post", "iifname", name, "masquerade"),
            ),
            wrong=False,
        )
    for warning in facts.legacy:
        mend = "do what it says, if peers are to reach hosts behind this one"
        yield Trouble("legacy_rules", warning, mend, wrong=False)
    yield from _dropped(facts)


def _dropped(facts: Facts) -> Iterator[Trouble]:
    """Judges what this host drops by itself, and its clock."""
    name = facts.status["interface"]
    if facts.denied:
        most, sources = facts.denied[0], len({each.source for each in facts.denied})
        text = (
            f"the access rules have dropped packets from {sources} addresses of peers within the last hour, most of them "
            f"({most.packets:,}) from {most.source} to {most.destination}"
        )
        yield Trouble("not_allowed", text, "see `stagewire why` with the peer, if that isn't meant", wrong=False)
    if facts.strict_source and facts.source_drops:
        yield Trouble(
            "rp_filter",
            f"this host has dropped {facts.source_drops} packets for the route of their source (rp_filter)",
            "loosen the check, or mend the routes",
            tuple(("sysctl", "-w", f"net.ipv4.conf.{each}.rp_filter=2") for each in ("all", name)),
            wrong=False,
        )
    if facts.tracks_no_more:
        text = "this host's table of connections is full, so it drops packets of new ones"
        yield Trouble(
            "connections_full", text, "see `sysctl net.netfilter.nf_conntrack_count`, and raise nf_conntrack_max"
        )
    if facts.now < CLOCK:
        mend = "set the clock: peers refuse handshakes that are older than earlier ones"
        yield Trouble("clock", "this host's clock stands in the past", mend)


def _rules(facts: Facts) -> Iterator[Trouble]:
    port, name = facts.status.get("listen_port"), facts.status["interface"]
    for block in (each for each in facts.blocked if not each.narrow):
        text = f"this host drops {_part(block)}datagrams to UDP port {port}: {block.text}"
        called = any(not peer.get("endpoint_set") for peer in facts.status["peers"])
        wrong = called or not lets_answers_in(block)
        yield Trouble("port_blocked", text, "let them in", (block.mend,), wrong=wrong)
    for block in (each for each in facts.tunnel_blocked if not each.narrow):
        text = f"this host drops {_part(block)}packets of {name} to or from itself: {block.text}"
        wrong = not lets_answers_in(block)
        yield Trouble("tunnel_blocked", text, "let them pass, unless that is meant", (block.mend,), wrong=wrong)
    if all(facts.forwards.values()) and gateway.kept(facts.status["warnings"]) is None:
        for block in (each for each in facts.through_blocked[:1] if not each.narrow):
            text = (
                f"this host drops {_part(block)}packets that come from {name} or go there by other links: {block.text}"
            )
            mend = "let them pass, if peers are to reach hosts behind this one"
            yield Trouble("forwarding_dropped", text, mend, (block.mend,), wrong=False)


def _part(block: Block) -> str:
    return f"a part, namely {block.part}, of " if block.part else ""


def _is_client(facts: Facts) -> bool:
    """Tells whether a single peer is this host's way to all others, so that no peer looks for hosts behind this one."""
    peers = facts.status["peers"]
    if len(peers) != 1:
        return False
    prefixes = peers[0]["allowed_ips"]  # 0.0.0.0/1 and 128.0.0.0/1 are all others as well
    four = collapse_addresses(IPv4Network(prefix) for prefix in prefixes if ":" not in prefix)
    six = collapse_addresses(IPv6Network(prefix) for prefix in prefixes if ":" in prefix)
    merged: list[IPv4Network | IPv6Network] = [*four, *six]
    return any(network.prefixlen == 0 for network in merged)


def _sends_in_vain(facts: Facts) -> bool:
    """Tells whether a peer sends and gets nothing back. Others' packets may also have been refused, even our own pings."""
    least = trials.SILENT_BYTES
    return any(peer["rx_bytes_alone"] > least for peer in facts.status["peers"])


def _peers(facts: Facts) -> Iterator[Trouble]:
    peers = facts.status["peers"]
    for peer in peers:
        if peer["unresolved"]:
            text = f"{label(peer['public_key'], peer['name'])}: {peer['unresolved']}"
            yield Trouble("name_not_resolved", text, "mend the name in its Endpoint, or the DNS servers")
    for named, text, mend in facts.endpoints[:_LISTED]:
        yield Trouble("endpoint", f"{named}: {text}", mend)
    for peer in peers:
        for prefix in peer["allowed_ips"]:
            address, _, length = prefix.partition("/")
            if length == ("128" if ":" in address else "32") and address in facts.own_addresses:
                text = f"{label(peer['public_key'], peer['name'])}: {address} is this host's own, so its packets never leave"
                yield Trouble("own_address", text, "give this gateway another Address, or the peer other AllowedIPs")
    for warning in facts.file[:_LISTED]:
        yield Trouble("file", warning, "mend the line, then `stagewire reload`, if that isn't meant", wrong=False)
    for inner, outer, prefix in _overlaps(peers)[:_LISTED]:
        text = f"{prefix} of {inner} lies in a prefix of {outer}; packets to it go to {inner}"
        yield Trouble("overlap", text, "make the prefixes narrower, if that isn't meant", wrong=False)
    silent = [
        (label(peer["public_key"], peer["name"]), operand(peer["public_key"], peer["name"]))
        for peer in peers
        if peer["endpoint"]
        and (peer["last_handshake_unix_s"] or 0) < facts.now - RECENT
        and any(facts.now - each["last_unix_s"] <= RECENT for each in peer["reasons"])
    ]
    for name, word in silent[:_LISTED]:
        yield Trouble("peer_silent", f"{name} completes no handshake", f"see `stagewire why {word}`")


def _overlaps(peers: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Finds prefixes that lie in another peer's, but for a default route: (its peer, the other, the prefix)."""
    owners = {
        ip_network(prefix): label(peer["public_key"], peer["name"]) for peer in peers for prefix in peer["allowed_ips"]
    }
    lengths = sorted({(network.version, network.prefixlen) for network in owners if network.prefixlen})
    found = []
    for network, owner in owners.items():
        for version, length in lengths:
            if version == network.version and length < network.prefixlen:
                other = owners.get(network.supernet(new_prefix=length))
                if other is not None and other != owner:
                    found.append((owner, other, str(network)))
    return found


_CHECKS: Final[tuple[Callable[[Facts], Iterator[Trouble]], ...]] = (_gateway, _kernel, _protection, _host, _peers)


# --- the command --------------------------------------------------------------------------------------------


def answer(facts: Facts, troubles: list[Trouble]) -> dict[str, Any]:
    """Makes the JSON object."""
    return {
        "version": FORMAT,
        "interface": facts.status["interface"],
        "healthy": not any(trouble.wrong for trouble in troubles),
        "kernels": kernels.in_use(facts.status),
        "troubles": [asdict(trouble) for trouble in troubles],
    }


def lines(facts: Facts, troubles: list[Trouble], width: int | None = None) -> list[str]:
    """Writes the kernels in use and the troubles for people. Commands stand in one line, so that they can be copied."""
    interface = facts.status["interface"]
    wrong = sum(trouble.wrong for trouble in troubles)
    told = [f"{interface}: {'all is well' if not wrong else 'one trouble' if wrong == 1 else f'{wrong} troubles'}"]
    told += flow.wrapped([f"  kernel: {kernel}" for kernel in kernels.in_use(facts.status)], width)
    for trouble in troubles:
        said = [f"{'wrong' if trouble.wrong else 'hint'}: {trouble.text}", f"  do: {trouble.mend}"]
        told += flow.wrapped(said, width)
        told += [f"    {written(command)}" for command in trouble.commands]
    return told


def mend(troubles: list[Trouble], say: Callable[[str], None]) -> bool:
    """Runs the commands of all that is wrong, after showing each. Returns False if one of them fails."""
    done = True
    for command in [command for trouble in troubles if trouble.wrong for command in trouble.commands]:
        say(f"# {written(command)}")
        try:
            ours = command[0] == "stagewire"  # the one that runs now, wherever it lies
            words = (sys.argv[0], *command[1:]) if ours else command
            within = _OURS_WITHIN if ours else _WITHIN
            subprocess.run(words, check=True, capture_output=True, text=True, errors="replace", timeout=within)
        except subprocess.CalledProcessError as error:
            done = False
            say(f"  failed: {error.stderr.strip() or error.returncode}")
        except (OSError, subprocess.TimeoutExpired) as error:
            done = False
            say(f"  failed: {error}")
    time.sleep(_SETTLES)
    return done


def written(command: tuple[str, ...]) -> str:
    """Writes a command as an operator types it."""
    return shlex.join(command)
