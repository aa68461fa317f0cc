"""The two halves of the timers by themselves; how they play together is in test_sim_timers."""

import inspect
import re
from math import inf
from typing import Any

import pytest

from stagewire.proto.timers import HANDSHAKE, SESSION, HandshakeTimers, SessionTimers, Timer

T = 1000.0
JITTER = 0.25


def session_timers(persistent: int = 0) -> SessionTimers:
    timers = SessionTimers(lambda: JITTER)
    timers.set_persistent_interval(persistent, T)
    return timers


def handshake_timers(jitter: float = JITTER) -> HandshakeTimers:
    return HandshakeTimers(lambda: jitter)


# --- sessions ----------------------------------------------------------------------------------------------


def test_nothing_is_due_at_first() -> None:
    timers = session_timers()
    assert timers.next_deadline() is None
    assert timers.take_due(T + 1e6) == []


def test_keepalive_is_due_after_the_first_data_not_the_last() -> None:
    timers = session_timers()
    timers.data_received(T)
    timers.data_received(T + 9)
    assert timers.next_deadline() == (T + 10, "keepalive")
    assert timers.take_due(T + 9.99) == []
    assert timers.take_due(T + 10) == ["keepalive"]
    timers.any_sent(T + 10)
    assert timers.next_deadline() is None


def test_anything_sent_stands_for_the_keepalive() -> None:
    timers = session_timers()
    timers.data_received(T)
    timers.data_received(T + 1)
    timers.any_sent(T + 2)
    assert timers.next_deadline() is None
    timers.data_received(T + 3)
    assert timers.take_due(T + 13) == ["keepalive"]
    # What came before the sending must have no echo.
    assert timers.next_deadline() is None


def test_a_keepalive_received_asks_for_none() -> None:
    timers = session_timers()
    timers.any_received(T)
    assert timers.next_deadline() is None


def test_no_answer_counts_from_the_first_data_without_one() -> None:
    timers = session_timers()
    timers.data_sent(T)
    timers.data_sent(T + 14)
    assert timers.next_deadline() == (T + 15 + JITTER, "no_answer")
    assert timers.take_due(T + 15 + JITTER) == ["no_answer"]
    assert timers.next_deadline() is None


def test_anything_received_is_an_answer() -> None:
    timers = session_timers()
    timers.data_sent(T)
    timers.any_received(T + 1)
    assert timers.next_deadline() is None


def test_persistent_counts_from_any_packet_either_way() -> None:
    timers = session_timers(25)
    assert timers.next_deadline() == (T + 25, "persistent")
    timers.any_sent(T + 20)
    assert timers.next_deadline() == (T + 45, "persistent")
    timers.any_received(T + 40)
    assert timers.next_deadline() == (T + 65, "persistent")
    assert timers.take_due(T + 65) == ["persistent"]
    # Even if it couldn't be sent, the next is an interval away.
    assert timers.next_deadline() == (T + 90, "persistent")
    timers.set_persistent_interval(0, T + 70)
    assert timers.next_deadline() is None


def test_only_switching_on_asks_for_a_keepalive_at_once() -> None:
    timers = SessionTimers(lambda: JITTER)
    assert timers.set_persistent_interval(25, T)
    assert not timers.set_persistent_interval(30, T)
    assert not timers.set_persistent_interval(0, T)
    assert timers.set_persistent_interval(1, T)


def test_one_empty_packet_serves_both_keepalives() -> None:
    timers = session_timers(10)
    timers.any_received(T)
    timers.data_received(T)
    assert timers.take_due(T + 10) == ["keepalive"]
    assert timers.next_deadline() == (T + 20, "persistent")


def test_wipe_counts_from_the_last_session() -> None:
    timers = session_timers()
    timers.session_derived(T)
    timers.session_derived(T + 100)
    assert timers.take_due(T + 540) == []
    assert timers.take_due(T + 640) == ["wipe"]
    assert timers.next_deadline() is None


def test_giving_up_starts_the_wipe_only_if_none_is_pending() -> None:
    timers = session_timers()
    timers.session_derived(T)
    timers.handshake_gave_up(T + 200)
    assert timers.next_deadline() == (T + 540, "wipe")
    fresh = session_timers()
    fresh.data_received(T)
    fresh.handshake_gave_up(T)
    assert fresh.next_deadline() == (T + 540, "wipe")


