"""Finds out why a peer has no traffic: evidence in, findings out, the most likely one first. Opens and asks nothing.

The checks follow a packet's way: the gateway itself, the peer's place, the handshake, the session, the host behind it. A
stage of checks that finds something ends the search, because later ones would only name its consequences.
"""

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any, Final

from stagewire.config import Network
from stagewire.limits import MIN_MTU_IPV6
from stagewire_cli.evidence import Evidence, Finding, host_of
from stagewire_cli.probe import Refusal

CONTESTED: Final = 2
"""Changes to and fro between two places that make two devices likely."""
_LISTED: Final = 3
"""Pairs of addresses whose packets were dropped."""
BUSY: Final = 0.9
"""Share of a core that makes a worker overloaded."""


def search(evidence: Evidence) -> list[Finding]:
    """Returns the findings, the most likely first. There is at least one."""
    hints: list[Finding] = []
    for steps in _STEPS:
        found = [finding for step in steps for finding in step(evidence)]
        if any(finding.wrong for finding in found):
            return sorted(found, key=lambda finding: not finding.wrong)
        hints += found
    return hints if hints and hints[0].id == "idle" else [_well(evidence), *hints]


# --- the gateway itself -------------------------------------------------------------------------------------


def _gateway(e: Evidence) -> Iterator[Finding]:
    if e.link_up is False:
        mend = f"set the interface up: `ip link set {e.interface} up`"
        yield Finding("interface_down", f"the interface {e.interface} is set down, so no packet passes", mend)
    for service in e.away:
        yield Finding("service_away", f"a part of the gateway does no work: {service}", "see `stagewire status`")


def _place(e: Evidence) -> Iterator[Finding]:
    peer = e.peer
    if peer.get("unresolved"):
        name = peer["endpoint_name"]
        yield Finding(
            "name_not_resolved",
            f"the name in its endpoint, {name}, has no address: {peer['unresolved']}",
            f"mend the name in its Endpoint, or the DNS server: `getent hosts {host_of(name)}` shows what this host finds",
        )
    if peer.get("endpoint_fault") and (label := _carrier(e)) and "itself" not in peer["endpoint_fault"]:
        yield _behind(e, label)
    elif peer.get("endpoint_fault"):
        mend = "take the endpoint's address out of AllowedIPs"
        yield Finding("endpoint_in_own_tunnel", f"its endpoint {peer['endpoint_fault']}", mend)


# --- the handshake ------------------------------------------------------------------------------------------


def _contested(e: Evidence) -> Iterator[Finding]:
    if (found := e.last("endpoint_contested")) and found["count"] >= CONTESTED:
        yield Finding(
            "two_devices",
            f"its handshakes come from two places in turn, {e.peer['endpoint']} and {found['example']['address']}",
            "give each device a key pair of its own: two have this one",
            seen(found),
        )


def _keys(e: Evidence) -> Iterator[Finding]:
    if e.connected:
        return
    if found := e.last("response_not_authentic"):
        yield Finding(
            "psk_differs",
            "it answers our handshakes with another pre-shared key than ours",
            "give both ends the same PresharedKey, or none",
            seen(found),
        )
    if found := e.last("initiation_replayed", "response_replayed"):
        yield Finding(
            "clock_back",
            "its handshakes are older than an earlier one: its clock went back, or was ahead before",
            "put its clock right, then remove the peer and add it again, so that the old stamp is forgotten",
            seen(found),
        )
    if found := e.last("low_order_key", "own_key", "no_key"):
        yield Finding(found["reason"], found["meaning"], found["mend"], seen(found))
    place = e.peer["endpoint"] or "-"
    if found := e.stranger("bad_mac1", place):
        yield _their_key_for_us(e, found)
    if found := e.stranger("unknown_peer", place):
        yield _our_key_for_them(found)


def _their_key_for_us(e: Evidence, found: dict[str, Any]) -> Finding:
    return Finding(
        "their_key_for_us",
        f"the sender at {found['example']['address']} has another public key for this gateway than its own",
        f"put this gateway's public key into the peer's configuration: {e.ours}",
        seen(found),
    )


def _our_key_for_them(found: dict[str, Any]) -> Finding:
    theirs = found["public_key"]
    return Finding(
        "our_key_for_them",
        f"the sender at {found['example']['address']} has the public key {theirs[:10]}…, which no peer here has",
        f"if that is this peer, put its public key here: {theirs}",
        seen(found),
    )


