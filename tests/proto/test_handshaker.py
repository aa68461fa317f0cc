"""Every peer's handshakes: what is stored, answered and sent, and when."""

import random

import pytest
from tests.proto.far import (
    ELSEWHERE,
    INDEX,
    PLACE,
    PSK,
    WALL,
    Far,
    T,
    initiation_sent,
    receive,
    refused,
    setup,
    stamp,
    under_way,
    want,
)
from tests.proto.test_noise import LOW_ORDER

from stagewire.proto.cookie import CookieChecker
from stagewire.proto.endpoint import Endpoint, place_of, without_source
from stagewire.proto.events import Effect, GaveUp, InstallSession, RememberTimestamp, SendHandshake
from stagewire.proto.handshake import Identity, Remote
from stagewire.proto.index import worker_of
from stagewire.proto.messages import BadMessage

# --- as responder ------------------------------------------------------------------------------------------


def test_remember_then_install_then_announce() -> None:
    ours, far, peer = setup()
    remember, install = receive(ours, far.initiation(stamp()), place=ELSEWHERE)
    assert remember == RememberTimestamp(peer.public_key, "initiation", stamp())
    assert isinstance(install, InstallSession)
    assert (install.worker, worker_of(install.index), install.remote_index) == (5, 5, INDEX)
    assert (install.initiator, install.created, install.endpoint) == (False, T, ELSEWHERE)
    (send,) = ours.installed(install.index, T + 0.01)
    assert isinstance(send, SendHandshake)
    assert (send.endpoint, send.initiation, len(send.data)) == (ELSEWHERE, False, 92)
    keys, _ = far.read(send.data)
    assert (keys.send, keys.receive) == (install.keys.receive, install.keys.send)
    assert (peer.rx_bytes, peer.tx_bytes, peer.endpoint) == (148, 92, ELSEWHERE)
    # The session isn't confirmed, so the handshake isn't complete.
    assert peer.last_handshake == 0
    ours.confirmed(peer.public_key, 5, T + 5)
    assert peer.last_handshake == T + 5
    assert ours.installed(install.index, T + 0.02) == []


def test_replays_and_older_ones_are_refused_newer_ones_not() -> None:
    ours, far, _ = setup()
    first, older, newer = far.initiation(stamp(10)), far.initiation(stamp(9)), far.initiation(stamp(11))
    receive(ours, first)
    for now in (T, T + 1, T + 3600):
        refused(ours, first, "initiation_replayed", now)
        refused(ours, older, "initiation_replayed", now)
    refused(ours, far.initiation(stamp(10)), "initiation_replayed", T + 1)
    assert receive(ours, newer, T + 1)


def test_any_timestamp_that_grows_will_do() -> None:
    ours, far, _ = setup()
    odd = [bytes(11) + b"\1", stamp()[:8] + b"\xff" * 4, b"\xff" * 12]
    for at, one in enumerate(odd):
        assert receive(ours, far.initiation(one), T + at)
    refused(ours, far.initiation(b"\xff" * 12), "initiation_replayed", T + 10)


def test_initiations_of_one_peer_are_20_ms_apart() -> None:
    ours, far, _ = setup()
    receive(ours, far.initiation(stamp()))
    refused(ours, far.initiation(stamp(1)), "initiation_too_soon", T + 0.0199)
    assert receive(ours, far.initiation(stamp(2)), T + 0.0201)
    refused(ours, far.initiation(stamp(3)), "initiation_too_soon", T + 0.04)
    # What was refused isn't remembered, so nobody is locked out by it.
    assert receive(ours, far.initiation(stamp(3)), T + 0.0402)


def test_strangers_are_refused() -> None:
    ours, far, _ = setup()
    stranger = Far(ours.identity, seed=10)
    refused(ours, stranger.initiation(stamp()), "unknown_peer")
    forger = Far(ours.identity, seed=11)
    forger.identity = Identity(forger.identity.private_key, far.identity.public_key)
    refused(ours, forger.initiation(stamp()), "initiation_not_authentic")
    ours.remove_peer(far.identity.public_key)
    refused(ours, far.initiation(stamp()), "unknown_peer")


