"""The control line's hub, over its real socket: who is there, who is silent, and what nonsense does to it."""

import os
from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan

import pytest
from tests.services.hub_bench import Bench, made_bench

from device_service.service import TRAFFIC_BATCH
from key_service.hub import LATE
from stagewire.control import messages, questions
from stagewire.control.codec import BadControl
from stagewire.control.messages import (
    FROM_KEY,
    FROM_STAGE,
    MAX_SESSIONS,
    SESSION_BATCH,
    Applied,
    Beat,
    FromStage,
    Heartbeat,
    Hello,
    LiveSession,
    LiveSessions,
    RoutesGone,
    SnapshotEnd,
)
from stagewire.control.questions import Scale, StatusQuery
from stagewire.control.telemetry import PeerTraffic, Traffic
from stagewire.deadlines import IDLE_INTERVAL
from stagewire.loop import boot_time
from stagewire.pipe.names import CONTROL, MAX_CONTROL, Limits
from stagewire.process.slots import Slot
from stagewire.process.stage import MAX_VERSIONS
from stagewire.proto.events import WantHandshake


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with made_bench(monkeypatch) as made:
        yield made


def test_a_stage_that_says_hello_is_a_member(bench: Bench) -> None:
    member = bench.hello(bench.line())
    assert (member.stage, member.number, member.generation, member.pid) == ("tun", 0, 1, os.getpid())
    assert bench.hub.member("tun") is member
    assert bench.hub.member("tun", 1) is None
    assert bench.hub.member("conn") is None
    assert list(bench.hub.members(boot_time())) == [member]


def test_a_repeated_hello_is_answered_once(bench: Bench) -> None:
    line = bench.line()
    bench.hello(line)
    for _ in range(5):
        bench.say(line, Hello("tun", 0, 1, 101))
    bench.say(line, Applied(1))  # behind them
    bench.turn(lambda: bench.messages, "the message")
    assert len(bench.hellos) == 1
    assert line.poll(0) == 0


NO_TIMES = [(inf, 0.0), (nan, 0.0), (-1.0, 0.0), (2.0**62, 0.0), (0.0, inf), (0.0, nan), (0.0, -1.0), (0.0, 2.0**62)]
"""Times of a session and its handshake that can't have passed."""


def sessions(count: int) -> tuple[LiveSession, ...]:
    return tuple(LiveSession(bytes(32), index, b"", 0.0, 0.0) for index in range(count))


def test_a_hello_counts_once_all_its_sessions_are_there(bench: Bench) -> None:
    line = bench.line()
    for batch in (3, 2):
        bench.say(line, Hello("device", 2, 1, 101, 5))
        bench.say(line, LiveSessions(sessions(batch)))
    bench.say(line, Heartbeat(1, "", 0))  # it isn't known yet
    assert bench.heard(line) == Beat(0)
    assert bench.hellos == []
    bench.say(line, LiveSessions(sessions(3)))
    bench.turn(lambda: bench.hellos, "the hello")
    assert len(bench.hellos[0].sessions) == 5
    bench.say(line, Hello("device", 2, 1, 101, 5))  # said before the welcome came
    bench.say(line, LiveSessions(sessions(5)))
    bench.say(line, Applied(1))
    bench.turn(lambda: any(isinstance(said, Applied) for _, said in bench.messages), "the message")
    assert len(bench.hellos) == 1


@pytest.mark.parametrize(
    "said",
    [[Hello("device", 2, 1, 101, 5), LiveSessions(sessions(6))], [Hello("device", 2, 1, 101, MAX_SESSIONS + 1)],
     [Hello("device", 2, 1, 101, -1)], [Hello("conn", 0, 1, 101, 1)],
     [Hello("device", 2, 1, 101, 0, "k" * 301)],
     [Hello("device", 2, 1, 101, 1), LiveSessions((LiveSession(bytes(32), 1, b"nowhere", 0.0, 0.0),))],
     *([Hello("device", 2, 1, 101, 1), LiveSessions((LiveSession(bytes(32), 1, b"", *times),))] for times in NO_TIMES)],
    ids=["more than announced", "too many", "less than none", "of no worker", "a long reason", "at no place",
         *map(str, NO_TIMES)],
)  # fmt: skip
def test_impossible_sessions_are_refused(bench: Bench, said: list[FromStage]) -> None:
    line = bench.line()
    for message in said:
        bench.say(line, message)
    bench.turn(lambda: bench.stage.counters["control_unexpected"], "the refusal")
    assert bench.hellos == []


