"""Counters over many lives of a process: a total never falls."""

from base64 import b64encode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.control.telemetry import Counters
from stagewire.reasons import Incident
from status_service.tally import Tally

NAMES = ("datagrams_in", "datagrams_out", "bad_mac1")


def report(
    generation: int, *values: int, stage: str = "conn", number: int = 0, names: tuple[str, ...] = NAMES
) -> Counters:
    return Counters(stage, number, generation, 100 + generation, names[: len(values)], values)


lives = st.lists(st.lists(st.tuples(*[st.integers(0, 50)] * 3), max_size=5), max_size=6)


@given(lives)
def test_a_total_is_the_sum_of_all_lives_and_never_falls(counted: list[list[tuple[int, int, int]]]) -> None:
    tally, past, before = Tally(), [0, 0, 0], dict.fromkeys(NAMES, 0)
    for generation, steps in enumerate(counted, start=1):
        present = [0, 0, 0]
        for step in steps:
            present = [was + more for was, more in zip(present, step, strict=True)]
            tally.take(report(generation, *present), float(generation))
            total = tally.services["conn", 0].total()
            for name, was, now in zip(NAMES, past, present, strict=True):
                assert total.get(name, 0) == was + now >= before[name]
                before[name] = total.get(name, 0)
        past = [was + now for was, now in zip(past, present, strict=True)]


def test_services_and_workers_are_counted_apart() -> None:
    tally = Tally()
    tally.take(report(1, 5, stage="device", number=0), 1.0)
    tally.take(report(2, 7, stage="device", number=1), 2.0)
    tally.take(report(3, 9), 3.0)
    assert {name: service.total() for name, service in tally.services.items()} == {
        ("device", 0): {"datagrams_in": 5},
        ("device", 1): {"datagrams_in": 7},
        ("conn", 0): {"datagrams_in": 9},
    }


def test_lives_and_the_last_word_are_kept() -> None:
    tally = Tally()
    for generation, at in ((1, 1.0), (1, 2.0), (2, 3.0), (2, 4.0)):
        tally.take(report(generation, 1), at)
    service = tally.services["conn", 0]
    assert (service.lives, service.pid, service.heard) == (2, 102, 4.0)


def test_a_counter_that_a_life_has_not_used_keeps_its_total() -> None:
    tally = Tally()
    tally.take(report(1, 4, 0, 2), 1.0)
    tally.take(report(2), 2.0)
    assert tally.services["conn", 0].total() == {"bad_mac1": 2, "datagrams_in": 4}


def test_names_without_values_and_values_without_names_are_left_out() -> None:
    tally = Tally()
    tally.take(Counters("conn", 0, 1, 7, ("bad_mac1", "bad_type"), (1,)), 1.0)
    tally.take(Counters("tun", 0, 1, 7, ("no_peer",), (1, 2)), 1.0)
    assert tally.services["conn", 0].total() == {"bad_mac1": 1}
    assert tally.services["tun", 0].total() == {"no_peer": 1}


def test_what_nobody_we_know_would_say_is_left_out() -> None:
    tally = Tally()
    tally.take(Counters("nonsense", 0, 1, 7, ("no_peer",), (1,)), 1.0)
    tally.take(Counters("device", 4711, 1, 7, ("no_peer",), (1,)), 1.0)
    tally.take(Counters("tun", 0, 1, 7, ("no_peer", "[/x]"), (1, 2)), 1.0)
    assert {name: service.total() for name, service in tally.services.items()} == {("tun", 0): {"no_peer": 1}}


ANNA = bytes([1]) * 32


def incidents(generation: int, *found: Incident, number: int = 0) -> Counters:
    return Counters("device", number, generation, 7, (), (), found)


def reasons(tally: Tally, now: float) -> list[tuple[int, str, str, str, int, int, float]]:
    return [
        (each.number, each.reason, each.public_key, each.place, each.size, each.count, each.s_ago)
        for each in tally.status(now).reasons
    ]


def test_reasons_add_up_over_lives_and_the_newest_is_first() -> None:
    tally, key = Tally(), b64encode(ANNA).decode()
    tally.take(incidents(1, Incident("replayed", ANNA, b"", 0, 3)), 1.0)
    tally.take(incidents(1, Incident("unknown_receiver", b"", bytes([192, 0, 2, 1, 0, 9]), 96, 5)), 2.0)
    tally.take(incidents(2), 3.0)
    tally.take(incidents(2, Incident("replayed", ANNA, b"", 0, 1)), 4.0)
    tally.take(incidents(2, Incident("replayed", ANNA, b"", 0, 2)), 5.0)
    tally.take(incidents(1, Incident("replayed", ANNA, b"", 0, 1), number=1), 6.0)
    assert reasons(tally, 7.0) == [
        (1, "replayed", key, "", 0, 1, 1.0),
        (0, "replayed", key, "", 0, 5, 2.0),
        (0, "unknown_receiver", "", "192.0.2.1:9", 96, 5, 5.0),
    ]


def test_what_no_stage_of_ours_would_say_is_left_out_and_all_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("status_service.tally.MAX_OF_PEERS", 3)
    tally = Tally()
    tally.take(incidents(1, Incident("[/x]", ANNA, b"", 0, 1)), 1.0)
    for number in range(5):
        tally.take(incidents(1, Incident("replayed", bytes([number]) * 5000, b"x" * 5000, 0, 1)), float(number))
    assert [s_ago for *_, s_ago in reasons(tally, 5.0)] == [1.0, 2.0, 3.0]


def test_strangers_push_no_peer_out_of_what_is_kept_or_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("status_service.tally.MAX_OF_STRANGERS", 20)
    monkeypatch.setattr("status_service.tally.MAX_STRANGERS_SHOWN", 10)
    tally, key = Tally(), b64encode(ANNA).decode()
    tally.take(incidents(1, Incident("replayed", ANNA, b"", 0, 3)), 1.0)
    for number in range(100):
        place = number.to_bytes(4) + b"\0\1"
        strange = Incident("unknown_peer", number.to_bytes(32), place, 148, 1), Incident("bad_mac1", b"", place, 148, 1)
        tally.take(incidents(1, *strange), 2.0 + number)
    shown = reasons(tally, 102.0)
    assert shown[-1] == (0, "replayed", key, "", 0, 3, 101.0)
    assert [each[6] for each in shown[:-1]] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0]
    assert len(tally._of_strangers) == 20


def test_a_rate_is_that_of_the_last_two_reports_of_one_process() -> None:
    tally = Tally()
    for at, values, cpu in ((1.0, (100, 5, 0), 1.0), (3.0, (300, 5, 0), 1.5)):
        tally.take(replace(report(1, *values), cpu=cpu), at)
    [shown] = tally.status(3.0).services
    assert (shown.cpu_share, dict(zip(shown.names, shown.per_s, strict=True))) == (
        0.25, {"datagrams_in": 100.0, "datagrams_out": 0.0},
    )  # fmt: skip
    tally.take(replace(report(1, 301, 5, 0), cpu=1.6), 3.1)
    assert tally.status(3.1).services[0].cpu_share == 0.25, "two reports at once tell no rate"
    tally.take(replace(report(2, 20, 1, 0), cpu=0.1), 4.1)
    [shown] = tally.status(4.1).services
    assert (shown.cpu_share, shown.per_s) == (0.1, (20.0, 1.0)), "the next process counts from zero"
    assert tally.status(30.0).services[0].cpu_share == 0.0, "a silent one has no rate"