def _answers(e: Evidence) -> Iterator[Finding]:
    if e.connected:
        return
    found = e.last("response_unconfirmed")
    if found and e.tried == "unanswered":
        yield Finding(
            "way_back_blocked",
            f"its handshakes reach us, but nothing from here reaches it at {found['example']['address']}",
            "let UDP pass from this host to that address: look at firewalls on the way, and at the route there",
            seen(found),
        )
    elif found:
        yield Finding(
            "response_unconfirmed",
            "its handshakes reach us, and it uses none of the sessions that we answer with",
            "give both ends the same PresharedKey, or none; if they have it, see that UDP passes from here to the peer",
            seen(found),
        )
    if blocked := e.stranger("send_failed", e.peer["endpoint"] or "-"):
        yield Finding(
            "blocked_out",
            f"this host itself refuses datagrams to {blocked['example']['address']}",
            f"look at `ip route get {e.host}`, and for a rule that drops UDP in `nft list ruleset`",
            seen(blocked),
        )


def _silence(e: Evidence) -> Iterator[Finding]:
    if e.connected:
        return
    peer = e.peer
    if e.port_blocked:
        yield Finding(
            "port_blocked_here",
            f"this host's own firewall drops what comes to our port: {e.port_blocked.text}",
            f"let UDP to port {e.port} in: `{' '.join(e.port_blocked.mend)}`",
        )
    # A peer without a place may be any stranger. One whose place is known would most likely call from there.
    if peer["endpoint"] is not None:
        yield _of_known_place(e)
    if found := e.stranger("unknown_peer", e.host):
        yield _our_key_for_them(found)
    if found := e.stranger("bad_mac1", e.host):
        yield _their_key_for_us(e, found)
    if peer["endpoint"] is None:
        yield Finding(
            "never_called",
            "it has never called, and this end doesn't know where it is",
            "see at the peer that it runs, that its Endpoint is this gateway's address and port, and that UDP passes; or "
            "give it an Endpoint here",
        )


def _of_known_place(e: Evidence) -> Finding:
    peer = e.peer
    if label := _carrier(e):
        return _behind(e, label)
    moved = peer["endpoint_set"] not in (None, peer["endpoint"]) and not peer.get("endpoint_name")
    if peer["endpoint_set"] is None or moved:
        return Finding(
            "nat_forgot",
            f"it has called from {peer['endpoint']} before and doesn't answer there now: it is off, or a NAT between "
            "has forgotten it",
            "set PersistentKeepalive = 25 at the peer; it is back with the next packet that it sends",
            seen(e.last("initiation_unanswered", "gave_up")),
        )
    if not e.tried and e.last("initiation_unanswered", "gave_up") is None:
        return _idle(e)
    if e.refusal is not None:
        return _refused(e, e.refusal)
    return Finding(
        "no_answer",
        f"nothing comes back from {peer['endpoint']}: the peer is off or elsewhere, doesn't know our key, or UDP is blocked",
        f"look at the peer, with `wg show`: has it the key {e.ours[:10]}… as a peer, does it listen on that port, and does "
        "`tcpdump udp` there show our packets? If not, a firewall or a wrong address lies between",
        seen(e.last("initiation_unanswered", "gave_up")),
    )


def _carrier(e: Evidence) -> str:
    """Names the peer without a session through which the endpoint is reached; empty for none."""
    host = ip_network(e.host)
    at = [
        (int(prefix.partition("/")[2]), label)
        for label in e.without_session
        for prefix in e.others[label]
        if not prefix.endswith("/0") and _meets(prefix, host)
    ]
    return max(at)[1] if at else ""


def _behind(e: Evidence, label: str) -> Finding:
    return Finding(
        "carrier_away",
        f"its endpoint {e.peer['endpoint']} lies behind {label}, which itself has no session",
        f"look at {label} first: `stagewire why` tells of it",
    )


def _refused(e: Evidence, refusal: Refusal) -> Finding:
    place, port = e.peer["endpoint"], e.peer["endpoint"].rpartition(":")[2]
    if refusal.closed:
        return Finding(
            "port_closed",
            f"the host at {refusal.by} answers that nothing listens on UDP port {port} there",
            "start the peer, or put the port where it listens into its Endpoint here: `wg show` there tells; a firewall "
            "there may answer so, too",
            f"ICMP from {refusal.by}",
        )
    return Finding(
        "unreachable",
        f"the router or host at {refusal.by} answers that no packet gets to {place}: {refusal.text}",
        f"see that the address is right and the peer's host is up; `traceroute {e.host}` shows how far packets come",
        f"ICMP from {refusal.by}",
    )


def _idle(e: Evidence) -> Finding:
    age = "there was no handshake yet" if e.shaken is None else f"the last handshake was {e.shaken:.0f} s ago"
    return Finding(
        "idle",
        f"{age}, and no packet has asked for one since",
        "send something through the tunnel, or run this command without --no-try",
        wrong=False,
    )


