"""A worker by itself: whose packet is it, and may it pass?"""

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from tests.proto.byhand import (
    AWAY,
    ELSEWHERE,
    INDEX,
    OTHER,
    PEER,
    PLACE,
    T,
    facts,
    new_session,
    ours,
    receive,
    running,
    theirs,
    tunnel_of,
    v4,
    v6,
    worker,
)

from stagewire.proto.events import EndpointMoved, SessionsEnded, WantHandshake
from stagewire.proto.index import is_transport, worker_of_datagram
from stagewire.proto.tunnel import Output, TunnelSettings
from stagewire.proto.worker import PeerFacts, Worker

# --- inbound: may it pass? ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "passes"),
    [
        (v4("10.1.0.5"), True),
        (v4("10.1.2.5"), False),  # a more specific prefix of a peer at home here
        (v4("10.1.3.5"), False),  # and of one in another worker
        (v4("10.2.0.5"), False),
        (v4("224.0.0.1"), False),
        (v4("127.0.0.1"), False),
        (v4("255.255.255.255"), False),
        (v6("2001:db8:1::5"), True),
        (v6("2001:db8:1:3::5"), False),
        (v6("2001:db8:2::5"), False),
        (v6("::ffff:10.1.0.5"), False),
        (v6("ff02::1"), False),
        (v6("::1"), False),
    ],
)
def test_source_must_be_the_peers_by_the_longest_prefix_of_all(packet: bytes, passes: bool) -> None:
    one = running()
    assert receive(one, packet).packets == ([packet] if passes else [])
    assert one.drops == ({} if passes else {"inner_source_not_allowed": 1})


def test_an_ipv6_source_is_read_where_it_is() -> None:
    one = running()
    packet = v6("2001:db8:2::5", destination="2001:db8:1::5")
    assert receive(one, packet).packets == []


@pytest.mark.parametrize("version", [v for v in range(16) if v not in (4, 6)])
def test_other_versions_are_malformed(version: int) -> None:
    one = running()
    packet = bytes([version << 4 | 5]) + v4("10.1.0.5")[1:]
    assert receive(one, packet).packets == []
    assert one.drops == {"inner_malformed": 1}


def with_length(length: int, size: int = 64) -> bytes:
    packet = v4("10.1.0.5", size=size)
    return packet[:2] + length.to_bytes(2) + packet[4:]


@pytest.mark.parametrize(
    "packet",
    [
        bytes(16),
        bytes(64),
        b"\x44" + v4("10.1.0.5")[1:],  # a header shorter than a header
        b"\x4f" + with_length(40, 64)[1:],  # a header longer than the packet
        with_length(19),
        with_length(0),
        with_length(65),
        with_length(65535),
        v4("10.1.0.5")[:19],
        v6("2001:db8:1::5")[:39],
        v6("2001:db8:1::5")[:-1],
        v6("2001:db8:1::5", payload=0, after=0) + bytes(16),  # a jumbogram
        b"\x60",
    ],
)
def test_malformed_inner_packets_are_dropped(packet: bytes) -> None:
    one = running()
    assert receive(one, packet).packets == []
    assert one.drops == {"inner_malformed": 1}


@pytest.mark.parametrize("padding", [0, 1, 15, 16, 500])
@pytest.mark.parametrize("packet", [v4("10.1.0.5", size=61), v6("2001:db8:1::5", payload=7)])
def test_packets_are_trimmed_to_their_own_length(packet: bytes, padding: int) -> None:
    """Padding by 16 is usual, none is allowed, more is none of our business."""
    one = running()
    assert receive(one, packet + bytes(padding)).packets == [packet]
    assert not one.drops


def test_a_packet_of_65535_bytes_passes() -> None:
    one = running()
    packet = v4("10.1.0.5", size=65535)
    assert receive(one, packet).packets == [packet]


def test_the_endpoint_moves_although_the_inner_source_is_refused() -> None:
    one = running()
    out = receive(one, v4("10.2.0.1"), place=ELSEWHERE)
    assert out.packets == []
    assert out.events == [EndpointMoved(PEER, ELSEWHERE)]
    assert one.outbound([v4("10.9.9.9", "10.1.0.5")], T).runs[0][0] == ELSEWHERE


