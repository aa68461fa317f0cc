"""Judges a tunnel whose handshakes work: its session, the prefixes, and the sizes that pass."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Final

from stagewire.config import Network
from stagewire.config.peer_names import label as label_of
from stagewire.limits import MIN_MTU_IPV6
from stagewire_cli.evidence import Evidence, Finding, seen

PINGS: Final = 10
"""Small packets that are tried through a tunnel that works."""
_LOSSES: Final = 2
FRESH: Final = 20
"""s in which a packet that was dropped belongs to what is wrong now."""


def held(e: Evidence) -> Iterator[Finding]:
    """Judges what holds all of the peer's packets back: then nothing else shows how the tunnel is."""
    for found in map(e.last, ("held_back", "quota_reached")):
        if found:
            yield Finding(found["reason"], found["meaning"], found["mend"], seen(found))


def session(e: Evidence) -> Iterator[Finding]:
    """Judges packets that the session does not let pass."""
    yield from _sources(e, fresh=True)
    for found in map(e.last, ("transport_not_authentic", "nested_too_deep", "counter_exhausted")):
        if found:
            yield Finding(found["reason"], found["meaning"], found["mend"], seen(found))


def earlier_sources(e: Evidence) -> Iterator[Finding]:
    """Judges packets that came some time ago: they need have nothing to do with what is wrong now."""
    yield from _sources(e, fresh=False)


def _sources(e: Evidence, *, fresh: bool) -> Iterator[Finding]:
    if (found := e.last("inner_source_not_allowed")) and (e.now - found["last_unix_s"] <= FRESH) is fresh:
        source = found["example"]["address"]
        yield Finding(
            "source_not_allowed",
            f"its packets from {source} are dropped: that address isn't among its AllowedIPs here",
            f"add {source} to its AllowedIPs here, or have the peer use its tunnel address as source",
            seen(found),
            wrong=not ip_address(source).is_link_local,  # hosts send from such an address by themselves
        )


def lies_in(prefix: str, network: Network) -> bool:
    """Tells whether a prefix is part of a network."""
    return int(prefix.partition("/")[2]) >= network.prefixlen and meets(prefix, network)


def meets(prefix: str, network: Network) -> bool:
    """Tells whether one holds the other. 10,000 peers may have more prefixes than `ip_network` reads in time."""
    address, _, length = prefix.partition("/")
    if (":" in address) != (network.version == 6):
        return False
    common = min(int(length), network.prefixlen)
    packed = socket.inet_pton(socket.AF_INET6 if network.version == 6 else socket.AF_INET, address)
    return (int.from_bytes(packed) ^ int(network.network_address)) >> (network.max_prefixlen - common) == 0


def rate(e: Evidence) -> Iterator[Finding]:
    """Tells of a rate that has held packets back."""
    if found := e.last("rate_exceeded"):
        yield Finding(found["reason"], found["meaning"], found["mend"], seen(found), wrong=False)


def prefixes_of(e: Evidence) -> Iterator[Finding]:
    """Judges AllowedIPs and the routes to them."""
    mine = [ip_network(prefix) for prefix in e.peer["allowed_ips"]]
    if not mine:
        yield Finding("no_allowed_ips", "it has no AllowedIPs here, so no packet is its", "give it AllowedIPs here")
    for label, prefixes in e.others.items():
        for prefix in prefixes:
            inside = [each for each in mine if lies_in(prefix, each)]
            if inside and (not e.target or ip_address(e.target) in ip_network(prefix)):
                yield Finding(
                    "overlap",
                    f"packets to {prefix}, which lies in its {inside[0]}, go to {label}",
                    f"take {prefix} from {label}, or make the prefixes narrower, so that each address has one peer",
                )
                return
    told = set[tuple[str, ...]]()
    for routed, device in e.routes.items():
        if device != e.interface and (":" not in routed or not (e.ends_ipv6 or e.ipv6_off)):
            past = e.past.get(routed)
            if past is not None and past.command in told:
                continue
            told |= {past.command} if past is not None else set()
            where = f"to {device}" if device else "nowhere"
            yield Finding(
                "route_elsewhere",
                f"this host's route to {routed} leads {where}, not into the tunnel{f': {past.text}' if past else ''}",
                f"`{' '.join(past.command)}`, or give the tunnel other networks"
                if past
                else f"see `ip route get {routed.partition('/')[0]}`, and remove the route or rule that comes first",
            )


def longer_prefix(e: Evidence) -> Iterator[Finding]:
    """Judges an address that a peer without any session has, while a peer with a session has a prefix around it."""
    if not e.target or e.connected or e.shaken is not None or e.last_seen:
        return
    target = ip_network(e.target)
    around = [
        (int(prefix.partition("/")[2]), prefix, label)
        for label, prefixes in e.others.items()
        for prefix in prefixes
        if label not in e.without_session and not prefix.endswith("/0") and meets(prefix, target)
    ]
    if around:
        _, prefix, label = max(around)
        mine = max(
            (each for each in map(ip_network, e.peer["allowed_ips"]) if meets(str(target), each)), default=target
        )
        this = label_of(e.peer["public_key"], e.peer["name"])
        yield Finding(
            "overlap",
            f"packets to {e.target} go to {this}, whose {mine} lies in the {prefix} of {label}",
            f"if {e.target} is behind {label}, take {mine} from {this}; if it is {this}, see below",
        )


def path_through(e: Evidence) -> Iterator[Finding]:
    """Judges which sizes pass, and how many packets are lost."""
    path = e.path
    if path.small and path.large is False and not e.last("rate_exceeded"):
        least = f"; packets up to {path.fits} bytes pass" if path.fits else ""
        ends = ", which ends IPv6 in the tunnel" if 0 < path.fits < MIN_MTU_IPV6 else ""
        yield Finding(
            "mtu",
            f"small packets pass through the tunnel, and packets of {path.mtu} bytes don't{least}",
            f"set MTU = {path.fits or MIN_MTU_IPV6} in [Interface], here and at the peer{ends}",
        )
    if path.lost >= _LOSSES and not e.last("rate_exceeded"):
        yield Finding(
            "loss",
            f"of {PINGS} small packets through the tunnel {path.lost} got no answer, so packets are lost on the way",
            "see at the peer whether a rule drops a part of what comes (`nft list ruleset`, `tc qdisc`), and ask the "
            "network's operator if none does",
        )
