"""Answers why a peer has no traffic: gathers the evidence, has a handshake and packets tried, and tells the findings."""

import errno
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from ipaddress import ip_address, ip_network
from typing import Any, Final

from stagewire.config.peer_names import NotFoundError, find, label
from stagewire.control import gateway
from stagewire.environment import Environment
from stagewire_cli import (
    deciding_route,
    diagnosis,
    flow,
    former,
    host_facts,
    ipsec,
    out_of_use,
    own_key,
    services_away,
    show,
    trials,
    way_out,
)
from stagewire_cli.causes import beyond, handshakes
from stagewire_cli.causes.tunnel import meets
from stagewire_cli.evidence import RECENT, Evidence, Finding, Path, Tried, seen
from stagewire_cli.failures import Failed
from stagewire_cli.probe import Probe
from stagewire_cli.way_out import host_of

_PASSES_WITHIN: Final = 0.4
"""s in which a service becomes ready."""
_LOOKED_AT: Final = 4
"""Prefixes of a peer in which its own addresses are looked for."""
_GUESSED_IN: Final = 8
"""Least length of a prefix in which addresses are guessed."""
_FIRST: Final = (1, 2)
"""Which hosts of a network are guessed."""
_GUESSES: Final = 3
FORMAT: Final = 1
"""Version of the JSON object."""

Status = dict[str, Any]


def answer(environment: Environment, text: str, *, trying: bool) -> dict[str, Any]:
    """Returns the findings about the peer that `text` names, as the JSON object. Raises Failed."""
    begun, known = time.monotonic(), _settled(environment)
    if services_away.keys_are_missing(known):
        away = services_away.found(known)
        return _object(text, None, [*diagnosis.of_services(away)], tried="")
    if (gone := out_of_use.meant(environment, text, known["peers"])) is not None:
        return _object(label(**gone.named), gone.named, [gone.finding], tried="")
    try:
        peer, target = which(text, known["peers"], known["strangers"])
    except Failed:
        said = _of_own_key(environment, text, known) or _of_removed(environment, text, known)
        if said is not None:
            return said
        raise
    if peer is None:
        return _of_own_key(environment, text, known) or _of_stranger(environment, text, known)
    evidence = _evidence(environment, known, peer, target)
    if trying and evidence.link_up is not False and not any(each.carries for each in evidence.away):
        with Probe(peer["endpoint"] or "", evidence.port) as probe:
            own = addresses_of(peer)
            guesses = [] if own else guesses_of(peer, host_facts.Links())
            trials.run(environment, evidence, own, guesses, begun)
            evidence.refusal = probe.refusal()
        evidence.more_source_drops = host_facts.source_drops() - evidence.source_drops
        evidence.more_ipsec_drops = ipsec.drops() - evidence.ipsec_drops
        if evidence.more_ipsec_drops:
            evidence.ipsec_policy = _policy(evidence)
        mark = (known.get("host") or {}).get("mark", 0)
        links = host_facts.Links()
        # By now the kernel knows its neighbours.
        evidence.way = way_out.look(evidence.peer["endpoint"] or "", mark, links)
        if evidence.way is not None and evidence.way.fixed and not evidence.connected:
            evidence.way = replace(evidence.way, hop_answers=way_out.hop_answers(evidence.way, evidence.host))
        evidence.strangers = _relevant(evidence.strangers, known["peers"], peer, evidence.former, links)
    refused = host_facts.refused_forwards()
    evidence.refuses_forwards = frozenset(each for each in refused if refused[each] > evidence.refused_forwards[each])
    return _object(label(peer["public_key"], peer["name"]), peer, diagnosis.search(evidence), tried=evidence.tried)


