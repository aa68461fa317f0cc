"""Judges a peer's endpoint, and the way to it."""

import errno
import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Final

from stagewire_cli.causes.tunnel import meets
from stagewire_cli.evidence import Evidence, Finding
from stagewire_cli.way_out import WayOut, host_of

KINDS: Final = {
    "unspecified": "no host's address",
    "multicast": "a multicast address, which no host has",
    "broadcast": "a broadcast address, which no host has",
}
"""Why an address can't be an endpoint's, by its kind."""
REASONS: Final = {
    errno.ENETUNREACH: ("has no route to", "add a route there, such as a default route"),
    errno.EHOSTUNREACH: ("has a route that says unreachable for", "remove that route"),
    errno.EACCES: ("has a route that prohibits", "remove that route or rule"),
    errno.EPERM: (
        "refuses datagrams to",
        "look for a rule that drops UDP in `nft list ruleset`, and for a policy in `ip xfrm policy`",
    ),
    errno.EINVAL: ("has a blackhole route for", "remove that route"),
    errno.ENETDOWN: ("has a link that is down on its way to", "set the link up"),
    errno.ENODEV: ("lacks the link that leads to", "see in `ip link` whether the link is there"),
    errno.EAFNOSUPPORT: ("speaks no IPv6, so it can't reach", "turn IPv6 on, or give the peer an IPv4 endpoint"),
    errno.EADDRNOTAVAIL: ("has no address from which it could reach", "give this host an address of that family"),
}
"""What the kernel means by each errno, and what to do."""


def endpoint(e: Evidence) -> Iterator[Finding]:
    """Judges whether the endpoint can be a peer's, and whether a way leads there."""
    peer = e.peer
    if peer.get("unresolved"):
        name = peer["endpoint_name"]
        yield Finding(
            "name_not_resolved",
            f"the name in its endpoint, {name}, has no address: {peer['unresolved']}",
            f"mend the name in its Endpoint, or the DNS server: `getent hosts {host_of(name)}` shows what this host finds",
        )
    if e.connected and not peer.get("endpoint_fault"):
        return
    place, way = peer["endpoint"], e.way
    if e.is_ourselves:
        yield Finding(
            "endpoint_is_ourselves",
            f"its endpoint {place} is this gateway itself, so what we send to the peer comes back to us",
            "put the peer's own address and port into its Endpoint here, or leave Endpoint out if the peer calls us",
        )
    elif way is not None and way.kind in KINDS:
        yield Finding(
            "endpoint_no_host",
            f"its endpoint {place} is {KINDS[way.kind]}",
            "put the address and port where the peer listens into its Endpoint here",
        )
    elif (fault := peer.get("endpoint_fault") or _behind_itself(e)) and (label := carrier(e)) and "itself" not in fault:
        yield behind(e, label)
    elif (
        fault and e.way_decides is not None and not any(meets(each, ip_network(e.host)) for each in peer["allowed_ips"])
    ):
        yield Finding(
            "endpoint_in_own_tunnel",
            f"its endpoint {place} {fault}; what leads there is {e.way_decides.text}",
            f"`{' '.join(e.way_decides.command)}`",
        )
    elif fault:
        mend = "put the peer's address outside the tunnel into its Endpoint, or take that address out of AllowedIPs"
        yield Finding("endpoint_in_own_tunnel", f"its endpoint {place} {fault}", mend)
    elif way is not None and way.kind == "local" and e.place_on[0] and not ip_address(e.host).is_loopback:
        device, held = e.place_on
        yield Finding(
            "endpoint_on_this_host",
            f"its endpoint {place} is an address of this host itself, on {device}",
            f"if the peer is another host, `ip address del {held} dev {device}`, or put its own address into its Endpoint; "
            "if it runs on this host, see that it listens on that port",
        )
    elif way is not None:
        yield from _way(e, way)


def _behind_itself(e: Evidence) -> str:
    """Tells that the endpoint lies in the peer's own prefixes, where the routes lead into the tunnel."""
    if e.way is None or e.way.device != e.interface:
        return ""
    host = ip_network(e.host)
    mine, others = (
        max((int(each.partition("/")[2]) for each in prefixes if meets(each, host)), default=-1)
        for prefixes in (e.peer["allowed_ips"], [each for prefixes in e.others.values() for each in prefixes])
    )
    return "lies behind the peer itself" if mine > others else ""


def _way(e: Evidence, way: WayOut) -> Iterator[Finding]:
    if way.error == errno.EPERM and e.ipsec_policy is not None and e.ipsec_policy.direction == "out":
        yield Finding(
            "ipsec_drops",
            f"an IPsec policy of this host refuses datagrams to {e.host}: src {e.ipsec_policy.source} dst "
            f"{e.ipsec_policy.destination} dir out",
            f"take the tunnel's packets out of that policy; or remove it: `{' '.join(e.ipsec_policy.command)}`",
        )
    elif way.error:
        why, mend = REASONS.get(way.error, ("can't send to", f"the kernel says: {os.strerror(way.error)}"))
        down = (
            f"; {', '.join(way.down)} {'is' if len(way.down) == 1 else 'are'} down or without a carrier"
            if way.down
            else ""
        )
        yield Finding(
            "no_way_out",
            f"this host {why} {e.host}{down}",
            f"see `ip route get {e.host}`, and {mend}",
            os.strerror(way.error),
        )
    elif not way.carrier:
        yield Finding(
            "no_carrier",
            f"the link {way.device}, by which this host reaches {e.host}, is down or has no carrier",
            f"see `ip link show {way.device}`: set the link up, or look at its cable",
        )
    elif way.silent and way.via:
        yield Finding(
            "no_neighbour",
            f"the router {way.via} on {way.device}, by which this host reaches {e.host}, doesn't answer",
            f"see `ip neigh show dev {way.device}` and `ip route get {e.host}`: the router is off, or the route is wrong",
        )
    elif way.silent:
        yield Finding(
            "no_neighbour",
            f"no host on {way.device} says that it has the address {e.host}",
            "see that the peer's host is up, that it has this address, and that the address in its Endpoint is right",
        )


def carrier(e: Evidence) -> str:
    """Names the peer without a session through which the endpoint is reached; empty for none."""
    try:
        host = ip_network(ip_address(e.host))
    except ValueError:
        return ""
    at = [
        (int(prefix.partition("/")[2]), label)
        for label in e.without_session
        for prefix in e.others[label]
        if not prefix.endswith("/0") and meets(prefix, host)
    ]
    return max(at)[1] if at else ""


def behind(e: Evidence, label: str) -> Finding:
    """Tells that the endpoint lies behind a peer that is away."""
    return Finding(
        "carrier_away",
        f"its endpoint {e.peer['endpoint']} lies behind {label}, which itself has no session",
        f"look at {label} first: `stagewire why` tells of it",
    )
