"""Judges what lies beyond a tunnel that works: hosts behind this one, and hosts behind the peer."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Final

from stagewire.limits import MIN_MTU_IPV6
from stagewire_cli.evidence import Evidence, Finding, seen

_LISTED: Final = 3
"""Pairs of addresses whose packets were dropped."""


def access(e: Evidence) -> Iterator[Finding]:
    """Tells what the access rules have dropped."""
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


def outside(interface: str, host: str, device: str, forwards: dict[int, bool]) -> Iterator[Finding]:
    """Judges an address that no peer has, and that this host reaches by another device; empty for none."""
    elsewhere = f"; this host reaches it by {device}, outside the tunnel" if device not in ("", interface) else ""
    version = 6 if ":" in host else 4
    if elsewhere and not forwards.get(version, True):
        yield Finding(
            "forwarding_off",
            f"no peer has this address{elsewhere}, and forwards no IPv{version} packets, so no peer reaches it",
            f"if peers are to reach it: {_switch_on(version)}",
        )
    yield Finding(
        "unknown",
        f"no peer's endpoint or AllowedIPs have this address, and nothing from it was dropped lately{elsewhere}",
        "add the address to the AllowedIPs of the peer that should have it"
        + ("; if it lies behind this host and a peer can't reach it, ask about that peer" if elsewhere else ""),
    )


def _switch_on(version: int) -> str:
    name = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}[version]
    return f"write `# stagewire: Exit = on` into [Interface] and `stagewire reload`, or `sysctl -w {name}=1`"


def nothing_back(e: Evidence) -> Iterator[Finding]:
    """Judges a tunnel that works as such, and carries packets one way alone."""
    if e.connected:
        yield from _unanswered(e)
    # Whether this host forwards is nothing to a target behind the peer, unless the peer is seen to need it.
    yield from (finding for finding in _through_here(e) if finding.wrong or not e.target)


def _through_here(e: Evidence) -> Iterator[Finding]:
    """Judges what becomes of packets that the peer sends to hosts behind this one."""
    off = [version for version, on in e.forwards.items() if not on]
    if off:
        yield Finding(
            "forwarding_off",
            f"this host forwards no {' and no '.join(f'IPv{each}' for each in off)} packets, so the peer reaches "
            "this host and nothing behind it",
            f"if the peer is to reach anything behind this host: {_switch_on(off[0])}",
            wrong=any(each in e.refuses_forwards or (e.only_in and e.refused_forwards.get(each, 0)) for each in off),
        )
    elif e.through_blocked and e.kept is None:
        block = e.through_blocked[0]
        yield Finding(
            "forwarding_dropped",
            f"this host's own firewall drops {f'{block.part} of ' if block.part else ''}what the peer sends through this "
            f"host: {block.text}",
            f"if the peer is to reach anything behind this host: `{' '.join(block.mend)}`",
            wrong=e.only_in and not block.narrow,
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


def _unanswered(e: Evidence) -> Iterator[Finding]:
    """Judges pings that found no answer: of the target if there is one, otherwise of the peer's own addresses."""
    path = e.path
    if e.target and path.small is False and (path.answering or path.forwards or path.refused):
        yield _behind_peer(e)
    elif not e.target and path.other_answer and not path.silent:
        yield Finding(
            "no_ping",
            f"its address {path.other_answer} answers TCP through the tunnel, and no ping: the peer drops ICMP"
            f"{'' if path.small else ', so no large packets could be tried'}",
            "nothing, unless pings are wanted: then let ICMP pass the peer's firewall",
            wrong=False,
        )
    elif path.small is False:
        asked = [e.target] if e.target else [*path.silent] or ["its tunnel address"]
        yield Finding(
            "no_inner_answer",
            f"the handshake works, but {_silent(asked)} a ping through the tunnel"
            f"{', while other packets of the peer arrive' if e.arrives else ''}",
            "see at the peer that its AllowedIPs contain this gateway's tunnel address, that its interface has its own "
            "(`ip address`), that `ip route get` there leads answers into the tunnel, and that its firewall lets pings in; "
            "if `wg show` there counts no more received while you ping, a firewall between lets only handshakes pass",
            wrong=bool(e.target) or not e.arrives,
        )
    elif path.silent and not e.target:
        yield Finding(
            "no_inner_answer",
            f"{_silent([f'its address {each}' for each in path.silent])} a ping through the tunnel, while "
            f"{' and '.join(path.answering)} does",
            f"see at the peer that its interface has this address{_least_mtu(path.silent)}, that its AllowedIPs contain "
            "this gateway's address of that family, that `ip route get` there leads answers into the tunnel, and that its "
            "firewall lets pings in",
        )


def _least_mtu(silent: tuple[str, ...]) -> str:
    return f" and an MTU of {MIN_MTU_IPV6} or more" if any(":" in each for each in silent) else ""


def _silent(asked: list[str]) -> str:
    return " and ".join(asked) + (" doesn't answer" if len(asked) == 1 else " don't answer")


def _behind_peer(e: Evidence) -> Finding:
    path, target = e.path, e.target
    itself = f"the peer itself answers at {(path.answering or (path.forwards.by if path.forwards else '',))[0]}"
    if (refused := path.refused) is not None:
        said = f"ICMP from {refused.by}"
        match refused.why:
            case "no such host":
                return Finding(
                    "host_behind_down",
                    f"the router {refused.by} at the peer answers that no host has the address {target}",
                    f"see that {target} is up, and that its address is right",
                    said,
                )
            case "no route":
                return Finding(
                    "no_route_behind",
                    f"the router {refused.by} at the peer answers that it has no route to {target}",
                    f"at {refused.by}: `ip route get {target}`, and add the route",
                    said,
                )
        return Finding(
            "forwarding_refused_there",
            f"the router {refused.by} at the peer answers that it lets no packet through to {target}",
            f"at {refused.by}: let its chain FORWARD pass what comes from the tunnel (`nft list ruleset`)",
            said,
        )
    if path.forwards is None:
        return Finding(
            "forwarding_off_there",
            f"{itself}, but it hands nothing on to {target}: it doesn't forward packets",
            f"at the peer: `sysctl -w net.{'ipv6.conf.all.forwarding' if ':' in target else 'ipv4.ip_forward'}=1`; if it is "
            f"1 already, `tcpdump -ni any host {target}` there shows whether the pings leave it",
        )
    return Finding(
        "nothing_from_behind",
        f"{itself} and forwards packets, but nothing comes back from {target}: its chain FORWARD drops them, or "
        f"{target} doesn't know the way back, or drops pings",
        f"at the peer: `tcpdump -ni any host {target}` while you ping. If no ping leaves towards it, let the chain FORWARD "
        f"pass them; if no answer comes, give {target} a route to the network of {e.interface} by the peer, or have the "
        "peer masquerade",
    )


def _way_back(e: Evidence) -> str:
    return f"give the router there a route to {', '.join(e.peer['allowed_ips'][:2])} by this host"
