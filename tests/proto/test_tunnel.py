"""One peer in its home worker: authentic, new and confirmed; and what waits when there is no session."""

import pytest
from tests.proto.byhand import (
    AWAY,
    ELSEWHERE,
    INDEX,
    OTHER,
    OURS,
    PEER,
    PLACE,
    T,
    current_index,
    facts,
    install,
    new_session,
    ours,
    receive,
    running,
    theirs,
    tunnel_of,
    v4,
    worker,
)

from stagewire.proto.endpoint import with_limit, without_source
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake
from stagewire.proto.tunnel import Output, TunnelSettings
from stagewire.proto.worker import Worker

# --- inbound: is it authentic, is it new? ------------------------------------------------------------------


def test_a_replay_is_dropped_and_moves_nothing() -> None:
    one = running()
    datagram = theirs(5, v4("10.1.0.5"))
    assert one.inbound([(PLACE, [datagram, datagram])], T).packets == [v4("10.1.0.5")]
    received = tunnel_of(one).rx_bytes
    out = one.inbound([(ELSEWHERE, [datagram])], T)
    assert out == Output()
    assert one.drops == {"replayed": 2}
    assert (tunnel_of(one).endpoint, tunnel_of(one).rx_bytes) == (PLACE, received)


def test_a_forged_counter_moves_neither_window_nor_endpoint() -> None:
    one = running()
    forged = theirs(2**40, v4("10.1.0.5"), key=OURS)
    assert one.inbound([(ELSEWHERE, [forged])], T) == Output()
    assert one.drops == {"transport_not_authentic": 1}
    assert receive(one, v4("10.1.0.5")).packets


def test_counters_at_the_limit_are_refused() -> None:
    one = running()
    limit = 2**64 - 2**13 - 1
    for counter in (limit, limit + 1, 2**64 - 1):
        assert one.inbound([(PLACE, [theirs(counter, v4("10.1.0.5"))])], T) == Output()
    assert one.inbound([(PLACE, [theirs(limit - 1, v4("10.1.0.5"))])], T).packets
    assert one.inbound([(PLACE, [theirs(0, v4("10.1.0.5"))])], T).packets == []


def test_one_bad_packet_does_not_end_its_train() -> None:
    one = running()
    good = [theirs(at, v4("10.1.0.5")) for at in range(3)]
    bad = theirs(9, v4("10.1.0.5"))[:-1] + b"\0"
    out = one.inbound([(PLACE, [good[0], bad, good[1], b"", b"\4\0\0\0", good[2]])], T)
    assert len(out.packets) == 3
    assert one.drops == {"transport_not_authentic": 1, "unknown_receiver": 2}


def test_a_session_too_old_receives_no_more() -> None:
    one = running()
    assert receive(one, v4("10.1.0.5"), now=T + 179.9).packets
    assert receive(one, v4("10.1.0.5"), now=T + 180) == Output()
    assert one.drops == {"session_expired": 1}


# --- confirmation ------------------------------------------------------------------------------------------


def test_data_before_confirmation_is_parked_and_goes_with_the_first_packet() -> None:
    one = worker()
    sent = v4("10.9.9.9", "10.1.0.5")
    assert one.outbound([sent], T).events == [WantHandshake(PEER, "no_session")]
    out = install(one, new_session(initiator=False))
    assert (out.runs, out.events) == ([], [])
    assert one.outbound([sent], T).runs == []
    out = receive(one, v4("10.1.0.5"))
    assert out.packets == [v4("10.1.0.5")]
    assert out.events == [SessionConfirmed(PEER, INDEX)]
    assert [(place, len(datagrams)) for place, datagrams in out.runs] == [(PLACE, 2)]


def test_sending_goes_on_under_the_old_session_until_confirmation() -> None:
    one = running()
    install(one, new_session(initiator=False, index=INDEX + 256))
    out = one.outbound([v4("10.9.9.9", "10.1.0.5")], T)
    assert current_index(one) == INDEX
    assert len(out.runs) == 1
    assert one.inbound([(PLACE, [theirs(0, b"", INDEX + 256, key=OURS)])], T).events == []
    assert one.inbound([(PLACE, [theirs(0, b"", INDEX + 256)])], T).events == [SessionConfirmed(PEER, INDEX + 256)]
    assert current_index(one) == INDEX + 256


def test_as_initiator_a_keepalive_confirms_if_nothing_waits() -> None:
    one = worker()
    out = install(one, new_session())
    ((place, (datagram,)),) = out.runs
    assert (place, len(datagram), ours(datagram)) == (PLACE, 32, b"")


def test_an_index_in_use_or_a_peer_elsewhere_is_refused() -> None:
    one = running()
    assert one.install(OTHER, new_session(), PLACE, T) is None
    assert one.install(AWAY, new_session(index=INDEX + 256), PLACE, T) is None
    assert one.install(b"?" * 32, new_session(index=INDEX + 256), PLACE, T) is None
    assert len(one.sessions()) == 1


def test_an_ended_session_is_found_no_more() -> None:
    one = running()
    install(one, new_session(index=INDEX + 256))
    out = install(one, new_session(index=INDEX + 512))
    assert out.events == [SessionsEnded((INDEX,))]
    assert one.inbound([(PLACE, [theirs(0, v4("10.1.0.5"))])], T) == Output()
    assert one.inbound([(PLACE, [theirs(0, v4("10.1.0.5"), INDEX + 256)])], T).packets


# --- outbound ----------------------------------------------------------------------------------------------


def test_staging_holds_128_and_drops_the_oldest() -> None:
    one = worker()
    packets = [v4("10.9.9.9", "10.1.0.5", size=28 + at) for at in range(200)]
    one.outbound(packets[:100], T)
    one.outbound(packets[100:], T)
    assert one.drops == {"staging_full": 72}
    out = install(one, new_session())
    ((_, datagrams),) = out.runs
    assert [ours(datagram)[: 28 + at] for at, datagram in enumerate(datagrams, 72)] == packets[72:]


