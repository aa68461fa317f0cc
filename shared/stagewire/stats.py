"""Named counters, and what each of them means.

Every dropped packet and every failed handshake adds to one; `stagewire status --json` shows them by service. Counters
only grow while their process lives; status-service adds the lives up, so what it shows survives a restart of a stage.
"""

from typing import Final

MEANINGS: Final = {
    # tun-service
    "tun_packets_in": "packets taken from the OS",
    "tun_packets_out": "packets handed to the OS",
    "no_peer": "no peer's allowed-IPs cover the destination; the sender got an ICMP unreachable",
    "outbound_malformed": "a packet from the OS that is neither IPv4 nor IPv6, or no super-packet though it says so",
    "outbound_too_large": "a packet from the OS of more than 65,475 bytes, which no datagram can carry",
    "worker_full": "the worker's pipe stayed full, or the worker is away",
    "tun_write_failed": "the OS refused a packet",
    # device-service
    "no_endpoint": "nobody knows where the peer is; the sender got an ICMP unreachable",
    "peer_elsewhere": "the peer is at home in another worker",
    "staging_full": "more than 128 packets waited for a handshake; the oldest went",
    "staging_room_full": "packets of all peers that waited for handshakes took more than 32 MiB of a worker",
    "handshake_gave_up": "packets that waited for a handshake that nobody answered",
    "key_wiped_staged": "packets that waited when the keys were wiped",
    "counter_exhausted": "the session's counter reached its limit before its successor was there",
    "unknown_receiver": "a transport message for no session that lives",
    "session_expired": "a transport message under a session older than 180 s",
    "transport_not_authentic": "a transport message that doesn't open under its session's key",
    "replayed": "a counter seen before, too old, or beyond the limit",
    "inner_malformed": "a decrypted packet that is no whole IP packet",
    "inner_source_not_allowed": "a decrypted packet whose source isn't among the peer's allowed-IPs",
    "grant_malformed": "what came on the line for session keys and is no session",
    "conn_full": "conn-service is away, and more than a pipe full waited",
    "tun_full": "tun-service is away, and more than a pipe full waited",
    # conn-service
    "datagrams_in": "datagrams received",
    "datagrams_out": "datagrams sent",
    "runs_in_pieces": "runs that the kernel didn't send in one call; they went one by one, as do the next to that place",
    "too_short": "a datagram of less than four bytes",
    "bad_type": "a datagram of no known type, or with reserved bits set",
    "bad_length": "a datagram whose length doesn't fit its type",
    "bad_mac1": "a handshake message whose sender doesn't know our public key",
    "cookie_demanded": "under load: answered with a cookie instead",
    "source_rate_exceeded": "more than 20 a second from one address: handshakes under load, cookie replies always",
    "unknown_worker": "a transport message for a worker there is none of",
    "key_full": "more handshake messages waited for key-service than it can take",
    "send_failed": "the network refused a datagram",
    # key-service
    "unknown_peer": "an initiation from a key that isn't configured",
    "no_key": "we have no private key yet",
    "own_key": "a peer with our own key",
    "low_order_key": "a public key that yields no secret",
    "initiation_not_for_us": "an initiation that doesn't open under our private key",
    "initiation_not_authentic": "an initiation by somebody who isn't the peer it names",
    "initiation_replayed": "an initiation no newer than one seen before",
    "initiation_too_soon": "an initiation less than 20 ms after the last",
    "bad_timestamp": "a timestamp that is none",
    "unknown_response": "a response to nothing we sent, or sent again since",
    "response_not_authentic": "a response by somebody else, or with another pre-shared key",
    "response_without_timestamp": "a response without the timestamp that is asked of this peer",
    "response_with_timestamp": "a response with a timestamp that isn't asked of this peer",
    "response_replayed": "a response whose timestamp is no newer than one seen before",
    "unknown_cookie_reply": "a cookie reply to nothing we sent",
    "bad_cookie_reply": "a cookie reply that isn't authentic, or was used already",
    "no_worker": "the peer's home worker is away",
    "session_refused": "the peer's home worker doesn't know it",
    "install_timed_out": "the peer's home worker took too long",
    "gave_up": "handshakes that nobody answered for 90 s",
    "control_full": "a stage that took no more control messages; it gets a new snapshot",
    # any
    "train_malformed": "a frame on a pipe that is no train",
    "train_of_unknown_version": "a frame on a pipe from another version of Stagewire",
    "train_too_old": "packets that waited longer than 250 ms on a pipe",
    "control_malformed": "a control message that is none",
    "control_of_unknown_version": "a control message from another version of Stagewire",
    "control_of_unknown_kind": "a control message of no known kind",
    "control_unexpected": "a control message from a stage that may not say it",
}
