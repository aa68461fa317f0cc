"""Drops and failures by reason and peer: what is remembered, how much of it, and what anybody can make of it."""

from hypothesis import given
from hypothesis import strategies as st

from stagewire.reasons import MAX_NOTED, MAX_REPORTED, MAX_STRANGERS, Incident, Reasons, shown

ANNA, BERT = bytes([1]) * 32, bytes([2]) * 32
PLACE = bytes([192, 0, 2, 1, 0, 80])


def test_a_peers_part_adds_to_the_whole() -> None:
    reasons = Reasons()
    for public_key, count in ((ANNA, 2), (BERT, 3)):
        reasons.of(public_key)["replayed"] += count
    reasons.of(ANNA)["replayed"] += 0
    reasons["replayed"] += 1
    assert reasons == {"replayed": 6}
    assert reasons.of(ANNA)["replayed"] == 2
    assert reasons.take_changed() == (
        Incident("replayed", ANNA, b"", 0, 2), Incident("replayed", BERT, b"", 0, 3), Incident("replayed", b"", b"", 0, 1)
    )  # fmt: skip
    assert reasons.take_changed() == ()


def test_the_newest_example_stays() -> None:
    reasons = Reasons()
    reasons.note("inner_source_not_allowed", 2, peer=ANNA, place=b"\x0a\0\0\1", size=60)
    reasons.note("inner_source_not_allowed", 1, peer=ANNA, place=b"\x0a\0\0\2", size=84)
    reasons.note("inner_source_not_allowed", 1, peer=ANNA)
    assert reasons.take_changed() == (Incident("inner_source_not_allowed", ANNA, b"\x0a\0\0\2", 84, 4),)


def test_places_without_a_peer_are_remembered() -> None:
    reasons = Reasons()
    for port in (1, 2, 2):
        reasons.note("bad_mac1", place=PLACE[:4] + bytes([0, port]), size=148)
    reasons.note("train_too_old", 3)
    assert reasons == {"bad_mac1": 3, "train_too_old": 3}
    assert reasons.take_changed() == (
        Incident("bad_mac1", b"", PLACE[:4] + b"\0\1", 148, 1),
        Incident("bad_mac1", b"", PLACE[:4] + b"\0\2", 148, 2),
        Incident("train_too_old", b"", b"", 0, 3),
    )


def test_what_anybody_can_make_up_is_bounded_and_counted_all_the_same() -> None:
    reasons = Reasons()
    for number in range(10_000):
        reasons.note_stranger("unknown_peer", number.to_bytes(32), PLACE, 148)
        reasons.note("bad_mac1", place=number.to_bytes(16) + b"\0\1", size=148)
    found = reasons.take_changed()
    assert reasons == {"unknown_peer": 10_000, "bad_mac1": 10_000}
    assert len(found) == 2 * MAX_STRANGERS
    keys = [int.from_bytes(each.public_key) for each in found if each.reason == "unknown_peer"]
    assert keys == list(range(MAX_NOTED - MAX_STRANGERS, MAX_NOTED))
    # After a report, newcomers are noted again.
    reasons.note_stranger("unknown_peer", BERT, PLACE, 148)
    assert [each.public_key for each in reasons.take_changed()] == [BERT]


def test_a_report_is_bounded_and_the_next_has_the_rest() -> None:
    reasons = Reasons()
    for number in range(MAX_REPORTED + 5):
        reasons.of(number.to_bytes(32))["no_endpoint"] += 1
    assert [len(reasons.take_changed()) for _ in range(3)] == [MAX_REPORTED, 5, 0]


def test_what_was_counted_without_a_note_is_told_and_traffic_is_not() -> None:
    reasons = Reasons()
    reasons.note("worker_full", 2, place=b"\3")
    reasons["worker_full"] += 5
    reasons["datagrams_in"] += 9
    assert reasons.take_changed() == (
        Incident("worker_full", b"", b"\3", 0, 2),
        Incident("worker_full", b"", b"", 0, 5),
    )
    assert reasons.take_changed() == ()
    reasons["worker_full"] += 1
    assert reasons.take_changed() == (Incident("worker_full", b"", b"", 0, 6),)


def test_a_peer_that_goes_is_forgotten_and_the_total_stays() -> None:
    reasons = Reasons()
    reasons.of(ANNA)["replayed"] += 1
    reasons.forget(ANNA)
    assert (reasons["replayed"], reasons.of(ANNA)["replayed"], reasons.take_changed()) == (1, 0, ())


def test_a_place_is_written_as_people_write_it() -> None:
    assert shown(PLACE) == "192.0.2.1:80"
    assert shown(PLACE[:4]) == "192.0.2.1"
    assert shown(bytes(15) + b"\1" + b"\0\x35") == "[::1]:53"
    assert shown(bytes(15) + b"\1") == "::1"
    assert shown(b"\3") == "worker 3"


@given(st.binary(max_size=40))
def test_any_place_can_be_shown(place: bytes) -> None:
    assert len(shown(place)) <= 50