def test_the_longest_messages_fit_into_a_pipe_that_holds_little() -> None:
    traffic = PeerTraffic((Traffic(bytes(32), 2**63, 2**63),) * TRAFFIC_BATCH)
    listed = LiveSessions((LiveSession(bytes(32), 2**31, bytes(44), 2.0**63, 2.0**63),) * SESSION_BATCH)
    assert CONTROL.limits is not None
    for longest in (traffic, listed):
        assert len(FROM_STAGE.pack(longest)) <= CONTROL.limits.inward
    assert CONTROL.limits.inward * CONTROL.limits.inward_high_water == 4 << 20


def test_whoever_did_not_say_hello_is_asked_to(bench: Bench) -> None:
    line = bench.line()
    for message in (Heartbeat(1, "", 0), Applied(3), WantHandshake(bytes(32), "rekey")):
        bench.say(line, message)
        assert bench.heard(line) == Beat(0)
    assert bench.messages == []


def test_a_stage_that_connects_is_asked_to_say_hello_and_an_empty_message_after_that_is_malformed(bench: Bench) -> None:
    line = bench.line()
    line.send(b"")
    assert bench.heard(line) == Beat(0)
    bench.hello(line)
    line.send(b"")
    bench.say(line, Applied(1))
    bench.turn(lambda: bench.messages, "the message")
    assert line.poll(0) == 0
    assert bench.stage.counters == {"control_malformed": 1}


def test_a_heartbeat_carries_a_fault(bench: Bench) -> None:
    line = bench.line()
    member = bench.hello(line)
    bench.say(line, Heartbeat(1, "no device", 2))
    bench.turn(lambda: member.fault, "the fault")
    assert (member.fault, member.spares) == ("no device", 2)
    bench.say(line, Heartbeat(1, "", 0))
    bench.turn(lambda: not member.fault, "the end of the fault")


def test_a_heartbeat_without_news_is_no_work_and_gets_no_answer(bench: Bench) -> None:
    line = bench.line()
    member = bench.hello(line)
    bench.say(line, Heartbeat(1, "", 1))
    bench.turn(lambda: member.spares, "the news")
    worked, heard = bench.stage.loop.worked, member.heard
    bench.say(line, Heartbeat(1, "", 1))
    bench.turn(lambda: member.heard > heard, "the heartbeat")
    assert bench.stage.loop.worked == worked
    bench.say(line, Applied(1))
    bench.turn(lambda: bench.messages, "the message")
    assert bench.stage.loop.worked > worked
    assert line.poll(0) == 0


def test_an_idle_member_lives_on_while_it_holds_its_slot(bench: Bench) -> None:
    member = bench.hello(bench.line())
    silent = member.heard + messages.SILENT_AFTER
    assert list(bench.hub.members(silent)) == []
    slot = Slot(bench.stage.environment.run, "tun", 0)
    assert list(bench.hub.members(silent)) == []
    assert slot.take(boot_time())
    assert list(bench.hub.members(silent)) == [member]
    assert list(bench.hub.members(silent + IDLE_INTERVAL - 0.01)) == [member]
    assert list(bench.hub.members(silent + IDLE_INTERVAL)) == []  # it is stopped
    assert [bench.hub.awaits_heartbeat(member.heard + late) for late in (IDLE_INTERVAL, LATE + 0.01)] == [False, True]
    slot.close()
    assert list(bench.hub.members(silent)) == []


def test_what_is_applied_is_known_and_handed_on(bench: Bench) -> None:
    line = bench.line()
    member = bench.hello(line)
    bench.say(line, Applied(7))
    bench.turn(lambda: bench.messages, "the word")
    assert bench.messages == [(member, Applied(7))]
    assert member.applied == 7


def test_the_newest_life_of_a_stage_is_the_one_spoken_to(bench: Bench) -> None:
    old, new = bench.line(), bench.line()
    bench.hello(old, "device", 2, 1)
    bench.hello(new, "device", 2, 2)
    bench.hub.tell("device", 2, Beat(9))
    assert bench.heard(new) == Beat(9)
    assert not old.poll(0)
    bench.hub.tell("device", 3, Beat(9))  # nobody: no error
    bench.hub.send(b"nobody", Beat(9))


