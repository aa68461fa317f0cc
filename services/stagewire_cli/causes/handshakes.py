"""Judges handshakes: whose keys differ, whose clock, and where an answer is missing."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from stagewire.config import decode_key, encode_key, public_key
from stagewire.config.peer_names import operand
from stagewire_cli.causes.here import lets_answers_in, port_blocked
from stagewire_cli.causes.place import behind, carrier
from stagewire_cli.evidence import Evidence, Finding, seen
from stagewire_cli.former import Former
from stagewire_cli.probe import Refusal
from stagewire_cli.ruleset import CERTAIN

CLOCK: Final = 1_767_225_600
"""2026 in unix s: a clock before it has never been set."""
_FULL_KEY: Final = 44
_FEW_HOPS: Final = 32
"""Hops below which a packet may not come through the whole Internet."""
_AHEAD: Final = 60
"""s by which the last handshake may lie in the future, as clocks are put right."""
CONTESTED: Final = 2
"""Changes to and fro between two places that make two devices likely."""


def contested(e: Evidence) -> Iterator[Finding]:
    """Judges whether two devices have one key."""
    if (found := e.last("endpoint_contested")) and found["count"] >= CONTESTED:
        yield Finding(
            "two_devices",
            f"its handshakes come from two places in turn, {e.peer['endpoint']} and {found['example']['address']}",
            "give each device a key pair of its own: two have this one",
            seen(found),
        )


def keys(e: Evidence) -> Iterator[Finding]:
    """Judges handshakes that one end refuses."""
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
    if e.now < CLOCK or (e.shaken or 0.0) < -_AHEAD:
        yield Finding(
            "clock_here",
            f"this host's clock stands at {time.strftime('%Y-%m-%d %H:%M', time.gmtime(e.now))} UTC, which is too early: "
            "peers refuse handshakes that are older than earlier ones",
            "set this host's clock: `timedatectl` tells whether it is kept right",
        )
    if found := e.last("low_order_key", "own_key", "no_key"):
        yield Finding(found["reason"], found["meaning"], found["mend"], seen(found))
    place = e.peer["endpoint"] or "-"
    if found := e.stranger("bad_mac1", place):
        yield _their_key_for_us(e, found)
    if found := e.stranger("unknown_peer", place):
        yield _our_key_for_them(e, found)


def _their_key_for_us(e: Evidence, found: dict[str, Any]) -> Finding:
    return Finding(
        "their_key_for_us",
        f"the sender at {found['example']['address']} has another public key for this gateway than its own",
        f"put this gateway's public key into the peer's configuration: {e.ours}",
        seen(found),
    )


def _our_key_for_them(e: Evidence, found: dict[str, Any]) -> Finding:
    theirs, at = found["public_key"], found["example"]["address"]
    if theirs == e.ours:
        return Finding(
            "our_own_key",
            f"the sender at {at} uses this gateway's own key pair",
            "give the device there a key pair of its own: two have this gateway's",
            seen(found),
        )
    if theirs == _public_of(e.peer["public_key"]):
        return Finding(
            "private_key_here",
            "the PublicKey that this peer has here is the peer's private key",
            f"put the peer's public key here: {theirs}; that private key has been shown, so better make a new pair",
            seen(found),
        )
    if (former := e.former.get(theirs)) is not None:
        return former_key(former, theirs, at, seen(found))
    return Finding(
        "our_key_for_them",
        f"the sender at {at} has the public key {theirs[:10]}…, which no peer here has",
        f"if that is this peer, put its public key here: {theirs}",
        seen(found),
    )


def _public_of(key: str) -> str:
    """Returns the public key that belongs to a key if that is a private one."""
    try:
        return encode_key(public_key(decode_key(key)))
    except ValueError:  # no key at all
        return ""


def former_key(former: Former, public_key: str, at: str, said: str) -> Finding:
    """Tells of a device that still uses a key which was replaced or removed here."""
    name, when = former.name or public_key[:10], f" at {former.when}" if former.when else ""
    if former.now:
        return Finding(
            "old_key",
            f"the device at {at} still uses the old key of {name}, which was replaced here{when}",
            f"give the device its new configuration, with the key of {former.now[:10]}…; if that is lost, `stagewire peer "
            "rotate` makes another",
            said,
        )
    return Finding(
        "old_key",
        f"the device at {at} still uses the key of {name}, which was removed here{when}",
        "give the device the new configuration of its peer here, or switch its old tunnel off",
        said,
    )


def removed(former: Former, key: str) -> Finding:
    """Tells of a peer that was removed here, or got another key, and from which nothing comes."""
    name, when = former.name or key[:10], f" at {former.when}" if former.when else ""
    if former.now:
        return Finding(
            "old_key",
            f"that key of {name} was replaced here{when}",
            f"ask about {former.now[:10]}…, the key that {name} has now",
        )
    whole = f" --public-key {key}" if len(key) == _FULL_KEY else ""
    return Finding(
        "removed",
        f"{name} was removed here{when}, so this gateway refuses it",
        f"if it is to come back: `stagewire peer add {operand('NAME', former.name)}{whole}`"
        f"{'' if whole else ', which makes another key for it'}",
    )


def answers(e: Evidence) -> Iterator[Finding]:
    """Judges answers of ours that lead to no session."""
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
        found_here = [(each.text, each.mend) for each in e.out_blocked] + [
            (each.text, each.command) for each in e.mark_rules
        ]
        what = f": perhaps {found_here[0][0]}" if found_here else ""
        yield Finding(
            "blocked_out",
            f"this host itself refuses datagrams to {blocked['example']['address']}, though it has a route there{what}",
            f"let them out: `{' '.join(found_here[0][1])}`"
            if found_here
            else "look for a rule that drops UDP on its way out in `nft list ruleset`, and at `ip rule`, `ip xfrm policy` "
            "and `tc qdisc`",
            seen(blocked),
        )


def silence(e: Evidence) -> Iterator[Finding]:
    """Judges a peer from which nothing comes."""
    if e.connected:
        return
    peer = e.peer
    # A peer without a place may be any stranger. One whose place is known would most likely call from there.
    if peer["endpoint"] is not None:
        yield _of_known_place(e)
    if found := e.stranger("unknown_peer", e.host):
        yield _our_key_for_them(e, found)
    if found := e.stranger("bad_mac1", e.host):
        yield _their_key_for_us(e, found)
    called = peer["endpoint_set"] is not None
    for block in e.port_blocked:
        if (not block.narrow or block.part == CERTAIN.text) and not (called and lets_answers_in(block)):
            continue
        yield replace(port_blocked(e, block), wrong=False)
    if peer["endpoint"] is None and e.last_seen:
        yield Finding(
            "not_called_since",
            f"it was connected last at {e.last_seen}, it has not called since, and this end doesn't know where it is now",
            "see at the peer that it runs and that UDP passes: it is back with the next packet that it sends; or give it "
            "an Endpoint here",
        )
    elif peer["endpoint"] is None:
        yield Finding(
            "never_called",
            "it has never called, and this end doesn't know where it is",
            f"see at the peer that it runs, that its Endpoint is this gateway's address with port {e.port}, and that UDP "
            "passes; or give it an Endpoint here",
        )


def _of_known_place(e: Evidence) -> Finding:
    peer = e.peer
    if label := carrier(e):
        return behind(e, label)
    if e.path.small:
        return Finding(
            "handshake_lost",
            "packets pass in its last session, but a new handshake got no answer: packets are lost on the way, or the peer "
            "has just changed its keys",
            "ask again in a minute; see at the peer whether a rule drops a part of what comes, and whether it has the key "
            f"{e.ours[:10]}… as a peer",
            seen(e.last("initiation_unanswered")),
        )
    if e.refusal is not None and e.refusal.exceeded:
        return _out_of_hops(e, e.refusal)
    if e.way is not None and e.way.fixed and not e.way.hop_answers:
        hop = e.way.via or e.host
        return Finding(
            "neighbour_fixed",
            f"{hop}, by which this host reaches {peer['endpoint']}, answers nothing, and has a link address that was set by "
            f"hand: {e.way.fixed}",
            f"`ip neigh del {hop} dev {e.way.device}`, and this host asks for the right one",
        )
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
    if refusal.prohibited:
        return Finding(
            "prohibited",
            f"a firewall at {refusal.by} answers that it lets nothing through to {place}",
            f"have the firewall there let UDP to port {port} pass; see that the address is right",
            f"ICMP from {refusal.by}",
        )
    return Finding(
        "unreachable",
        f"the router or host at {refusal.by} answers that no packet gets to {place}: {refusal.text}",
        f"see that the address is right and the peer's host is up; `traceroute {e.host}` shows how far packets come",
        f"ICMP from {refusal.by}",
    )


def _out_of_hops(e: Evidence, refusal: Refusal) -> Finding:
    few = 0 < e.hops < _FEW_HOPS
    name = "net.ipv6.conf.all.hop_limit" if ":" in e.host else "net.ipv4.ip_default_ttl"
    return Finding(
        "out_of_hops",
        f"the router {refusal.by} has thrown our packets to {e.peer['endpoint']} away: they had passed as many routers as "
        f"they may{f', which this host sets to {e.hops}' if few else ''}",
        f"`sysctl -w {name}=64`"
        if few
        else f"see with `traceroute {e.host}` whether routers send packets round in a circle; if not, look for a rule of "
        "this host that sets the TTL (`iptables -t mangle -S`, `nft list ruleset`)",
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