def which(text: str, peers: list[Status], strangers: Sequence[Status] = ()) -> tuple[Status | None, str]:
    """Finds the peer by name, key, or address, and the address that was meant behind it, if any.

    Of several peers at one address, the peer from whose place a stranger calls is meant; none if a stranger calls from
    another port there. None stands for an address that belongs to no peer. Raises Failed for a text that is neither.
    """
    by_key = {peer["public_key"]: peer for peer in peers}
    try:
        address = ip_address(text)
    except ValueError:
        try:
            return by_key[find(text, {key: peer["name"] for key, peer in by_key.items()})], ""
        except NotFoundError as error:
            raise Failed(str(error)) from None
    at = [peer for peer in peers if host_of(peer["endpoint"] or "") == str(address)]
    if at:
        odd = {each["example"]["address"] for each in strangers if time.time() - each["last_unix_s"] <= RECENT}
        from_place = next((peer for peer in at if peer["endpoint"] in odd), None)
        if from_place is None and len(at) > 1 and str(address) in map(host_of, odd):
            return None, ""
        return from_place or at[0], ""
    alone = ip_network(address)
    behind = [
        (int(prefix.partition("/")[2]), key)
        for key, peer in by_key.items()
        for prefix in peer["allowed_ips"]
        if meets(prefix, alone)
    ]
    return (by_key[max(behind)[1]], str(address)) if behind else (None, "")


def lines(found: dict[str, Any], width: int | None = None) -> list[str]:
    """Writes the answer for people: first what to do first. `width` is in columns; with None no line is wrapped."""
    first, *others = found["findings"]
    told = [f"{found['subject']}: {first['mend'] if first['wrong'] else first['text']}"]
    told += [f"  why: {first['text']}"] if first["wrong"] else _hint(first)
    told += [f"  seen: {first['seen']}"] if first["seen"] else []
    for each in others:
        told += [f"also: {each['text']}", f"  do: {each['mend']}"]
        told += [f"  seen: {each['seen']}"] if each["seen"] else []
    return flow.wrapped(told, width)


def _hint(finding: dict[str, Any]) -> list[str]:
    return [] if finding["mend"] == "nothing" else [f"  do: {finding['mend']}"]


def _settled(environment: Environment) -> Status:
    """Returns the status; if a service is just getting ready, as after a change, the status a moment later."""
    known = show.known(environment)
    if any(each.passes for each in services_away.found(known)):
        time.sleep(_PASSES_WITHIN)
        known = show.known(environment)
    return known


def _of_own_key(environment: Environment, text: str, known: Status) -> dict[str, Any] | None:
    """Answers for a peer of the file that has our own key; None for another."""
    named = own_key.meant(environment, text, known["public_key"] or "")
    return None if named is None else _object(label(**named), named, [own_key.finding(named["name"])], tried="")


def _of_removed(environment: Environment, text: str, known: Status) -> dict[str, Any] | None:
    """Answers for a peer that was removed, whether its device still calls or not; None for a text that no peer had."""
    if (gone := former.removed(environment, text)) is None:
        return None
    key, was = gone
    calls = next((each for each in known["strangers"] if (each["public_key"] or "-").startswith(key)), None)
    found = handshakes.removed(was, key)
    if calls is not None:
        found = handshakes.former_key(was, key, calls["example"]["address"], seen(calls))
    return _object(label(key, was.name), {"public_key": key, "name": was.name}, [found], tried="")


def _of_stranger(environment: Environment, text: str, known: Status) -> dict[str, Any]:
    host = str(ip_address(text))
    senders = [each for each in known["peers"] for reason in each["reasons"] if _is_refused_source(reason, host)]
    if senders:
        return _object(host, None, [_of_source(each, host) for each in senders], tried="")
    found = [each for each in known["strangers"] if host_of(each["example"]["address"]) == host]
    findings = [_about(environment, each) for each in found]
    if not findings and host_facts.Links().is_own(host):
        text = "this address is this gateway's own, or its host's"
        findings = [Finding("own_address", text, "ask about the name, the key or an address of a peer")]
    elif not findings:
        device = host_facts.routes([host]).get(host, "")
        findings = list(beyond.outside(environment.interface, host, device, host_facts.forwards()))
    return _object(host, None, findings, tried="")


def _is_refused_source(reason: Status, host: str) -> bool:
    is_recent = time.time() - reason["last_unix_s"] <= RECENT
    return bool(is_recent and reason["reason"] == "inner_source_not_allowed" and reason["example"]["address"] == host)


def _of_source(peer: Status, host: str) -> Finding:
    """Tells of a peer that sends from an address which isn't its own."""
    name = label(peer["public_key"], peer["name"])
    reason = next(each for each in peer["reasons"] if _is_refused_source(each, host))
    text = (
        f"packets from this address come from {name}, and are dropped: it isn't among the AllowedIPs of that peer here"
    )
    mend = f"add {host} to the AllowedIPs of {name} here, or have the peer use its tunnel address as source"
    return Finding("source_not_allowed", text, mend, seen(reason))


