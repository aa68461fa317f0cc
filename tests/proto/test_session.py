"""Sessions: counters, padding, limits; and the three slots, with both sides initiating at once."""

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.session import Session, SessionSlots

T = 1000.0
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
KEYS = random.Random(1).randbytes(32), random.Random(2).randbytes(32)


def session(index: int = 1, remote: int = 2, *, initiator: bool = True, created: float = T) -> Session:
    """One end of a session; the other end swaps the indices and the role."""
    send, receive = KEYS if initiator else KEYS[::-1]
    return Session(
        index, remote, ChaCha20Poly1305(send), ChaCha20Poly1305(receive), initiator=initiator, created=created
    )


def opened(datagram: bytes, key: bytes = KEYS[0]) -> bytes:
    """What a transport message carries, padding included, read by hand."""
    return ChaCha20Poly1305(key).decrypt(bytes(4) + datagram[8:16], datagram[16:], None)


# --- sealing -----------------------------------------------------------------------------------------------


def test_a_transport_message_is_laid_out_as_the_paper_says() -> None:
    one = session(remote=0xA0B0C0D0)
    first, second = one.seal([b"x" * 16, b""], 1420)
    assert first[:16].hex() == "04000000" + "d0c0b0a0" + "0000000000000000"
    assert second[:16].hex() == "04000000" + "d0c0b0a0" + "0100000000000000"
    assert len(first) == 48
    assert len(second) == 32
    assert opened(first) == b"x" * 16
    assert opened(second) == b""
    assert one.send_counter == 2


@pytest.mark.parametrize(
    ("size", "mtu", "padded"),
    [
        (0, 1420, 0),
        (1, 1420, 16),
        (15, 1420, 16),
        (16, 1420, 16),
        (17, 1420, 32),
        (1409, 1420, 1420),
        (1419, 1420, 1420),
        (1420, 1420, 1420),
        (1299, 1300, 1300),  # the kernel's netns.sh tries this one
        (1300, 1300, 1300),
        (1288, 1300, 1296),
        (1297, 1300, 1300),
        (1500, 1420, 1500),  # longer than the MTU: the host's doing, which padding must not make worse
        (1501, 1420, 1501),
    ],
)
def test_padding_goes_to_16_and_never_beyond_the_mtu(size: int, mtu: int, padded: int) -> None:
    (datagram,) = session().seal([b"\xff" * size], mtu)
    assert opened(datagram) == b"\xff" * size + bytes(padded - size)
    assert len(datagram) == 32 + padded


def test_counters_end_before_they_could_repeat() -> None:
    one = session()
    one.send_counter = REJECT_AFTER_MESSAGES - 2
    assert one.may_send(T)
    sealed = one.seal([b"a", b"b", b"c"], 1420)
    assert [int.from_bytes(datagram[8:16], "little") for datagram in sealed] == [
        REJECT_AFTER_MESSAGES - 2,
        REJECT_AFTER_MESSAGES - 1,
    ]
    assert not one.may_send(T)
    assert one.seal([b"d"], 1420) == []
    assert one.send_counter == REJECT_AFTER_MESSAGES


def test_a_counter_is_spent_even_if_sealing_fails() -> None:
    one = session()
    with pytest.raises(TypeError):
        one.seal([b"good", None], 1420)  # type: ignore[list-item]
    assert one.send_counter == 2


def test_a_session_serves_180_seconds() -> None:
    one = session()
    assert one.may_send(T + 179.99)
    assert not one.expired(T + 179.99)
    assert not one.may_send(T + 180)
    assert one.expired(T + 180)