# --- handshakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.0, 0.1, JITTER, 0.333])
@pytest.mark.parametrize("start", [0.0, 28.886, 62.231, 2045.646, 32764.685])
def test_may_initiate_at_the_very_time_of_the_retransmission(start: float, jitter: float) -> None:
    timers = handshake_timers(jitter)
    timers.initiation_sent(start)
    deadline = timers.next_deadline()
    assert deadline == (start + 5 + jitter, "retransmit")
    assert not timers.may_initiate(start + 4.99)
    assert timers.may_initiate(deadline[0])


def test_a_response_sent_keeps_our_initiation_back() -> None:
    timers = handshake_timers()
    assert timers.may_initiate(T)
    timers.response_sent(T)
    assert not timers.may_initiate(T + 4.99)
    assert timers.may_initiate(T + 5)
    assert timers.next_deadline() is None
    timers.response_sent(T + 5)
    timers.reset()
    assert timers.may_initiate(T + 5)


def initiations(timers: HandshakeTimers, start: float) -> tuple[int, float]:
    """How many initiations are sent until we give up, and when that is."""
    timers.initiation_sent(start)
    count = 1
    while True:
        deadline = timers.next_deadline()
        assert deadline is not None
        why = timers.take_due(deadline[0])
        assert timers.take_due(deadline[0]) is None
        if why == "give_up":
            return count, deadline[0]
        count += 1
        timers.initiation_sent(deadline[0])


def test_twenty_initiations_then_give_up_then_anew() -> None:
    timers = handshake_timers()
    for _ in range(2):
        count, gave_up = initiations(timers, T)
        assert count == 20
        assert gave_up == pytest.approx(T + 20 * (5 + JITTER))
        assert timers.next_deadline() is None


def test_a_packet_renews_the_patience() -> None:
    timers = handshake_timers()
    timers.initiation_sent(T)
    for turn in range(1, 19):
        assert timers.take_due(T + 6 * turn) == "retransmit"
        timers.initiation_sent(T + 6 * turn)
    timers.wanted()
    assert initiations(timers, T + 200)[0] == 20


def test_complete_ends_the_retransmissions() -> None:
    timers = handshake_timers()
    timers.initiation_sent(T)
    timers.complete()
    assert timers.next_deadline() is None
    assert timers.take_due(T + 100) is None


def test_defer_waits_as_long_as_an_initiation_would() -> None:
    timers = handshake_timers()
    timers.initiation_sent(T)
    timers.response_sent(T + 3)
    assert timers.take_due(T + 5.25) == "retransmit"
    assert not timers.may_initiate(T + 5.25)
    timers.defer(T + 5.25)
    assert timers.next_deadline() == (T + 10.5, "retransmit")


# --- the tables --------------------------------------------------------------------------------------------

ROWS = [(SessionTimers, row) for row in SESSION] + [(HandshakeTimers, row) for row in HANDSHAKE]
EVENTS = {
    timers: {event for row in table for event in (*row.set_by, *row.set_anew_by, *row.ended_by)}
    for timers, table in ((SessionTimers, SESSION), (HandshakeTimers, HANDSHAKE))
}


def timers_of(kind: type[Any]) -> Any:
    timers = kind(lambda: JITTER)
    if kind is SessionTimers:
        timers.persistent_interval = 25
    else:
        timers.flood_until = T + 1
    return timers


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=lambda each: getattr(each, "why", each))
def test_each_event_does_with_each_timer_what_its_row_says(kind: type[Any], row: Timer) -> None:
    place = kind._table.index(row)
    for event in EVENTS[kind]:
        timers = timers_of(kind)
        timers._happens(event, T)
        first = row.when(timers, T)
        assert timers.due[place] == (first if event in (*row.set_by, *row.set_anew_by) else inf), event
        timers = timers_of(kind)
        timers._happens((*row.set_by, *row.set_anew_by)[0], T)
        timers._happens(event, T + 1)
        expected = row.when(timers, T + 1) if event in row.set_anew_by else inf if event in row.ended_by else first
        assert timers.due[place] == expected, event


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event_of_a_table_comes_about(kind: type[Any]) -> None:
    source = inspect.getsource(kind)
    whys = {row.why for _, row in ROWS}
    assert EVENTS[kind] - whys == set(re.findall(r'_happens\("(\w+)"', source))