def _about(environment: Environment, each: dict[str, Any]) -> Finding:
    key = each["public_key"]
    if each["reason"] == "unknown_peer" and (gone := former.find(environment, key)) is not None:
        return handshakes.former_key(gone, key, each["example"]["address"], seen(each))
    return Finding(each["reason"], each["meaning"], each["mend"], seen(each))


def _object(subject: str, peer: Status | None, findings: list[Finding], *, tried: Tried) -> dict[str, Any]:
    return {
        "version": FORMAT,
        "subject": subject,
        "public_key": peer["public_key"] if peer is not None else None,
        "name": peer["name"] if peer is not None else "",
        "healthy": not any(finding.wrong for finding in findings),
        "tried": tried,
        "findings": [asdict(finding) for finding in findings],
    }


# --- evidence -----------------------------------------------------------------------------------------------


def _evidence(environment: Environment, known: Status, peer: Status, target: str) -> Evidence:
    busy, now, links = busy_workers(known), time.time(), host_facts.Links()
    place, interface = peer["endpoint"] or "", environment.interface
    gone = _former(environment, known["strangers"])
    others = [other for other in known["peers"] if other is not peer]
    evidence = Evidence(
        interface=interface,
        peer=peer,
        now=now,
        strangers=_relevant(known["strangers"], known["peers"], peer, gone, links),
        away=services_away.found(known),
        link_up=known.get("link_up"),
        others={label(other["public_key"], other["name"]): other["allowed_ips"] for other in others},
        routes=host_facts.routes([target] if target else peer["allowed_ips"]),
        forwards=host_facts.forwards(),
        kept=gateway.kept(known["warnings"]),
        strict_source=host_facts.strict_source(interface),
        source_drops=host_facts.source_drops(),
        ipsec_drops=ipsec.drops(),
        ipv6_off=host_facts.ipv6_off(interface),
        hops=host_facts.hop_limit(6 if place.startswith("[") else 4),
        tracks_no_more=host_facts.tracks_no_more(),
        own_families=frozenset(6 if ":" in each else 4 for each in links.addresses(interface)),
        port=known.get("listen_port") or 0,
        way=way_out.look(place, (known.get("host") or {}).get("mark", 0), links),
        path=Path(mtu=links.mtu(interface)),
        former=gone,
        last_seen=former.last_seen(environment, peer["public_key"]) if peer["endpoint"] is None else "",
        own_address=_own(peer, target, links),
        only_in=peer["rx_bytes_alone"] > trials.SILENT_BYTES,
        refused_forwards=host_facts.refused_forwards(),
        without_session=frozenset(
            label(other["public_key"], other["name"])
            for other in others
            if now - (other["last_handshake_unix_s"] or 0) > RECENT
        ),
        target=target,
        ours=known["public_key"] or "(none yet)",
    )
    _look_at_ways(evidence, links)
    evidence.is_ourselves = evidence.way is not None and way_out.is_ourselves(place, evidence.port, links)
    _look_at_rules(evidence, known["peers"])
    evidence.busy = busy.loads()
    return evidence


def _look_at_ways(evidence: Evidence, links: host_facts.Links) -> None:
    """Puts what leads packets past the tunnel, or the tunnel's own packets into it, into the evidence."""
    way, interface, own = evidence.way, evidence.interface, links.addresses(evidence.interface)
    for prefix in (each for each, device in evidence.routes.items() if device != interface):
        found = deciding_route.find(host_facts.address_in(prefix), links, own)
        if found is not None and found.device != interface:
            evidence.past[prefix] = found
    if way is not None and way.device == interface:
        evidence.way_decides = deciding_route.find(evidence.host, links)
    if way is not None and way.kind == "local":
        evidence.place_on = links.holder(evidence.host)
    if evidence.own_address:
        evidence.own_on = links.holder(evidence.own_address)
    evidence.mark_rules = deciding_route.rules_for_marks() if evidence.stranger("send_failed", evidence.host) else []
    if way is not None and way.error == errno.EPERM:
        evidence.ipsec_policy = _policy(evidence)