@given(st.lists(st.binary(max_size=70), max_size=20), st.integers(0, 2**63))
def test_what_is_sealed_opens_in_order(packets: list[bytes], counter: int) -> None:
    one = session()
    one.send_counter = counter
    sealed = one.seal(packets, 1420)
    assert [int.from_bytes(datagram[8:16], "little") for datagram in sealed] == [
        counter + at for at in range(len(packets))
    ]
    for datagram, packet in zip(sealed, packets, strict=True):
        assert opened(datagram)[: len(packet)] == packet
        assert len(opened(datagram)) == -(-len(packet) // 16) * 16


def test_repr_shows_indices_and_no_keys() -> None:
    assert repr(session(0x10, 0x20)) == "Session(0x00000010 -> 0x00000020)"


# --- slots -------------------------------------------------------------------------------------------------


def test_as_initiator_the_new_session_is_current_at_once() -> None:
    slots = SessionSlots()
    one, two, three = (session(index) for index in (1, 2, 3))
    assert slots.install(one) == []
    assert slots.install(two) == []
    assert slots.install(three) == [one]
    assert (slots.previous, slots.current, slots.next) == (two, three, None)
    assert list(slots) == [three, two]


def test_as_responder_the_new_session_waits_for_its_first_packet() -> None:
    slots = SessionSlots()
    old, one, two = session(1), session(2, initiator=False), session(3, initiator=False)
    slots.install(old)
    assert slots.install(one) == []
    assert (slots.previous, slots.current, slots.next) == (None, old, one)
    assert slots.install(two) == [one]
    assert slots.promote() == []
    assert (slots.previous, slots.current, slots.next) == (old, two, None)


def test_as_responder_the_one_before_makes_room() -> None:
    slots = SessionSlots()
    one, two, three = session(1), session(2), session(3, initiator=False)
    slots.install(one)
    slots.install(two)
    assert slots.install(three) == [one]
    assert (slots.previous, slots.current, slots.next) == (None, two, three)


def test_promotion_ends_the_one_before() -> None:
    slots = SessionSlots(previous=session(1), current=session(2), next=session(3, initiator=False))
    previous, current, waiting = slots.previous, slots.current, slots.next
    assert slots.promote() == [previous]
    assert (slots.previous, slots.current, slots.next) == (current, waiting, None)


def crossed(ours: int, theirs: int, *, later: float = 0.01) -> tuple[SessionSlots, list[Session], list[Session]]:
    """Slots with an old session; both sides initiated, we answered, then our answer came. Initiators' indices given."""
    old, waiting = session(1, created=T - 120), session(900, theirs, initiator=False, created=T)
    new = session(ours, 901, created=T + later)
    slots = SessionSlots()
    slots.install(old)
    slots.install(waiting)
    ended = slots.install(new)
    return slots, [old, waiting, new], ended


def test_of_two_crossed_sessions_the_greater_index_of_an_initiator_stays() -> None:
    slots, (old, waiting, new), ended = crossed(ours=10, theirs=5)
    assert (slots.previous, slots.current, slots.next) == (waiting, new, None)
    assert ended == [old]


def test_of_two_crossed_sessions_theirs_goes_on_waiting_if_it_is_to_stay() -> None:
    slots, (old, waiting, new), ended = crossed(ours=5, theirs=10)
    assert (slots.previous, slots.current, slots.next) == (old, new, waiting)
    assert ended == []
    assert slots.promote() == [old]
    assert (slots.previous, slots.current) == (new, waiting)


def test_a_rekey_later_finds_what_still_waits_useless() -> None:
    slots, (old, waiting, new), _ = crossed(ours=5, theirs=10)
    later = session(20, created=T + 120)
    assert slots.install(later) == [waiting, old]
    assert (slots.previous, slots.current, slots.next) == (new, later, None)


def test_what_waited_long_did_not_cross() -> None:
    slots, (old, waiting, new), ended = crossed(ours=5, theirs=10, later=5.0)
    assert (slots.previous, slots.current, slots.next) == (waiting, new, None)
    assert ended == [old]


def test_both_sides_rank_crossed_sessions_alike() -> None:
    rng = random.Random(5)
    for _ in range(100):
        a1, a2, b1, b2 = (rng.randrange(2**32) for _ in range(4))
        at_a = session(a1, b2), session(a2, b1, initiator=False)
        at_b = session(b2, a1, initiator=False), session(b1, a2)
        assert at_a[0].outranks(at_a[1]) == at_b[0].outranks(at_b[1])
        assert at_a[0].outranks(at_a[1]) != at_a[1].outranks(at_a[0])


def test_clear_ends_all() -> None:
    slots = SessionSlots(previous=session(1), current=session(2), next=session(3, initiator=False))
    assert {one.index for one in slots.clear()} == {1, 2, 3}
    assert list(slots) == []


def test_every_session_that_leaves_a_slot_is_reported() -> None:
    rng = random.Random(7)
    slots, alive = SessionSlots(), set[int]()
    for index in range(500):
        if slots.next is not None and rng.random() < 0.3:
            ended = slots.promote()
        else:
            alive.add(index)
            created = T + index * rng.choice([0, 1, 100])
            ended = slots.install(session(index, rng.randrange(2**32), initiator=rng.random() < 0.5, created=created))
        alive -= {one.index for one in ended}
        assert alive == {one.index for one in slots}
        assert len(list(slots)) == len(alive) <= 3