def test_a_handshake_is_wanted_at_most_once_a_second() -> None:
    one = worker()
    sent = v4("10.9.9.9", "10.1.0.5")
    wanted = [bool(one.outbound([sent], T + at / 10).events) for at in range(21)]
    assert [at for at, want in enumerate(wanted) if want] == [0, 10, 20]


def test_a_new_key_service_is_asked_at_once_for_what_the_old_was() -> None:
    one = worker()
    one.outbound([v4("10.9.9.9", "10.1.0.5")], T)
    assert one.want_again(T + 0.1).events == [WantHandshake(PEER, "no_session")]
    install(one, new_session())
    assert one.want_again(T + 0.2).events == []


def test_a_new_key_service_is_asked_again_for_a_rekey_by_the_next_packet() -> None:
    one = running()
    assert receive(one, b"", now=T + 166).events == [WantHandshake(PEER, "rekey")]
    assert receive(one, b"", now=T + 170).events == []
    one.want_again(T + 171)
    assert receive(one, b"", now=T + 171).events == [WantHandshake(PEER, "rekey")]


@pytest.mark.parametrize(("size", "padded"), [(1299, 1300), (1300, 1300), (1290, 1296), (100, 112)])
def test_padding_stays_within_the_mtu(size: int, padded: int) -> None:
    one = Worker(lambda: 0.1)
    one.settings = TunnelSettings(mtu=1300)
    one.set_peer(facts(PEER, "10.1.0.0/16"), T)
    install(one, new_session())
    out = one.outbound([v4("10.9.9.9", "10.1.0.5", size=size)], T)
    assert len(ours(out.runs[0][1][0])) == padded


def test_what_counters_are_left_for_goes_and_the_rest_waits() -> None:
    one = worker()
    session = new_session()
    install(one, session)
    session.send_counter = 2**64 - 2**13 - 1 - 2
    out = one.outbound([v4("10.9.9.9", "10.1.0.5")] * 3, T)
    assert len(out.runs[0][1]) == 2
    assert len(tunnel_of(one).staged) == 1
    assert out.events == [WantHandshake(PEER, "rekey")]
    out = one.outbound([v4("10.9.9.9", "10.1.0.5")], T + 1)
    assert out.runs == []
    assert out.events == [WantHandshake(PEER, "no_session")]


def test_bytes_are_those_of_the_datagrams() -> None:
    one = running()
    one.outbound([v4("10.9.9.9", "10.1.0.5", size=61)], T)
    receive(one, v4("10.1.0.5"), b"")
    tunnel = tunnel_of(one)
    assert tunnel.tx_bytes == 32 + 32 + 64
    assert tunnel.rx_bytes == 32 + 60 + 32


# --- time --------------------------------------------------------------------------------------------------


def test_silence_drops_the_choice_of_our_own_address() -> None:
    one = running()
    one.outbound([v4("10.9.9.9", "10.1.0.5")], T)
    assert one.next_deadline() == T + 15.1
    out = one.act(T + 15.1)
    assert out.events == [EndpointMoved(PEER, without_source(PLACE)), WantHandshake(PEER, "no_answer")]


def test_giving_up_drops_what_waits() -> None:
    one = worker()
    one.outbound([v4("10.9.9.9", "10.1.0.5")] * 3, T)
    one.handshake_gave_up(PEER, T + 100)
    assert one.drops == {"handshake_gave_up": 3}
    out = install(one, new_session())
    assert [len(datagram) for datagram in out.runs[0][1]] == [32]


def test_handshakes_stand_for_keepalives() -> None:
    one = running()
    receive(one, v4("10.1.0.5"))
    one.handshake_sent(PEER, T + 1)
    assert one.act(T + 10) == Output()
    receive(one, v4("10.1.0.5"), now=T + 10)
    install(one, new_session(initiator=False, index=INDEX + 256), T + 11)  # our response is on its way
    assert one.act(T + 20) == Output()


@pytest.mark.parametrize("initiator", [True, False])
def test_a_handshake_of_theirs_is_an_answer(initiator: bool) -> None:
    one = running()
    one.outbound([v4("10.9.9.9", "10.1.0.5")], T)
    install(one, new_session(initiator=initiator, index=INDEX + 256), T + 1)
    assert one.act(T + 16) == Output()


# --- a tunnel in the tunnel --------------------------------------------------------------------------------


def carrying(hops: int) -> bytes:
    """A packet for the peer with another tunnel's datagram in it."""
    packet = bytearray(v4("10.9.9.9", "10.1.0.5"))
    packet[8:10] = hops, 17
    packet[28:32] = b"\4\0\0\0"
    return bytes(packet)


def test_a_tunnels_datagram_leaves_with_fewer_hops_and_what_went_too_deep_does_not_leave() -> None:
    one, lone = running(), carrying(64)
    place = with_limit(PLACE, 56)
    assert [where for where, _ in one.outbound([lone], T).runs] == [place]
    out = one.outbound([v4("10.9.9.9", "10.1.0.5"), lone, carrying(8), lone], T)
    assert [(where, len(run)) for where, run in out.runs] == [(PLACE, 1), (place, 2)]
    assert one.drops == {"nested_too_deep": 1}
    assert tunnel_of(one).endpoint == PLACE


def test_a_tunnels_datagram_that_waited_for_a_session_is_no_other() -> None:
    one = worker()
    assert one.outbound([carrying(64)], T).runs == []
    assert [where for where, _ in install(one, new_session(initiator=True)).runs] == [with_limit(PLACE, 56)]