def _policy(evidence: Evidence) -> ipsec.Policy | None:
    inner = [evidence.target] if evidence.target else addresses_of(evidence.peer)
    return ipsec.policy_about(filter(None, (evidence.host, *inner)))


def _look_at_rules(evidence: Evidence, peers: list[Status]) -> None:
    """Puts what rules of this host do to the tunnel into the evidence."""
    firewall, interface, peer, target = host_facts.Firewall(), evidence.interface, evidence.peer, evidence.target
    place, port = peer["endpoint"] or "", evidence.port
    device = evidence.way.device if evidence.way is not None else ""
    evidence.masquerades = firewall.masquerades()
    evidence.denied = [each for each in firewall.denied(interface) if _concerns(each, peer, peers, target)]
    evidence.isolates = firewall.isolates(interface)
    evidence.port_blocked = firewall.blocks(port, device, host_of(place))
    evidence.out_blocked = firewall.blocks_out(port, place, device) if place else []
    own = [target] if target else addresses_of(peer) or [""]
    of_each_version = {":" in address: address for address in reversed(own)}
    blocks = [block for address in of_each_version.values() for block in firewall.blocks_tunnel(interface, address)]
    evidence.tunnel_blocked = [*dict.fromkeys(blocks)]
    evidence.through_blocked = firewall.blocks_through(interface)


def _relevant(
    strangers: list[Status], peers: list[Status], peer: Status, gone: dict[str, former.Former], links: host_facts.Links
) -> list[Status]:
    """Leaves out what this host itself or another peer has sent, and devices elsewhere with another peer's former key."""
    own, place = links.addresses(), host_of(peer["endpoint"] or "")
    others = {each["endpoint"] for each in peers if each["endpoint"] and each["public_key"] != peer["public_key"]}

    def concerns(stranger: Status) -> bool:
        at, of = stranger["example"]["address"], gone.get(stranger["public_key"])
        theirs = of is None or of.name == peer["name"] != "" or peer["public_key"].startswith(of.now or "-")
        return host_of(at) not in own and at not in others and (theirs or host_of(at) == place)

    return [each for each in strangers if concerns(each)]


def _former(environment: Environment, strangers: list[Status]) -> dict[str, former.Former]:
    keys = {each["public_key"] for each in strangers if each["reason"] == "unknown_peer" and each["public_key"]}
    return {key: gone for key in keys if (gone := former.find(environment, key)) is not None}


def _own(peer: Status, target: str, links: host_facts.Links) -> str:
    return next((each for each in ([target] if target else addresses_of(peer)) if links.is_own(each)), "")


def addresses_of(peer: Status) -> list[str]:
    """Returns the peer's own addresses in the tunnel, if its allowed-IPs tell them."""
    alone = [prefix for prefix in peer["allowed_ips"][:_LOOKED_AT] if ip_network(prefix).num_addresses == 1]
    return [prefix.partition("/")[0] for prefix in alone]


def guesses_of(peer: Status, links: host_facts.Links) -> list[str]:
    """Returns addresses that hosts behind the peer often have: the first ones of its networks."""
    networks = [ip_network(prefix) for prefix in peer["allowed_ips"][:_LOOKED_AT]]
    wide = [each for each in networks if each.prefixlen >= _GUESSED_IN and each.num_addresses > max(_FIRST)]
    found = [str(network[at]) for network in wide for at in _FIRST]
    return [each for each in found if not links.is_own(each)][:_GUESSES]


def _concerns(denied: host_facts.Denied, peer: Status, peers: list[Status], target: str) -> bool:
    """Tells whether dropped packets are the peer's; with a target behind a peer, whether they went there or came thence."""
    if target:
        return target in (denied.source, denied.destination)
    return which(denied.source, [{**each, "endpoint": None} for each in peers])[0] == {**peer, "endpoint": None}


def busy_workers(known: Status) -> host_facts.Busy:
    """Begins to measure how busy each worker is."""
    workers = {
        f"{each['service']} {each['number']}": each["pid"]
        for each in known["services"]
        if each["service"] == "device-service" and each["pid"]
    }
    return host_facts.Busy(workers)