def test_whoever_claims_to_be_a_worker_is_not_spoken_to_in_place_of_the_one_with_the_line(bench: Bench) -> None:
    real, claims = bench.line(), bench.line()
    bench.hello(real, "device", 2, 1)
    bench.generations[2] = 1
    bench.hello(claims, "device", 2, 2)
    bench.hub.tell("device", 2, Beat(9))
    assert bench.heard(real) == Beat(9)
    assert not claims.poll(0)


def test_a_silent_stage_is_away_and_in_the_end_forgotten(bench: Bench) -> None:
    member = bench.hello(bench.line())
    heard = member.heard
    assert list(bench.hub.members(heard + messages.SILENT_AFTER - 0.01)) == [member]
    assert list(bench.hub.members(heard + messages.SILENT_AFTER)) == []
    bench.hub.forget_silent(heard + 5 * messages.SILENT_AFTER)
    assert bench.hub.member("tun") is member
    bench.hub.forget_silent(heard + 11 * messages.SILENT_AFTER)
    assert bench.hub.member("tun") is None


def test_nonsense_is_counted_and_the_others_are_served(bench: Bench) -> None:
    line, honest = bench.line(), bench.line()
    for data in (b"\xc1", FROM_KEY.pack(Beat(1)), bytes(5000), b"\x93%c\xa4Beat\x01" % (questions.VERSION + 1)):
        line.send(data)
    line.send_multipart([b"several", b"frames", b"\xc1"])
    bench.hello(honest, "conn")
    counters = bench.stage.counters
    bench.turn(lambda: counters.total() == 5, "the nonsense to be counted")
    assert counters == {"control_malformed": 3, "control_of_unknown_kind": 1, "control_of_unknown_version": 1}


def test_a_query_needs_no_hello(bench: Bench) -> None:
    bench.say(bench.line(), StatusQuery())
    bench.turn(lambda: len(bench.queries) == 1, "the query")
    assert bench.hellos == []


def test_a_stage_that_could_not_be_told_something_is_told_nothing_more_until_it_says_hello_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = replace(CONTROL, limits=Limits(MAX_CONTROL, 4))
    monkeypatch.setattr("key_service.hub.CONTROL", short)
    monkeypatch.setitem(globals(), "CONTROL", short)
    with made_bench(monkeypatch) as bench:
        line = bench.line()
        member = bench.hello(line)
        told = 0
        while not member.behind:  # nobody reads
            bench.hub.send(member.identity, RoutesGone((told.to_bytes(4),)))
            told += 1
        assert bench.stage.counters["control_full"] == 1
        for _ in range(told - 1):
            bench.heard(line)
        bench.hub.send(member.identity, SnapshotEnd(1))
        bench.hub.tell("tun", 0, RoutesGone(()))
        assert not line.poll(20)
        assert bench.stage.counters["control_full"] == 1
        bench.say(line, Heartbeat(1, "", 0))
        assert bench.heard(line) == Beat(0)  # which makes it say hello
        member.welcomed -= 2
        again = bench.hello(line)
        assert not again.behind
        bench.hub.tell("tun", 0, RoutesGone(()))
        assert bench.heard(line) == RoutesGone(())


def test_a_query_and_a_wish_for_workers_need_no_hello(bench: Bench) -> None:
    line = bench.line()
    bench.say(line, Scale(3))
    bench.turn(lambda: len(bench.queries) == 1, "the wish")
    assert bench.hellos == []


def test_all_numbers_of_a_stage_are_known(bench: Bench) -> None:
    for number in (3, 0, 7):
        bench.hello(bench.line(), "device", number)
    bench.hello(bench.line(), "device", 3, 2)
    assert bench.hub.numbers("device") == [0, 3, 7]
    assert bench.hub.numbers("tun") == []


def test_another_version_is_said_once_and_whoever_makes_versions_up_does_not_fill_the_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with made_bench(monkeypatch) as bench:
        other = questions.VERSION + 1
        for version in (*[other] * 20, *range(other + 1, other + 38)):
            bench.stage.drop(BadControl("control_of_unknown_version", version))
        lines = [line for line in capfd.readouterr().out.splitlines() if "another version" in line]
        assert len(lines) == MAX_VERSIONS
        assert len([line for line in lines if f"theirs={other} ours={other - 1}" in line]) == 1
        assert bench.stage.counters["control_of_unknown_version"] == 57
