"""Judges this gateway's processes, and what this host does with its packets."""

from collections.abc import Iterator
from typing import Final

from stagewire.limits import MIN_MTU_IPV6
from stagewire_cli.evidence import Evidence, Finding
from stagewire_cli.host_facts import Load
from stagewire_cli.ipsec import Policy
from stagewire_cli.ruleset import BEGINNING, Block

BUSY: Final = 0.9
"""Share of the time for which an overloaded worker uses a core, or waits for one."""
STARVED: Final = 0.25
"""Share of a core below which it isn't the worker's own work that keeps it busy."""
_PACKETS: Final = "the tunnel's packets to or from this host"


def gateway(e: Evidence) -> Iterator[Finding]:
    """Judges the link, and the processes that packets and handshakes need."""
    renamed = next((each for each in e.away if each.renamed), None)
    if renamed is not None:
        yield Finding("renamed", f"the interface {e.interface} is called {renamed.renamed} now", renamed.mend)
    elif e.link_up is False:
        mend = f"set the interface up: `ip link set {e.interface} up`"
        yield Finding("interface_down", f"the interface {e.interface} is set down, so no packet passes", mend)
    for service in (each for each in e.away if each.carries):
        yield Finding("service_away", f"a part of the gateway does no work: {service}", service.mend)


def beside(e: Evidence) -> Iterator[Finding]:
    """Judges the processes without which packets pass all the same, and this command knows less."""
    for service in (each for each in e.away if not each.carries and not each.renamed):
        yield Finding("service_away", f"a part of the gateway does no work: {service}", service.mend)


def datagrams(e: Evidence) -> Iterator[Finding]:
    """Judges what of this host drops the tunnel's datagrams."""
    if e.tracks_no_more:
        yield Finding(
            "connections_full",
            "this host's table of connections is full, so it drops packets of new ones",
            "see `sysctl net.netfilter.nf_conntrack_count`, and raise net.netfilter.nf_conntrack_max",
        )
    if not e.connected and e.more_source_drops:
        yield Finding(
            "rp_filter_outside",
            f"this host has dropped {e.more_source_drops} packets meanwhile, because the route to their source leads "
            "elsewhere (rp_filter): the peer's answers may be among them",
            f"see by which link packets of {e.host} come (`tcpdump -ni any udp port {e.port}`), and `ip route get "
            f"{e.host}`; mend the route, or `sysctl net.ipv4.conf.all.rp_filter=2` and the same for that link",
        )
    if not e.connected and e.more_ipsec_drops and e.ipsec_policy is not None:
        yield _ipsec(e, e.ipsec_policy, e.host)
    for block in (each for each in e.port_blocked if not each.narrow):
        # Answers to our own handshakes pass a rule against new connections.
        if lets_answers_in(block) and (e.tried == "answered" or e.peer["endpoint_set"] is not None):
            continue
        if not block.part and e.tried == "answered":
            continue
        yield port_blocked(e, block)
    for block in (each for each in e.out_blocked if not each.narrow and not (e.tried == "answered" and not each.part)):
        yield Finding(
            "blocked_out",
            f"this host's own firewall drops {_of(block, 'datagrams')} to {e.peer['endpoint']}: {block.text}",
            f"let them out: `{' '.join(block.mend)}`",
        )


def _ipsec(e: Evidence, policy: Policy, address: str) -> Finding:
    way = "from" if policy.direction == "in" else "to"
    return Finding(
        "ipsec_drops",
        f"this host has dropped {e.more_ipsec_drops} packets meanwhile for its IPsec policies, of which this concerns "
        f"packets {way} {address}: src {policy.source} dst {policy.destination} dir {policy.direction}",
        f"take the tunnel's packets out of that policy; or remove it: `{' '.join(policy.command)}`",
    )


def lets_answers_in(block: Block) -> bool:
    """Tells whether a rule drops only what begins a connection."""
    return block.part == BEGINNING.text


def port_blocked(e: Evidence, block: Block) -> Finding:
    """Tells which rule drops what comes to our port."""
    return Finding(
        "port_blocked_here",
        f"this host's own firewall drops {_of(block, 'what comes to our port')}: {block.text}",
        f"let UDP to port {e.port} in: `{' '.join(block.mend)}`",
    )


