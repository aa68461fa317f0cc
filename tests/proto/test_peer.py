"""A peer as key-service knows it: its places in turn, its stamps, its sessions."""

import pytest
from tests.proto.far import ELSEWHERE, PLACE, PSK

from stagewire.proto import endpoint as places
from stagewire.proto.cookie import MacSealer
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.handshake import Identity
from stagewire.proto.messages import BadMessage, OldStamp
from stagewire.proto.peer import Peer
from stagewire.proto.timers import HandshakeTimers

OURS, THEIRS = (Identity.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
OLD, NEW = b"\1" * 12, b"\2" * 12


def new_peer(public_key: bytes = THEIRS.public_key) -> Peer:
    return Peer(public_key, PSK, 3, False, MacSealer(public_key), HandshakeTimers(lambda: 0.0))


# --- keys --------------------------------------------------------------------------------------------------


def test_the_shared_secret_is_made_once_and_the_psk_is_the_current_one() -> None:
    peer = new_peer()
    first = peer.remote(OURS)
    peer.preshared_key = b"p" * 32
    second = peer.remote(OURS)
    assert first.static_shared is second.static_shared
    assert (first.preshared_key, second.preshared_key) == (PSK, b"p" * 32)


def test_another_key_of_ours_makes_another_secret() -> None:
    peer = new_peer()
    before = peer.remote(OURS).static_shared
    peer.forget_static()
    assert peer.remote(Identity.from_private_bytes(b"o" * 32)).static_shared != before


@pytest.mark.parametrize(
    ("public_key", "identity", "reason"),
    [(THEIRS.public_key, None, "no_key"), (OURS.public_key, OURS, "own_key"), (bytes(32), OURS, "low_order_key")],
)
def test_to_some_keys_nothing_is_sent(public_key: bytes, identity: Identity | None, reason: str) -> None:
    with pytest.raises(BadMessage) as bad:
        new_peer(public_key).remote(identity)
    assert bad.value.reason == reason


def test_a_peer_shows_no_secret() -> None:
    peer = new_peer()
    secret = peer.remote(OURS).static_shared
    assert repr(PSK) not in repr(peer)
    assert repr(secret) not in repr(peer)


# --- places ------------------------------------------------------------------------------------------------


def test_without_candidates_only_the_choice_of_our_address_goes() -> None:
    peer = new_peer()
    peer.try_elsewhere()
    assert peer.endpoint is None
    peer.endpoint = PLACE
    peer.try_elsewhere()
    assert peer.endpoint == places.without_source(PLACE) != PLACE


def test_candidates_are_tried_in_turn_and_the_place_it_was_heard_from_after_them() -> None:
    peer = new_peer()
    peer.candidates = tuple(Endpoint(bytes([192, 0, 2, number]), 51820).pack() for number in (1, 2))
    peer.endpoint = ELSEWHERE
    tried = []
    for _ in range(6):
        peer.try_elsewhere()
        tried.append(peer.endpoint)
    assert tried == [*peer.candidates, ELSEWHERE] * 2


# --- stamps and sessions -----------------------------------------------------------------------------------


def test_only_a_newer_stamp_will_do() -> None:
    peer = new_peer()
    peer.require_newer(NEW, OLD, "replayed")
    with pytest.raises(BadMessage) as same:
        peer.require_newer(OLD, OLD, "replayed")
    assert not isinstance(same.value, OldStamp)
    with pytest.raises(OldStamp) as older:
        peer.require_newer(OLD, NEW, "replayed")
    assert (older.value.reason, older.value.stamp, older.value.latest) == ("replayed", OLD, NEW)


def test_an_initiation_under_way_is_no_session() -> None:
    peer = new_peer()
    assert not peer.has_session(3)
    peer.indices |= {0x100 | 3, 0x200 | 4}
    assert peer.has_session(3)
    assert peer.has_session(4)
    assert not peer.has_session(5)