def test_our_own_key_as_a_peer_is_refused() -> None:
    ours, _, _ = setup()
    ours.add_peer(ours.identity.public_key, PSK, 5).endpoint = PLACE
    mirror = Far(ours.identity)
    mirror.identity = ours.identity
    mirror.remote = Remote.of(ours.identity, ours.identity.public_key)
    refused(ours, mirror.initiation(stamp()), "own_key")
    assert ours.want(ours.identity.public_key, T, WALL) == []
    assert ours.failures == {"own_key": 1}


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_low_order_keys_are_never_answered_nor_sent_to(point: bytes) -> None:
    ours, far, peer = setup()
    good = far.initiation(stamp())
    refused(ours, good[:8] + point + good[40:], "low_order_key")
    ours.add_peer(point, PSK, 5).endpoint = PLACE
    assert ours.want(point, T, WALL) == []
    assert ours.failures == {"low_order_key": 1}
    far.identity = Identity(far.identity.private_key, point)
    refused(ours, far.initiation(stamp()), "low_order_key")
    sent = initiation_sent(want(ours, peer))
    answer = Far(ours.identity).respond(sent)
    refused(ours, answer[:12] + point + answer[44:], "low_order_key")
    assert receive(ours, answer)


def test_without_its_worker_an_initiation_is_as_if_it_never_came() -> None:
    ours, far, peer = setup()
    ours.worker_down(5)
    message = far.initiation(stamp())
    refused(ours, message, "no_worker")
    ours.worker_up(5, T, WALL)
    assert receive(ours, message)
    assert peer.latest_initiation == stamp()


def test_a_response_is_held_for_a_second() -> None:
    ours, far, peer = setup()
    _, install = receive(ours, far.initiation(stamp()))
    assert isinstance(install, InstallSession)
    assert ours.next_deadline() == T + 1
    assert ours.act(T + 1, WALL) == []
    assert ours.failures == {"install_timed_out": 1}
    assert ours.installed(install.index, T + 1.1) == []
    assert len(ours._indices._used) == 0
    assert ours.next_deadline() is None
    assert peer.tx_bytes == 0


def test_a_response_is_held_no_longer_though_a_retransmission_falls_in_between() -> None:
    ours, far, peer = setup()
    want(ours, peer, T - 4.5)
    receive(ours, far.initiation(stamp()))
    assert ours.next_deadline() == T + 0.6
    ours.act(T + 0.6, WALL)
    assert ours.next_deadline() == T + 1


def test_a_refused_session_is_not_announced() -> None:
    ours, far, _ = setup()
    _, install = receive(ours, far.initiation(stamp()))
    assert isinstance(install, InstallSession)
    ours.refused(install.index)
    assert ours.installed(install.index, T) == []
    assert ours.failures == {"session_refused": 1}


def test_answering_does_not_end_our_own_initiation_but_confirmation_does() -> None:
    ours, far, peer = setup()
    mine = initiation_sent(want(ours, peer))
    _, install = receive(ours, far.initiation(stamp()))
    assert isinstance(install, InstallSession)
    answer = Far(ours.identity).respond(mine)
    assert under_way(ours) == [peer.public_key]
    ours.confirmed(peer.public_key, 5, T)
    assert under_way(ours) == []
    refused(ours, answer, "unknown_response")
    assert ours.act(T + 100, WALL) == []


def test_a_response_that_the_peer_never_confirms_counts_for_it() -> None:
    """Its pre-shared key is another, or our answer doesn't reach it."""
    ours, far, peer = setup()
    for number in range(3):
        _, install = receive(ours, far.initiation(stamp(number)), T + 5 * number, place=ELSEWHERE)
        assert isinstance(install, InstallSession)
        ours.installed(install.index, T + 5 * number)
    assert ours.failures == {"response_unconfirmed": 2}
    [incident] = ours.failures.take_changed()
    assert (incident.public_key, incident.place, incident.count) == (peer.public_key, place_of(ELSEWHERE), 2)
    ours.confirmed(peer.public_key, 5, T)
    receive(ours, far.initiation(stamp(9)), T + 100, ELSEWHERE)
    assert ours.failures == {"response_unconfirmed": 2}