def test_a_keepalive_is_no_packet_and_moves_the_endpoint() -> None:
    one = running()
    out = receive(one, b"", place=ELSEWHERE)
    assert (out.packets, out.events, out.runs) == ([], [EndpointMoved(PEER, ELSEWHERE)], [])
    assert not one.drops


# --- inbound: whose is it? ---------------------------------------------------------------------------------


def test_datagrams_too_short_for_a_tag_are_dropped() -> None:
    one = running()
    whole = theirs(0, b"")
    for length in range(32):
        assert one.inbound([(PLACE, [whole[:length]])], T) == Output()
    assert one.inbound([(PLACE, [whole])], T).events == []
    assert sum(one.drops.values()) == 32


@pytest.mark.parametrize("at", range(4))
def test_the_type_is_checked_though_no_tag_protects_it(at: int) -> None:
    one = running()
    datagram = bytearray(theirs(0, v4("10.1.0.5")))
    datagram[at] ^= 1
    assert one.inbound([(PLACE, [bytes(datagram)])], T) == Output()
    assert one.drops == {"unknown_receiver": 1}


def test_trains_of_several_sessions_and_places_are_told_apart() -> None:
    one = running()
    one.install(OTHER, new_session(index=INDEX + 256), ELSEWHERE, T)
    first, second = theirs(0, v4("10.1.0.5")), theirs(0, v4("10.1.2.5"), INDEX + 256)
    out = one.inbound([(PLACE, [first, second, theirs(1, v4("10.1.0.6"))])], T)
    assert out.packets == [v4("10.1.0.5"), v4("10.1.2.5"), v4("10.1.0.6")]
    assert out.events == [EndpointMoved(OTHER, PLACE)]


# --- outbound ----------------------------------------------------------------------------------------------


def test_without_a_peer_the_host_is_told() -> None:
    one = worker()
    out = one.outbound([v4("10.9.9.9", "10.77.0.1"), v6("2001:db8:9::9", "2001:db8:7::1")], T)
    assert (out.runs, out.events) == ([], [])
    first, second = IP(out.packets[0]), IPv6(out.packets[1])
    assert (first.dst, first[ICMP].type, first[ICMP].code) == ("10.9.9.9", 3, 1)
    assert (second.dst, second[ICMPv6DestUnreach].code) == ("2001:db8:9::9", 3)
    assert one.drops == {"no_peer": 2}


def test_without_an_endpoint_the_host_is_told_and_nothing_is_staged() -> None:
    one = Worker(lambda: 0.1)
    one.set_peer(facts(PEER, "10.1.0.0/16", place=None), T)
    out = one.outbound([v4("10.9.9.9", "10.1.0.5")], T)
    assert len(out.packets) == 1
    assert (out.runs, out.events, one.drops) == ([], [], {"no_endpoint": 1})
    assert not tunnel_of(one).staged


def test_what_belongs_elsewhere_or_nowhere_is_counted() -> None:
    one = worker()
    out = one.outbound([v4("10.9.9.9", "10.1.3.5"), b"", b"\x45", bytes(64), v4("10.9.9.9")[:19]], T)
    assert out == Output()
    assert one.drops == {"peer_elsewhere": 1, "outbound_malformed": 4}


# --- configuration -----------------------------------------------------------------------------------------


def test_a_peer_that_leaves_home_loses_its_sessions() -> None:
    one = running()
    out = one.set_peer(facts(PEER, "10.1.0.0/16", home=False), T)
    assert out.events == [SessionsEnded((INDEX,))]
    assert one.outbound([v4("10.9.9.9", "10.1.0.5")], T) == Output()
    assert one.drops == {"peer_elsewhere": 1}
    assert one.inbound([(PLACE, [theirs(0, v4("10.1.0.5"))])], T) == Output()


def test_an_empty_packet_is_sent_if_there_is_a_session() -> None:
    one = worker()
    for public_key in (PEER, AWAY, bytes(32)):
        assert one.send_empty(public_key, T) == Output()
    one = running()
    ((place, (datagram,)),) = one.send_empty(PEER, T).runs
    assert (place, ours(datagram)) == (PLACE, b"")
    assert one.send_empty(PEER, T + 180) == Output()