def _of(block: Block, what: str) -> str:
    return f"a part of {what}, namely {block.part}" if block.part else what


def unanswered(e: Evidence) -> tuple[str, ...]:
    """Returns the addresses whose pings found no answer."""
    return e.path.silent or ((e.target,) if e.target and e.path.small is False else ())


def tunnel_rules(e: Evidence) -> Iterator[Finding]:
    """Judges what this host does with packets before they enter the tunnel, and as they leave it."""
    device, held = e.own_on
    if e.own_address and device not in ("", e.interface):
        yield Finding(
            "own_address",
            f"the address {e.own_address} is this host's own, on {device}, so packets to it never enter the tunnel",
            f"`ip address del {held} dev {device}`, or give the peer other AllowedIPs, then `stagewire reload`",
        )
    elif e.own_address:
        yield Finding(
            "own_address",
            f"the address {e.own_address} is this gateway's own, so packets to it never enter the tunnel",
            "give this gateway another Address, or the peer other AllowedIPs, then `stagewire reload`",
        )
    if e.ends_ipv6 and any(":" in prefix for prefix in e.peer["allowed_ips"]) and (not e.target or ":" in e.target):
        yield Finding(
            "mtu_ends_ipv6",
            f"the MTU of {e.interface} is {e.path.mtu}, and below {MIN_MTU_IPV6} there is no IPv6 in the tunnel",
            f"set MTU = {MIN_MTU_IPV6} or more in [Interface], or take IPv6 out of the file",
        )
    asked = {6 if ":" in each else 4 for each in unanswered(e)} - ({6} if e.ends_ipv6 else set())
    if e.ipv6_off and 6 not in e.own_families and not e.ends_ipv6:
        if asked & {6} or any(":" in prefix for prefix in e.peer["allowed_ips"]):
            yield Finding(
                "ipv6_off",
                f"this host has IPv6 switched off on {e.interface}, so none passes through the tunnel",
                f"`sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.{e.interface}.disable_ipv6=0`; or take IPv6 out "
                "of the file",
                wrong=bool(asked & {6}) or not e.target,
            )
        asked -= {6}
    for version in sorted(asked - e.own_families):
        yield Finding(
            "no_own_address",
            f"the interface {e.interface} has no IPv{version} address, so the peer drops what comes from another one",
            f"give [Interface] an Address of IPv{version}, which the peer has in its AllowedIPs, then `stagewire reload`",
        )
    for block in e.tunnel_blocked:
        bites = not block.narrow if block.part else not e.path.small or bool(e.path.silent)
        yield Finding(
            "tunnel_blocked_here",
            f"this host's own firewall drops {_of(block, _PACKETS)}: {block.text}",
            f"let them pass: `{' '.join(block.mend)}`",
            wrong=bites and not lets_answers_in(block),
        )


def host(e: Evidence) -> Iterator[Finding]:
    """Judges this host's check of sources, its IPsec policies, and its load."""
    if e.connected and unanswered(e) and e.more_ipsec_drops and e.ipsec_policy is not None:
        yield _ipsec(e, e.ipsec_policy, unanswered(e)[0])
    if e.source_drops and e.strict_source and any(device != e.interface for device in e.routes.values()):
        yield Finding(
            "rp_filter",
            f"this host has dropped {e.source_drops} packets, because the route to their source leads elsewhere (rp_filter)",
            f"`sysctl net.ipv4.conf.{e.interface}.rp_filter=2 net.ipv4.conf.all.rp_filter=2`, or add the missing route",
        )
    yield from filter(None, map(overloaded, e.busy, e.busy.values()))


def overloaded(worker: str, load: Load) -> Finding | None:
    """Judges whether a worker has more work than time, and why."""
    if load.uses + load.waits < BUSY:
        return None
    if load.uses < STARVED:
        text = f"other programs keep this host's processors busy: {worker} waits for one {load.waits:.0%} of the time"
        return Finding("processors_busy", text, "see `top` for what uses them", wrong=False)
    waits = f", and waits for one {load.waits:.0%} of the time" if load.waits >= 1 - BUSY else ""
    text = f"{worker} uses {load.uses:.0%} of a core{waits}"
    return Finding("overloaded", text, "add workers: `stagewire scale N`, up to one a core")
