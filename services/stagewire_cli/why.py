"""Answers why a peer has no traffic: gathers the evidence, tries a handshake and packets, and tells the findings."""

import time
from collections.abc import Callable
from dataclasses import asdict
from ipaddress import ip_address, ip_network
from typing import Any, Final

from stagewire.config import decode_key
from stagewire.config.peer_names import NotFoundError, find, label
from stagewire.control import gateway, query
from stagewire.environment import Environment
from stagewire_cli import diagnosis, host_facts, out_of_use, ping, show
from stagewire_cli.evidence import RECENT, Evidence, Finding, Path, Tried, host_of
from stagewire_cli.failures import Failed, NotUp
from stagewire_cli.probe import Probe

TRY_FOR: Final = 6.5
"""s for a handshake: the protocol may hold it for 5."""
ANSWER_WITHIN: Final = 2.0
"""s from an initiation that has left to its answer."""
COUNTED_WITHIN: Final = 1.2
"""s until status-service knows what a stage has counted."""
_POLL: Final = 0.1
PING_WITHIN: Final = 0.5
SILENT_BYTES: Final = 500
"""Bytes of handshakes and keepalives: less says that no packet has gone this way."""
FORMAT: Final = 1
"""Version of the JSON object."""

Status = dict[str, Any]


def answer(environment: Environment, text: str, *, trying: bool) -> dict[str, Any]:
    """Returns the findings about the peer that `text` names, as the JSON object. Raises Failed."""
    known = status(environment)
    if (gone := out_of_use.meant(environment, text, known["peers"])) is not None:
        return _object(label(**gone.named), gone.named, [gone.finding], tried="")
    peer, target = which(text, known["peers"])
    if peer is None:
        return _of_stranger(text, known)
    evidence = _evidence(environment, known, peer, target)
    if trying and evidence.link_up is not False and not evidence.away:
        with Probe(peer["endpoint"] or "", (known.get("host") or {}).get("mark", 0)) as probe:
            _try(environment, evidence, peer["public_key"])
            evidence.refusal = probe.refusal()
    refused = host_facts.refused_forwards()
    evidence.refuses_forwards = frozenset(each for each in refused if refused[each] > evidence.refused_forwards[each])
    return _object(label(peer["public_key"], peer["name"]), peer, diagnosis.search(evidence), tried=evidence.tried)


def which(text: str, peers: list[Status]) -> tuple[Status | None, str]:
    """Finds the peer by name, key, or address, and the address that was meant behind it, if any.

    None stands for an address that belongs to no peer. Raises Failed for a text that is neither.
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
        return at[0], ""
    behind = [
        (network.prefixlen, key)
        for key, peer in by_key.items()
        for network in map(ip_network, peer["allowed_ips"])
        if address in network
    ]
    return (by_key[max(behind)[1]], str(address)) if behind else (None, "")


def lines(found: dict[str, Any]) -> list[str]:
    """Writes the answer for people: first what to do first."""
    first, *others = found["findings"]
    told = [f"{found['subject']}: {first['mend'] if first['wrong'] else first['text']}"]
    told += [f"  why: {first['text']}"] if first["wrong"] else _hint(first)
    told += [f"  seen: {first['seen']}"] if first["seen"] else []
    for each in others:
        told += [f"also: {each['text']}", f"  do: {each['mend']}"]
        told += [f"  seen: {each['seen']}"] if each["seen"] else []
    return told


def _hint(finding: dict[str, Any]) -> list[str]:
    return [] if finding["mend"] == "nothing" else [f"  do: {finding['mend']}"]


def status(environment: Environment) -> Status:
    """Returns what `stagewire status` knows. Raises Failed without key-service's answer."""
    known = show.gather(environment)
    if known is None:
        raise NotUp(environment.interface)
    if "public_key" not in known:
        raise Failed("; ".join(known["warnings"]) or "key-service does not answer")
    return known


def _of_stranger(text: str, known: Status) -> dict[str, Any]:
    host = str(ip_address(text))
    found = [each for each in known["strangers"] if host_of(each["example"]["address"]) == host]
    findings = [Finding(each["reason"], each["meaning"], each["mend"], diagnosis.seen(each)) for each in found]
    if not findings:
        text = "no peer's endpoint or AllowedIPs have this address, and nothing from it was dropped lately"
        findings = [Finding("unknown", text, "add the address to the AllowedIPs of the peer that should have it")]
    return _object(host, None, findings, tried="")


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
    busy = busy_workers(known)
    firewall, now = host_facts.Firewall(), time.time()
    evidence = Evidence(
        interface=environment.interface,
        peer=peer,
        now=now,
        strangers=known["strangers"],
        away=[away(each) for each in known["services"] if not each["ready"] or each["fault"]],
        link_up=known.get("link_up"),
        others={
            label(other["public_key"], other["name"]): other["allowed_ips"]
            for other in known["peers"]
            if other is not peer
        },
        routes=host_facts.routes([target] if target else peer["allowed_ips"]),
        forwards=host_facts.forwards(),
        masquerades=firewall.masquerades(),
        denied=[
            each for each in firewall.denied(environment.interface) if _concerns(each, peer, known["peers"], target)
        ],
        isolates=firewall.isolates(environment.interface),
        kept=gateway.kept(known["warnings"]),
        strict_source=host_facts.strict_source(environment.interface),
        source_drops=host_facts.source_drops(),
        port=known.get("listen_port") or 0,
        port_blocked=firewall.blocks(known.get("listen_port") or 0),
        tunnel_blocked=firewall.blocks_tunnel(environment.interface),
        own_address=_own(peer, target),
        only_in=peer["rx_bytes"] > SILENT_BYTES >= peer["tx_bytes"],
        refused_forwards=host_facts.refused_forwards(),
        without_session=frozenset(
            label(other["public_key"], other["name"])
            for other in known["peers"]
            if other is not peer and now - (other["last_handshake_unix_s"] or 0) > RECENT
        ),
        target=target,
        ours=known["public_key"] or "(none yet)",
    )
    evidence.busy = busy.shares()
    return evidence