def test_a_peer_keeps_its_prefixes_wherever_it_is_at_home() -> None:
    one = worker()
    for home in (False, True):
        assert one.set_peer(PeerFacts(PEER, None, home=home, endpoint=PLACE), T) == Output()
    assert one.install(PEER, new_session(), PLACE, T) is not None
    assert receive(one, v4("10.1.0.5")).packets == [v4("10.1.0.5")]
    one.set_peer(PeerFacts(PEER, None, home=False), T)
    one.drops.clear()
    one.outbound([v4("10.9.9.9", "10.1.0.5")], T)
    assert one.drops == {"peer_elsewhere": 1}


def test_a_peer_that_is_changed_keeps_its_sessions_and_its_endpoint() -> None:
    one = running()
    receive(one, b"", place=ELSEWHERE)
    assert one.set_peer(facts(PEER, "10.5.0.0/16"), T) == Output()
    assert receive(one, v4("10.1.0.5"), v4("10.5.0.5"), place=ELSEWHERE).packets == [v4("10.5.0.5")]
    assert one.outbound([v4("10.9.9.9", "10.5.0.5")], T).runs[0][0] == ELSEWHERE


def test_new_settings_hold_for_standing_peers_once_told() -> None:
    one = running()
    one.settings = TunnelSettings(mtu=1300)
    one.set_peer(facts(PEER, "10.1.0.0/16"), T)
    out = one.outbound([v4("10.9.9.9", "10.1.0.5", size=1299)], T)
    assert len(ours(out.runs[0][1][0])) == 1300


def test_a_removed_peer_is_gone() -> None:
    one = running()
    assert one.remove_peer(PEER).events == [SessionsEnded((INDEX,))]
    assert one.remove_peer(PEER) == Output()
    assert one.owners.public_keys() == {OTHER, AWAY}
    assert one.inbound([(PLACE, [theirs(0, v4("10.1.0.5"))])], T) == Output()
    assert one.outbound([v4("10.9.9.9", "10.1.0.5")], T).runs == []
    assert one.next_deadline() is None


def test_switching_persistent_keepalive_on_sends_one_at_once() -> None:
    one = running()
    out = one.set_peer(facts(PEER, "10.1.0.0/16", keepalive=25), T)
    assert [len(datagram) for datagram in out.runs[0][1]] == [32]
    assert one.set_peer(facts(PEER, "10.1.0.0/16", keepalive=25), T) == Output()
    fresh = Worker(lambda: 0.1)
    out = fresh.set_peer(facts(PEER, "10.1.0.0/16", keepalive=25), T)
    assert out.events == [WantHandshake(PEER, "persistent")]


def test_classification_of_datagrams() -> None:
    assert is_transport(theirs(0, b""))
    assert not is_transport(theirs(0, b"")[:31])
    assert not is_transport(b"\4\0\0\1" + bytes(40))
    assert worker_of_datagram(theirs(0, b"", 0x11223305)) == 5


def test_staged_packets_follow_their_prefix_to_its_new_owner() -> None:
    """The former owner's handshake may complete after the operator was told that the prefix has moved."""
    one = worker()
    stays, moves = v4("10.9.9.9", "10.1.0.9"), v4("10.9.9.9", "10.1.0.8")
    one.outbound([stays, moves], T)
    assert len(tunnel_of(one, PEER).staged) == 2
    one.owners.allow(OTHER, [(4, 32, 0x0A010008)])
    one.judge_staged_again(T)
    assert tunnel_of(one, PEER).staged.take() == [stays]
    assert moves in tunnel_of(one, OTHER).staged.take()


def test_a_move_tells_what_the_operator_had_set_before() -> None:
    one = running()
    one.endpoint_found(PEER, PLACE, 7.0)
    moved = [event for event in receive(one, v4("10.1.0.5"), place=AWAY).events if isinstance(event, EndpointMoved)]
    assert [(event.endpoint, event.at) for event in moved] == [(AWAY, 7.0)]