# --- the session --------------------------------------------------------------------------------------------


def _session(e: Evidence) -> Iterator[Finding]:
    if found := e.last("inner_source_not_allowed"):
        source = found["example"]["address"]
        yield Finding(
            "source_not_allowed",
            f"its packets from {source} are dropped: that address isn't among its AllowedIPs here",
            f"add {source} to its AllowedIPs here, or have the peer use its tunnel address as source",
            seen(found),
            wrong=not ip_address(source).is_link_local,  # hosts send from such an address by themselves
        )
    for found in map(
        e.last, ("held_back", "quota_reached", "transport_not_authentic", "nested_too_deep", "counter_exhausted")
    ):
        if found:
            yield Finding(found["reason"], found["meaning"], found["mend"], seen(found))


def _lies_in(prefix: str, network: Network) -> bool:
    """Tells whether a prefix is part of a network."""
    return int(prefix.partition("/")[2]) >= network.prefixlen and _meets(prefix, network)


def _meets(prefix: str, network: Network) -> bool:
    """Tells whether one holds the other. 10,000 peers may have more prefixes than `ip_network` reads in time."""
    address, _, length = prefix.partition("/")
    if (":" in address) != (network.version == 6):
        return False
    common = min(int(length), network.prefixlen)
    packed = socket.inet_pton(socket.AF_INET6 if network.version == 6 else socket.AF_INET, address)
    return (int.from_bytes(packed) ^ int(network.network_address)) >> (network.max_prefixlen - common) == 0


def _rate(e: Evidence) -> Iterator[Finding]:
    if found := e.last("rate_exceeded"):
        yield Finding(found["reason"], found["meaning"], found["mend"], seen(found), wrong=False)


def _prefixes(e: Evidence) -> Iterator[Finding]:
    mine = [ip_network(prefix) for prefix in e.peer["allowed_ips"]]
    if not mine:
        yield Finding("no_allowed_ips", "it has no AllowedIPs here, so no packet is its", "give it AllowedIPs here")
    for label, prefixes in e.others.items():
        for prefix in prefixes:
            inside = [each for each in mine if _lies_in(prefix, each)]
            if inside and (not e.target or ip_address(e.target) in ip_network(prefix)):
                yield Finding(
                    "overlap",
                    f"packets to {prefix}, which lies in its {inside[0]}, go to {label}",
                    f"take {prefix} from {label}, or make the prefixes narrower, so that each address has one peer",
                )
                return
    for routed, device in e.routes.items():
        if device != e.interface:
            where = f"to {device}" if device else "nowhere"
            yield Finding(
                "route_elsewhere",
                f"this host's route to {routed} leads {where}, not into the tunnel",
                f"see `ip route get {routed.partition('/')[0]}`, and remove the route or rule that comes first",
            )


def _path_through(e: Evidence) -> Iterator[Finding]:
    path = e.path
    if path.small and path.large is False:
        least = f"; packets up to {path.fits} bytes pass" if path.fits else ""
        ends = ", which ends IPv6 in the tunnel" if 0 < path.fits < MIN_MTU_IPV6 else ""
        yield Finding(
            "mtu",
            f"small packets pass through the tunnel, and packets of {path.mtu} bytes don't{least}",
            f"set MTU = {path.fits or MIN_MTU_IPV6} in [Interface], here and at the peer{ends}",
        )


def _host(e: Evidence) -> Iterator[Finding]:
    if e.source_drops and e.strict_source and any(device != e.interface for device in e.routes.values()):
        yield Finding(
            "rp_filter",
            f"this host has dropped {e.source_drops} packets, because the route to their source leads elsewhere (rp_filter)",
            f"`sysctl net.ipv4.conf.{e.interface}.rp_filter=2 net.ipv4.conf.all.rp_filter=2`, or add the missing route",
        )
    for worker, share in e.busy.items():
        if share >= BUSY:
            yield Finding(
                "overloaded",
                f"{worker} uses {share:.0%} of a core",
                "add workers: `stagewire scale N`, up to one a core",
            )


