"""Names every counter, its kind, its meaning, and what to do about a drop or a failure.

Every dropped packet and every failed handshake adds to one counter. `stagewire status --json` shows counters by service.
status-service adds up a stage's processes, so a restart of the stage loses nothing.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    """Names what a counter counts."""

    TRAFFIC = "traffic"
    DROP = "drop"
    """Packets, datagrams or messages that were thrown away."""
    FAILURE = "failure"
    """Handshakes, look-ups or orders that came to nothing, and are tried again."""
    REPAIR = "repair"
    """Changes to the host by other programs, which host-service has undone."""


TRAFFIC, DROP, FAILURE, REPAIR = Kind


class Counted(NamedTuple):
    """Describes one counter. `mend` tells the operator what to do about a drop or a failure.

    `no_example` says why there is no address and no size to show of it; empty where there is an example.
    """

    kind: Kind
    meaning: str
    mend: str = ""
    no_example: str = ""


_INSIDE: Final = "it is between two stages: no peer and no address has sent it"
_NO_PLACE: Final = "the address is what is missing, and nothing was sent"


COUNTERS: Final = {
    # tun-service
    "tun_packets_in": Counted(TRAFFIC, "packets from the OS"),
    "tun_packets_out": Counted(TRAFFIC, "packets handed to the OS"),
    "no_peer": Counted(
        DROP,
        "no peer's allowed-IPs contain the destination; the sender got an ICMP unreachable",
        "add the destination to the AllowedIPs of the peer that has it, or stop sending there",
    ),
    "for_many_unrouted": Counted(
        TRAFFIC,
        "multicast and broadcast packets that no peer's allowed-IPs contain, such as a host's router solicitations",
    ),
    "outbound_malformed": Counted(
        DROP,
        "a packet from the OS was neither IPv4 nor IPv6, or was a malformed super-packet",
        "report it: the kernel hands over a packet that Stagewire can't read",
    ),
    "outbound_too_large": Counted(
        DROP,
        "a packet from the OS had more than 65,475 bytes, so no datagram can carry it",
        "lower the interface's MTU",
    ),
    "worker_full": Counted(
        DROP, "the worker was away, or its pipe stayed full", "if it goes on, add workers with `stagewire scale`"
    ),
    "tun_write_failed": Counted(
        DROP, "the OS refused a packet", "set the interface up, and look for the reason in the kernel's log"
    ),
    # device-service
    "no_endpoint": Counted(
        DROP,
        "the peer's endpoint isn't known yet; the sender got an ICMP unreachable",
        "give the peer an Endpoint, or let the peer begin",
    ),
    "peer_elsewhere": Counted(
        DROP,
        "another worker is the peer's home worker, as the peer was just moving",
        "nothing, unless it goes on: then report it",
    ),
    "staging_full": Counted(
        DROP,
        "more than 128 packets of a peer waited for a handshake; the oldest was dropped",
        "see why the peer's handshake doesn't complete",
    ),
    "staging_room_full": Counted(
        DROP,
        "packets of all peers that waited for handshakes took more than 32 MiB of a worker",
        "see why so many peers' handshakes don't complete",
    ),
    "handshake_gave_up": Counted(
        DROP,
        "a packet waited for a handshake, but the peer never answered",
        "see why the peer's handshake doesn't complete",
    ),
    "key_wiped_staged": Counted(
        DROP,
        "a packet still waited when the peer's old keys were wiped",
        "see why the peer's handshake doesn't complete",
    ),
    "counter_exhausted": Counted(
        DROP,
        "the session's counter reached its limit before the next session was ready",
        "nothing: the next session is on its way",
    ),
    "nested_too_deep": Counted(
        DROP,
        "a packet was in 8 tunnels already, most likely in a loop of tunnels",
        "look for a loop of tunnels: the endpoint of one lies in another",
    ),
    "unknown_receiver": Counted(
        DROP,
        "a transport message named no live session",
        "nothing after a restart of either end; otherwise an attacker sends packets of old sessions",
    ),
    "session_expired": Counted(
        DROP,
        "a transport message named a session older than 180 s",
        "see why no newer session came about: one end's handshakes don't reach the other",
    ),
    "transport_not_authentic": Counted(
        DROP,
        "a transport message failed authentication under its session's key",
        "look for two devices with the same private key; a damaged or forged packet counts too",
    ),
    "replayed": Counted(
        DROP,
        "a counter was seen before, too old, or beyond the limit",
        "look for a network that delivers packets twice or very late; an attacker may replay packets",
    ),
    "inner_malformed": Counted(
        DROP, "a decrypted packet was no whole IP packet", "look at the peer's software: it sends what is no IP packet"
    ),
    "inner_source_not_allowed": Counted(
        DROP,
        "the source of a decrypted packet isn't among the peer's allowed-IPs",
        "add the source to the peer's AllowedIPs here, or have the peer use its own tunnel address",
    ),
    "inner_source_of_another_worker": Counted(
        DROP,
        "a worker delivered a packet whose source belongs to no peer at home there",
        "a few while peers or prefixes move are harmless; else report it, with the log: the worker may be in strange hands",
    ),
    "rate_exceeded": Counted(
        DROP,
        "a packet came faster than the peer's Rate allows, and found its queue full",
        "nothing: the rate does what it should; `stagewire peer set --rate` changes it",
    ),
    "quota_reached": Counted(
        DROP,
        "the peer has used up its Quota of this month",
        "wait for the next month (UTC), or raise the quota with `stagewire peer set --quota`",
    ),
    "held_back": Counted(
        DROP,
        "the host's narrower rules for the peer are not set, so nothing of it may pass",
        "mend what keeps nft from setting them, which `stagewire status` names; then they hold within seconds",
    ),
    "grant_malformed": Counted(
        DROP,
        "a worker could not read the session keys that it was sent",
        "run `stagewire restart all`: two versions may be side by side",
        _INSIDE,
    ),
    "conn_full": Counted(
        DROP, "conn-service was away, and its pipe was full", "if it goes on, see whether the machine is overloaded"
    ),
    "tun_full": Counted(
        DROP, "tun-service was away, and its pipe was full", "if it goes on, see whether the machine is overloaded"
    ),
    # conn-service
    "datagrams_in": Counted(TRAFFIC, "datagrams received"),
    "datagrams_out": Counted(TRAFFIC, "datagrams sent"),
    "runs_in_pieces": Counted(
        TRAFFIC, "runs that the kernel refused whole; they were sent one by one, and so are later runs to that endpoint"
    ),
    "datagram_too_old": Counted(
        DROP,
        "datagrams waited longer than 250 ms in the socket's queue",
        "see whether the machine is overloaded",
    ),
    "too_short": Counted(DROP, "a datagram had less than four bytes", "nothing: it was no WireGuard packet"),
    "bad_type": Counted(
        DROP,
        "a datagram had an unknown type, or reserved bits set",
        "nothing: it was no WireGuard packet, or one of a disguised variant such as AmneziaWG",
    ),
    "bad_length": Counted(
        DROP, "a datagram's length didn't fit its type", "nothing: it was no WireGuard packet, or a network has cut it"
    ),
    "bad_mac1": Counted(
        DROP,
        "the sender of a handshake message doesn't know our public key",
        "if a peer sends from there, put this interface's public key into that peer's configuration",
    ),
    "cookie_demanded": Counted(
        DROP,
        "under load, a handshake message was answered by a cookie; its sender tries again with the cookie",
        "nothing, unless no flood is under way: then see whether the machine is overloaded",
    ),
    "source_rate_exceeded": Counted(
        DROP,
        "under load, one address sent more than 20 handshake messages a second with its cookie",
        "block the address, if no peer is there",
    ),
    "handshake_overflow": Counted(
        DROP,
        "more came for the handshakes' own sockets than conn-service had time for",
        "nothing, unless no flood is under way: then see whether the machine is overloaded",
        "the kernel has dropped them, and tells their number alone",
    ),
    "handshake_merged": Counted(
        DROP,
        "more than 100 handshake messages a second came merged with transport messages",
        "nothing: it is part of a flood",
    ),
    "handshake_repeated": Counted(
        DROP, "an initiation came a second time, byte for byte", "nothing: a network or an attacker has repeated it"
    ),
    "unknown_worker": Counted(
        DROP,
        "a transport message named a worker that doesn't exist",
        "nothing: the packet was forged, or belongs to a session from before a smaller `stagewire scale`",
    ),
    "key_full": Counted(
        DROP,
        "more handshake messages waited for key-service than the queue can hold",
        "nothing, unless no flood is under way: then see whether key-service works",
    ),
    "send_failed": Counted(
        DROP,
        "the network refused a datagram, or had no route for it",
        "look at the route to the peer's endpoint, and at a firewall on the way out",
    ),
    "endpoint_in_own_tunnel": Counted(
        DROP,
        "the peer's endpoint lies behind the peer itself, directly or through other peers",
        "take the endpoint's address out of the AllowedIPs of its own peer",
    ),
    # resolver-service
    "look_ups_failed": Counted(
        FAILURE,
        "a peer's host name was not found; resolver-service looks it up again",
        "mend the name in the peer's Endpoint, or the DNS servers",
        _NO_PLACE,
    ),
    # key-service; conn-service counts most answers that no message awaits
    "unknown_peer": Counted(
        DROP,
        "an initiation came from a key that isn't configured",
        "if the sender should be a peer, add its public key; otherwise nothing",
    ),
    "no_key": Counted(DROP, "we have no private key yet", "give the interface a PrivateKey"),
    "own_key": Counted(DROP, "a peer has our own public key", "give this peer its own key pair"),
    "low_order_key": Counted(
        DROP, "a public key was of low order, which yields no secret", "have the peer make a proper key pair"
    ),
    "initiation_not_for_us": Counted(
        DROP, "an initiation failed authentication under our private key", "nothing: it was forged or damaged"
    ),
    "initiation_not_authentic": Counted(
        DROP,
        "the sender of an initiation isn't the peer that it names",
        "nothing: its sender has not the private key of the peer that it names",
    ),
    "initiation_replayed": Counted(
        DROP,
        "an initiation's timestamp was no newer than an earlier one",
        "put the peer's clock right; then remove the peer and add it again",
    ),
    "initiation_too_soon": Counted(
        DROP,
        "an initiation came less than 20 ms after the one before",
        "nothing, unless it goes on: then look for two devices with the same private key",
    ),
    "bad_timestamp": Counted(DROP, "a timestamp was malformed", "look at the peer's software"),
    "unknown_response": Counted(
        DROP,
        "a response answered no initiation of ours, or not the latest",
        "nothing: a late, repeated or forged answer",
    ),
    "response_not_authentic": Counted(
        DROP,
        "a response failed authentication: another sender, or another pre-shared key",
        "give both ends the same PresharedKey, or none",
    ),
    "response_without_timestamp": Counted(
        DROP,
        "a response lacked the timestamp that this peer's configuration asks for",
        "set ResponseTimestamp at both ends or at neither",
    ),
    "response_with_timestamp": Counted(
        DROP,
        "a response had a timestamp that this peer's configuration doesn't ask for",
        "set ResponseTimestamp at both ends or at neither",
    ),
    "response_replayed": Counted(
        DROP,
        "a response's timestamp was no newer than an earlier one",
        "put the peer's clock right; then remove the peer and add it again",
    ),
    "unknown_cookie_reply": Counted(
        DROP, "a cookie reply answered no message of ours", "nothing: a late, repeated or forged answer"
    ),
    "bad_cookie_reply": Counted(
        DROP,
        "a cookie reply failed authentication, or came a second time",
        "nothing: a late, repeated or forged answer",
    ),
    "no_worker": Counted(
        FAILURE, "the peer's home worker was away", "see in `stagewire status` why the worker is away"
    ),
    "session_refused": Counted(
        FAILURE,
        "the peer's home worker refused a session, as it doesn't know the peer",
        "nothing, unless it goes on: then report it",
    ),
    "install_timed_out": Counted(
        FAILURE, "the peer's home worker took too long to install a session", "see whether the machine is overloaded"
    ),
    "initiation_unanswered": Counted(
        FAILURE,
        "a peer didn't answer an initiation within 5 s; it is sent again",
        "see that the endpoint is right, that the peer runs and knows our key, and that UDP passes both ways",
    ),
    "response_unconfirmed": Counted(
        FAILURE,
        "a peer asked for another session and had sent nothing under the one that our last response made",
        "give both ends the same PresharedKey; if they have it, see that UDP passes from here to the peer",
    ),
    "endpoint_contested": Counted(
        FAILURE,
        "a peer's handshakes come from two places in turn, each within 180 s of the other",
        "give each device a key pair of its own: two have this one",
    ),
    "cookie_asked": Counted(
        FAILURE,
        "a peer under load asked for a cookie; the next initiation carries it",
        "nothing, unless it goes on: then the peer is overloaded",
    ),
    "name_not_resolved": Counted(
        FAILURE,
        "the host name in a peer's endpoint was not found; it is asked for again",
        "mend the name in the peer's Endpoint, or the DNS servers",
        _NO_PLACE,
    ),
    "gave_up": Counted(
        FAILURE,
        "a peer answered no initiation for 90 s",
        "see that the endpoint is right, that the peer runs and knows our key, and that UDP passes both ways",
    ),
    "control_full": Counted(
        FAILURE,
        "a stage took no more control messages; it gets a new snapshot",
        "see whether the machine is overloaded",
        _INSIDE,
    ),
    # host-service
    "put_back_link": Counted(REPAIR, "the interface, which another program deleted"),
    "put_back_address": Counted(REPAIR, "addresses that another program removed"),
    "put_back_route": Counted(REPAIR, "routes that another program removed"),
    "put_back_guard": Counted(REPAIR, "guard routes that another program removed"),
    "put_back_rule": Counted(REPAIR, "policy rules that another program removed"),
    "put_back_firewall": Counted(REPAIR, "our nftables table, which another program changed or removed"),
    "put_back_sysctl": Counted(REPAIR, "src_valid_mark, which another program switched off"),
    # host-service sees them, key-service knows the peer
    "access_denied": Counted(
        DROP,
        "the host's access rules, or Isolation, don't let the peer's packets go where they were to go",
        "if the peer may go there: `stagewire peer set PEER --allow ADDRESS`, or take Isolation out of [Interface]",
    ),
    # any
    "train_malformed": Counted(
        DROP,
        "a frame on a pipe was no train",
        "run `stagewire restart all`: two versions may be side by side",
        _INSIDE,
    ),
    "train_of_unknown_version": Counted(
        DROP,
        "a train came from another version of Stagewire",
        "run `stagewire restart all`: two versions are side by side",
        _INSIDE,
    ),
    "train_too_old": Counted(
        DROP,
        "packets waited longer than 250 ms on a pipe",
        "see whether the machine is overloaded; `stagewire scale` adds workers",
    ),
    "control_malformed": Counted(
        DROP,
        "a control message was malformed",
        "run `stagewire restart all`: two versions may be side by side",
        _INSIDE,
    ),
    "control_of_unknown_version": Counted(
        DROP,
        "a control message came from another version of Stagewire",
        "run `stagewire restart all`: two versions are side by side",
        _INSIDE,
    ),
    "control_of_unknown_kind": Counted(
        DROP,
        "a control message was of an unknown kind",
        "run `stagewire restart all`: two versions may be side by side",
        _INSIDE,
    ),
    "control_unexpected": Counted(
        DROP,
        "a stage sent a control message that it may not send",
        "report it, with the log",
        _INSIDE,
    ),
    "speaker_refused": Counted(
        DROP,
        "a process connected or spoke for a stage or a worker whose uid or slot it hasn't got",
        "see in the log which process it was",
        _INSIDE,
    ),
}


def kind_of(name: str) -> Kind:
    """Returns a counter's kind. An unknown name, of another version of Stagewire, counts as a drop, so it is shown."""
    return COUNTERS[name].kind if name in COUNTERS else DROP


def mend_of(name: str) -> str:
    """Returns what to do about a drop or a failure; empty for an unknown name."""
    return COUNTERS[name].mend if name in COUNTERS else ""