def _own(peer: Status, target: str) -> str:
    text = target or _address_of(peer)
    return text if text and host_facts.is_own(text) else ""


def _address_of(peer: Status) -> str:
    """Returns the peer's own address in the tunnel, if its allowed-IPs tell it."""
    alone = [prefix for prefix in peer["allowed_ips"] if ip_network(prefix).num_addresses == 1]
    return alone[0].partition("/")[0] if alone else ""


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


def away(service: Status) -> str:
    """Describes a service that isn't at work."""
    return f"{service['service']} {service['fault'] or service['state'].lower() + ', not ready'}"


# --- trials -------------------------------------------------------------------------------------------------


def _try(environment: Environment, evidence: Evidence, public_key: str) -> None:
    """Tries a handshake, then packets through the tunnel, and puts what came of it into the evidence."""
    if evidence.peer["endpoint"] is not None:
        begun = query.handshake_now(environment, decode_key(public_key))
        if begun is not None and not begun.error:
            evidence.tried = _await_answer(environment, evidence, public_key)
    before = _of(status(environment)["peers"], public_key) if evidence.connected else None
    if evidence.connected:
        evidence.path = _path(evidence)
    # What the trials have made the stages count belongs to the evidence.
    known = status(environment)
    evidence.peer = _of(known["peers"], public_key) or evidence.peer
    evidence.arrives = before is not None and evidence.peer["rx_bytes"] > before["rx_bytes"] + SILENT_BYTES
    evidence.strangers, evidence.now = known["strangers"], time.time()


def _of(peers: list[Status], public_key: str) -> Status | None:
    return next((peer for peer in peers if peer["public_key"] == public_key), None)


def _await_answer(environment: Environment, evidence: Evidence, public_key: str) -> Tried:
    before, begun, place = evidence.peer, time.monotonic(), evidence.peer["endpoint"]
    deadline, sent = begun + TRY_FOR, False
    refused = _counted(before, "response_not_authentic")
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        known = query.key_service(environment)
        now = next((peer for peer in known.peers if peer.public_key == public_key), None) if known else None
        if now is None:
            continue
        if now.last_handshake_unix_s != before["last_handshake_unix_s"]:
            return "answered"
        if now.endpoint != place:  # it has moved meanwhile
            place, sent, deadline = now.endpoint, False, begun + TRY_FOR
            query.handshake_now(environment, decode_key(public_key))
        elif not sent and now.tx_bytes > before["tx_bytes"]:
            sent, deadline = True, min(deadline, time.monotonic() + ANSWER_WITHIN)
    _until(COUNTED_WITHIN, begun)
    after = _of(status(environment)["peers"], public_key)
    more = after is not None and _counted(after, "response_not_authentic") > refused
    return "refused" if more else "unanswered"


def _until(seconds: float, since: float) -> None:
    time.sleep(max(0.0, since + seconds - time.monotonic()))


def _counted(peer: Status, reason: str) -> int:
    return sum(each["count"] for each in peer["reasons"] if each["reason"] == reason)


def _path(evidence: Evidence) -> Path:
    """Pings the peer's own address in the tunnel, if it is known, with a small packet and with one of the MTU's size."""
    text = evidence.target or _address_of(evidence.peer)
    path = Path(mtu=host_facts.mtu(evidence.interface))
    if not text or not path.mtu:
        return path
    address, passes = ip_address(text), _twice(ip_address(text), evidence.interface)
    try:
        path.small = passes(ping.SMALL)
        if path.small:
            path.large = passes(path.mtu)
            path.fits = path.mtu if path.large else ping.largest(address, evidence.interface, path.mtu, PING_WITHIN)
    except OSError:  # no right to open such a socket
        return Path(mtu=path.mtu)
    return path


def _twice(address: Any, interface: str) -> Callable[[int], bool]:
    """Makes a ping that may fail once."""
    return lambda size: any(ping.answered(address, interface, size, PING_WITHIN) for _ in range(2))