def _access(e: Evidence) -> Iterator[Finding]:
    counted = seen(e.last("access_denied"))
    for one in e.denied[:_LISTED]:
        said = f"{one.packets:,} packets from {one.source} to {one.destination}"
        owner = next((label for label, prefixes in e.others.items() if _is_in(one.destination, prefixes)), "")
        if owner and e.isolates:
            what = f"peers are kept apart (Isolation = on), so this host has dropped {said}, an address of {owner}"
            mend = "if peers are to reach one another, remove `# stagewire: Isolation = on`, then `stagewire reload`"
            yield Finding("isolated", what, mend, counted, wrong=bool(e.target))
            continue
        yield Finding(
            "not_allowed",
            f"the access rules let the peer reach only what they name, so this host has dropped {said}",
            f"if it may go there: `stagewire peer set PEER --allow {one.destination}` with all that it may reach",
            counted,
            wrong=bool(e.target),
        )


def _is_in(address: str, prefixes: list[str]) -> bool:
    return any(ip_address(address) in ip_network(prefix) for prefix in prefixes)


def _own_host(e: Evidence) -> Iterator[Finding]:
    """Judges what this host does with the tunnel's packets before they enter the tunnel."""
    if e.own_address:
        yield Finding(
            "own_address",
            f"the address {e.own_address} is this gateway's own, so packets to it never enter the tunnel",
            "give this gateway another Address, or the peer other AllowedIPs, then `stagewire reload`",
        )
    if e.path.small is False and e.tunnel_blocked:
        yield Finding(
            "tunnel_blocked_here",
            f"this host's own firewall drops the tunnel's packets to or from this host: {e.tunnel_blocked.text}",
            f"let them pass: `{' '.join(e.tunnel_blocked.mend)}`",
        )


def _nothing_back(e: Evidence) -> Iterator[Finding]:
    """Judges a tunnel that works as such, and carries packets one way alone."""
    v6 = ":" in e.target if e.target else False
    off = [version for version, on in e.forwards.items() if not on and (not e.target or version == (6 if v6 else 4))]
    one_way = e.path.small is False and e.connected
    if one_way:
        yield Finding(
            "no_inner_answer",
            f"the handshake works, but {e.target or 'its tunnel address'} doesn't answer a ping through the tunnel"
            f"{', while other packets of the peer arrive' if e.arrives else ''}",
            "see at the peer that its AllowedIPs contain this gateway's tunnel address, and that its firewall lets pings in",
            wrong=bool(e.target) or not e.arrives,
        )
    if off:
        names = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}
        yield Finding(
            "forwarding_off",
            f"this host forwards no {' and no '.join(f'IPv{each}' for each in off)} packets, so the peer reaches "
            "this host and nothing behind it",
            "if the peer is to reach anything behind this host: write `# stagewire: Exit = on` into [Interface] and "
            f"`stagewire reload`, or `sysctl -w {names[off[0]]}`",
            wrong=any(each in e.refuses_forwards or (e.only_in and e.refused_forwards.get(each, 0)) for each in off),
        )
    elif e.kept is not None:
        yield Finding("forwarding_dropped", *e.kept, wrong=e.only_in)
    elif e.only_in and e.masquerades is False:
        yield Finding(
            "no_masquerade",
            "the peer sends, nothing goes back, and this host changes no source address: hosts behind it must know the way",
            "write `# stagewire: Exit = on` into [Interface] and `stagewire reload`; or masquerade: "
            "`nft add table ip nat`, `nft 'add chain ip nat post { type nat hook postrouting priority 100; }'`, "
            f"`nft add rule ip nat post iifname {e.interface} masquerade`; or {_way_back(e)}",
        )
    elif e.only_in:
        yield Finding(
            "nothing_back",
            "the peer sends, and nothing goes back: what it calls doesn't answer, or doesn't know the way back",
            f"see with `tcpdump` on the way to its destination whether answers come; if not, {_way_back(e)}",
        )


def _way_back(e: Evidence) -> str:
    return f"give the router there a route to {', '.join(e.peer['allowed_ips'][:2])} by this host"


def _well(e: Evidence) -> Finding:
    age = "" if e.shaken is None else f"; the last handshake was {max(0, e.shaken):.0f} s ago"
    through = ", and packets of full size pass through the tunnel" if e.path.large else ""
    return Finding("well", f"all is well from here{age}{through}", "nothing", wrong=False)


def seen(found: dict[str, Any] | None) -> str:
    """Tells what a finding rests on."""
    if found is None:
        return ""
    place = f", from {found['example']['address']}" if found["example"]["address"] else ""
    return f"{found['reason']} {found['count']:,}{place}"


_Check = Callable[[Evidence], Iterator[Finding]]
_STEPS: Final[tuple[tuple[_Check, ...], ...]] = (
    (_gateway,),
    (_place,),
    (_contested, _keys, _answers),
    (_silence,),
    (_own_host, _session, _host, _prefixes, _path_through, _rate),
    (_access, _nothing_back),
)
"""Checks in order: one stage that finds something hides the later ones."""