def test_two_devices_with_one_key_count_and_a_peer_that_moves_does_not() -> None:
    ours, far, peer = setup()
    there, back = Endpoint(bytes([198, 51, 100, 1]), 1).pack(), Endpoint(bytes([198, 51, 100, 2]), 2).pack()
    for number, place in enumerate((there, back, back, Endpoint(bytes([198, 51, 100, 3]), 3).pack())):
        receive(ours, far.initiation(stamp(number)), T + number, place)
    assert "endpoint_contested" not in ours.failures
    for number, place in enumerate((there, back, there, back), start=10):
        receive(ours, far.initiation(stamp(number)), T + number, place)
    assert ours.failures["endpoint_contested"] == 2
    assert ours.failures.of(peer.public_key)["endpoint_contested"] == 2


def test_two_devices_whose_packets_come_in_turn_count_and_one_that_moves_does_not() -> None:
    ours, _, peer = setup()
    here, there = (Endpoint(bytes([198, 51, 100, 1]), port).pack() for port in (1, 2))
    ours.endpoint_moved(peer.public_key, here, T)
    for number in range(1, 4):  # from a wireless to a mobile network and back
        ours.endpoint_moved(peer.public_key, (here, there)[number % 2], T + 60 * number)
    assert "endpoint_contested" not in ours.failures
    for number in range(1, 4):
        ours.endpoint_moved(peer.public_key, (there, here)[number % 2], T + 200 + number)
    assert ours.failures.of(peer.public_key)["endpoint_contested"] == 2


def test_an_initiation_without_an_answer_counts_for_the_peer_with_its_place() -> None:
    ours, _, peer = setup()
    want(ours, peer)
    ours.act(T + 6, WALL)
    assert ours.failures == {"initiation_unanswered": 1}
    [incident] = ours.failures.take_changed()
    assert (incident.public_key, incident.place) == (peer.public_key, place_of(PLACE))


def test_a_refusal_tells_whose_message_it_was() -> None:
    ours, far, peer = setup()
    stranger = Far(ours.identity, seed=10)
    with pytest.raises(BadMessage) as caught:
        receive(ours, stranger.initiation(stamp()))
    assert (caught.value.reason, caught.value.public_key) == ("unknown_peer", stranger.identity.public_key)
    other = Far(ours.identity, seed=11)
    other.identity = Identity(other.identity.private_key, far.identity.public_key)
    with pytest.raises(BadMessage) as caught:
        receive(ours, other.initiation(stamp()))
    assert (caught.value.reason, caught.value.public_key) == ("initiation_not_authentic", peer.public_key)


# --- as initiator ------------------------------------------------------------------------------------------


def test_a_response_yields_the_session() -> None:
    ours, far, peer = setup()
    sent = initiation_sent(want(ours, peer))
    (install,) = receive(ours, far.respond(sent), T + 0.1, ELSEWHERE)
    assert isinstance(install, InstallSession)
    assert (install.worker, worker_of(install.index), install.remote_index) == (5, 5, INDEX)
    assert (install.initiator, install.created, install.endpoint) == (True, T + 0.1, ELSEWHERE)
    assert (install.keys.send, install.keys.receive) == (far.keys.receive, far.keys.send)
    assert ours.installed(install.index, T + 0.1) == []
    assert peer.last_handshake == T + 0.1
    assert (peer.rx_bytes, peer.tx_bytes, peer.endpoint) == (92, 148, ELSEWHERE)
    assert ours.act(T + 1000, WALL) == []


def test_only_the_last_initiation_is_answered_and_only_once() -> None:
    ours, far, peer = setup()
    first = initiation_sent(want(ours, peer))
    second = initiation_sent(want(ours, peer, T + 5))
    late, answer = far.respond(first), far.respond(second, index=INDEX + 256)
    assert first[4:8] != second[4:8]
    refused(ours, late, "unknown_response")
    crossed = late[:8] + second[4:8] + late[12:]
    refused(ours, crossed, "response_not_authentic")
    assert receive(ours, answer)
    refused(ours, answer, "unknown_response")


