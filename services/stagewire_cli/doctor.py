"""Examines an interface and its host without a peer in mind, and mends what it can.

Each trouble names the exact commands that mend it. `--fix` runs them after showing them. They last until the next boot.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from ipaddress import ip_network
from typing import Any, Final

from stagewire.config.peer_names import label
from stagewire.environment import Environment
from stagewire.proto.kernel import rule
from stagewire_cli import diagnosis, host_facts, kernels, legacy_rules, readiness, why
from stagewire_cli.evidence import RECENT
from stagewire_cli.host_facts import Block, Denied

FORMAT: Final = 1
"""Version of the JSON object."""
_LISTED: Final = 5
_CLOCK: Final = 1_767_225_600
"""2026 in unix s: a clock before it has never been set."""
_FORWARDING: Final = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}
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
    away: list[str] = field(default_factory=list)
    blocked: Block | None = None
    forwards: dict[int, bool] = field(default_factory=dict)
    refused_forwards: dict[int, int] = field(default_factory=dict)
    masquerades: bool | None = None
    legacy: list[str] = field(default_factory=list)
    """Warnings of rules that nftables does not show."""
    denied: list[Denied] = field(default_factory=list)
    strict_source: bool = False
    source_drops: int = 0
    busy: dict[str, float] = field(default_factory=dict)
    unready: list[str] = field(default_factory=list)
    """Why no traffic can flow, as /readyz says."""


def gather(environment: Environment) -> Facts:
    """Looks at an interface and its host. Raises Failed."""
    status = why.status(environment)
    busy, firewall = why.busy_workers(status), host_facts.Firewall()
    return Facts(
        status,
        time.time(),
        [why.away(each) for each in status["services"] if not each["ready"] or each["fault"]],
        firewall.blocks(status.get("listen_port") or 0),
        host_facts.forwards(),
        host_facts.refused_forwards(),
        firewall.masquerades(),
        [*legacy_rules.warnings(environment.interface)],
        firewall.denied(environment.interface),
        host_facts.strict_source(environment.interface),
        host_facts.source_drops(),
        busy.shares(),
        readiness.why_not(environment),
    )


def examine(facts: Facts) -> list[Trouble]:
    """Returns all troubles, then all hints."""
    found = [trouble for check in _CHECKS for trouble in check(facts)]
    return sorted(found, key=lambda trouble: not trouble.wrong)


def _gateway(facts: Facts) -> Iterator[Trouble]:
    name = facts.status["interface"]
    if facts.status.get("link_up") is False:
        command = ("ip", "link", "set", name, "up")
        yield Trouble("interface_down", f"{name} is set down, so no packet passes", "set it up", (command,))
    for service in facts.away:
        yield Trouble("service_away", f"a part of the gateway does no work: {service}", "see its log")
    if facts.status.get("link_up") is not False and not facts.away:
        for reason in facts.unready:
            mend = "see what `stagewire status` counts below each service, and what `stagewire why PEER` says"
            yield Trouble("not_ready", f"no traffic gets through: {reason}", mend)
    for warning in facts.status["warnings"]:
        yield Trouble("warning", warning, "do what it says", wrong=False)
    for worker, share in facts.busy.items():
        if share >= diagnosis.BUSY:
            yield Trouble("overloaded", f"{worker} uses {share:.0%} of a core", "add workers with `stagewire scale N`")


def _kernel(facts: Facts) -> Iterator[Trouble]:
    for kernel in kernels.in_use(facts.status):
        if rule.CANNOT in kernel:
            yield Trouble(
                "plain_kernel", f"packets cost several times as much CPU: {kernel}", kernels.MEND, wrong=False
            )


def _host(facts: Facts) -> Iterator[Trouble]:
    name = facts.status["interface"]
    if facts.blocked is not None:
        port = facts.status.get("listen_port")
        text = f"this host drops datagrams to UDP port {port}: {facts.blocked.text}"
        yield Trouble("port_blocked", text, "let them in", (facts.blocked.mend,))
    off = [version for version, on in facts.forwards.items() if not on]
    if off:
        yield Trouble(
            "forwarding_off",
            f"this host forwards no {' and no '.join(f'IPv{version}' for version in off)}, so peers reach nothing behind it",
            "if peers are to reach other hosts, write `# stagewire: Exit = on` into [Interface] and `stagewire reload`; "
            "or switch it on, and put it into /etc/sysctl.d to last",
            tuple(("sysctl", "-w", _FORWARDING[version]) for version in off),
            wrong=any(facts.refused_forwards.get(version) for version in off),
        )
    elif facts.masquerades is False:
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
    if facts.now < _CLOCK:
        mend = "set the clock: peers refuse handshakes that are older than earlier ones"
        yield Trouble("clock", "this host's clock stands in the past", mend)


def _peers(facts: Facts) -> Iterator[Trouble]:
    peers = facts.status["peers"]
    for peer in peers:
        if peer["unresolved"]:
            text = f"{label(peer['public_key'], peer['name'])}: {peer['unresolved']}"
            yield Trouble("name_not_resolved", text, "mend the name in its Endpoint, or the DNS servers")
    for inner, outer, prefix in _overlaps(peers)[:_LISTED]:
        text = f"{prefix} of {inner} lies in a prefix of {outer}; packets to it go to {inner}"
        yield Trouble("overlap", text, "make the prefixes narrower, if that isn't meant", wrong=False)
    silent = [
        label(peer["public_key"], peer["name"])
        for peer in peers
        if peer["endpoint"]
        and (peer["last_handshake_unix_s"] or 0) < facts.now - RECENT
        and any(facts.now - each["last_unix_s"] <= RECENT for each in peer["reasons"])
    ]
    for name in silent[:_LISTED]:
        yield Trouble("peer_silent", f"{name} completes no handshake", f"see `stagewire why {name.split(' (')[0]!r}`")


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


_CHECKS: Final[tuple[Callable[[Facts], Iterator[Trouble]], ...]] = (_gateway, _kernel, _host, _peers)


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


def lines(facts: Facts, troubles: list[Trouble]) -> list[str]:
    """Writes the kernels in use and the troubles for people."""
    interface = facts.status["interface"]
    wrong = sum(trouble.wrong for trouble in troubles)
    told = [f"{interface}: {'all is well' if not wrong else 'one trouble' if wrong == 1 else f'{wrong} troubles'}"]
    told += [f"  kernel: {kernel}" for kernel in kernels.in_use(facts.status)]
    for trouble in troubles:
        told += [f"{'wrong' if trouble.wrong else 'hint'}: {trouble.text}", f"  do: {trouble.mend}"]
        told += [f"    {written(command)}" for command in trouble.commands]
    return told


def mend(troubles: list[Trouble], say: Callable[[str], None]) -> bool:
    """Runs the commands of all that is wrong, after showing each. Returns False if one of them fails."""
    done = True
    for command in [command for trouble in troubles if trouble.wrong for command in trouble.commands]:
        say(f"# {written(command)}")
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=10)
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
    return " ".join(f"'{word}'" if any(letter in word for letter in " ;{}") else word for word in command)