def test_a_response_names_the_initiation_it_answers() -> None:
    """The header isn't part of what is authenticated: an answer must not be led to the index of another session."""
    ours, far, peer = setup()
    assert receive(ours, far.respond(initiation_sent(want(ours, peer))))
    (standing,) = ours._owner_of_index
    answer = far.respond(initiation_sent(want(ours, peer, T + 10)), index=INDEX + 256)
    led_astray = answer[:8] + standing.to_bytes(4, "little") + answer[12:]
    refused(ours, led_astray, "unknown_response", T + 10)
    assert receive(ours, answer, T + 10)


def test_a_retransmission_waits_if_we_have_just_answered() -> None:
    ours, far, peer = setup()
    initiation_sent(want(ours, peer))
    _, install = receive(ours, far.initiation(stamp()), T + 3)
    assert isinstance(install, InstallSession)
    ours.installed(install.index, T + 3)
    assert ours.act(T + 5.1, WALL) == []
    assert ours.next_deadline() == T + 10.2
    initiation_sent(ours.act(T + 10.2, WALL + 10**10))


def test_initiations_are_5_seconds_apart_whoever_asks() -> None:
    ours, _, peer = setup()
    sent = [at for at in range(200) if want(ours, peer, T + at / 10)]
    assert sent == [0, 50, 100, 150]
    ours.want(b"?" * 32, T, WALL)
    peer.endpoint = None
    assert want(ours, peer, T + 100) == []
    assert ours.failures == {"no_endpoint": 1}


def test_a_retransmission_drops_the_choice_of_our_own_address() -> None:
    ours, _, peer = setup()
    initiation_sent(want(ours, peer))
    assert peer.endpoint == PLACE
    initiation_sent(ours.act(T + 5.1, WALL))
    assert peer.endpoint == without_source(PLACE)


def test_giving_up_frees_everything() -> None:
    ours, _, peer = setup()
    initiation_sent(want(ours, peer))
    effects: list[Effect] = []
    while (when := ours.next_deadline()) is not None:
        effects += ours.act(when, WALL + int((when - T) * 1e9))
    assert effects[-1] == GaveUp(peer.public_key)
    assert sum(isinstance(effect, SendHandshake) for effect in effects) == 19
    assert peer.sent is None
    assert len(ours._indices._used) == 0
    assert not ours._owner_of_index


def test_cookie_replies_move_nothing_but_the_cookie() -> None:
    ours, far, peer = setup()
    sent = initiation_sent(want(ours, peer))
    checker = CookieChecker(far.identity.public_key, random.Random(1).randbytes)
    reply = checker.cookie_reply(sent, b"\xc0\0\2\1" + (51820).to_bytes(2), T)
    deadline, before = ours.next_deadline(), (peer.endpoint, peer.rx_bytes)
    for at in (4, 8, 32, 63):
        bad = bytearray(reply)
        bad[at] ^= 1
        refused(ours, bytes(bad), "unknown_cookie_reply" if at == 4 else "bad_cookie_reply")
    assert receive(ours, reply, T, ELSEWHERE) == []
    assert (ours.next_deadline(), (peer.endpoint, peer.rx_bytes)) == (deadline, before)
    refused(ours, reply, "bad_cookie_reply")
    again = initiation_sent(ours.act(T + 5.1, WALL))
    assert checker.mac2_valid(again, b"\xc0\0\2\1" + (51820).to_bytes(2), T + 5.1)
    assert not checker.mac2_valid(again, b"\xc0\0\2\1" + (51821).to_bytes(2), T + 5.1)


# --- pre-shared keys ---------------------------------------------------------------------------------------


def test_a_changed_preshared_key_holds_at_the_next_handshake() -> None:
    ours, far, peer = setup()
    assert receive(ours, far.respond(initiation_sent(want(ours, peer))))
    peer.preshared_key = b"new" + bytes(29)
    sent = initiation_sent(want(ours, peer, T + 10))
    refused(ours, far.respond(sent), "response_not_authentic", T + 10)
    far.remote = Remote.of(far.identity, ours.identity.public_key, peer.preshared_key)
    assert receive(ours, far.respond(sent), T + 10)
