"""The control line's hub, over its real socket: who is there, who is silent, and what nonsense does to it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq
from tests.turning import turn_until

from key_service.hub import Hub, Member
from stagewire.ipc import control, endpoints
from stagewire.ipc.codec import BadControl
from stagewire.ipc.control import (
    FROM_KEY,
    FROM_STAGE,
    Applied,
    Beat,
    FromKey,
    FromStage,
    Heartbeat,
    Hello,
    RoutesGone,
    Scale,
    SnapshotEnd,
    StatusQuery,
)  # fmt: skip
from stagewire.ipc.loop import boot_time
from stagewire.ipc.stage import MAX_VERSIONS, Stage
from stagewire.proto.events import WantHandshake


class Bench:
    """A hub on a stage's own loop, what it was told, and stages that connect to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.stage = Stage("key")
        stack.callback(self.stage.pipes.context.destroy, linger=0)
        self.hellos: list[Member] = []
        self.generations: dict[int, int] = {}
        self.messages: list[tuple[Member, FromStage]] = []
        self.queries: list[bytes] = []
        self.lines: list[zmq.Socket[bytes]] = []  # until the context is destroyed
        self.hub = Hub(
            self.stage,
            self.hellos.append,
            lambda member, message, _now: self.messages.append((member, message)),
            lambda identity, _message: self.queries.append(identity),
            self.generations.get,
        )

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.stage.loop, condition, what)

    def line(self, name: bytes) -> "zmq.Socket[bytes]":
        line = self.stage.pipes.connect(zmq.DEALER, endpoints.CONTROL, routing_id=name)
        self.lines.append(line)
        self.turn(lambda: line.poll(0, zmq.POLLOUT), "the connection")
        return line

    def hello(self, line: "zmq.Socket[bytes]", stage: str = "tun", number: int = 0, generation: int = 1) -> Member:
        before = len(self.hellos)
        line.send(FROM_STAGE.pack(Hello(stage, number, generation, 100 + generation)))
        self.turn(lambda: len(self.hellos) > before, "the hello")
        return self.hellos[-1]

    def heard(self, line: "zmq.Socket[bytes]") -> FromKey:
        self.turn(lambda: line.poll(0), "an answer")
        return FROM_KEY.unpack_untrusted(line.recv())

    def say(self, line: "zmq.Socket[bytes]", message: FromStage) -> None:
        line.send(FROM_STAGE.pack(message))


@contextmanager
def made_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as folder, ExitStack() as stack:
        for variable in ("RUN", "STATE", "LOG"):
            monkeypatch.setenv(f"STAGEWIRE_{variable}_DIR", str(Path(folder) / variable.lower()))
        yield Bench(stack)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with made_bench(monkeypatch) as made:
        yield made


def test_a_stage_that_says_hello_is_a_member(bench: Bench) -> None:
    member = bench.hello(bench.line(b"tun.0.1"))
    assert (member.stage, member.number, member.generation, member.pid) == ("tun", 0, 1, 101)
    assert bench.hub.member("tun") is member
    assert bench.hub.member("tun", 1) is None
    assert bench.hub.member("conn") is None
    assert list(bench.hub.members(boot_time())) == [member]


def test_a_repeated_hello_is_answered_once(bench: Bench) -> None:
    line = bench.line(b"tun.0.1")
    bench.hello(line)
    for _ in range(5):
        bench.say(line, Hello("tun", 0, 1, 101))
    bench.say(line, StatusQuery())  # behind them
    bench.turn(lambda: bench.queries, "the query")
    assert len(bench.hellos) == 1


def test_whoever_did_not_say_hello_is_asked_to(bench: Bench) -> None:
    line = bench.line(b"tun.0.1")
    for message in (Heartbeat(1, "", 0), Applied(3), WantHandshake(bytes(32), "rekey")):
        bench.say(line, message)
        assert bench.heard(line) == Beat(0)
    assert bench.messages == []


def test_a_heartbeat_is_answered_and_carries_a_fault(bench: Bench) -> None:
    line = bench.line(b"tun.0.1")
    member = bench.hello(line)
    bench.say(line, Heartbeat(1, "no device", 2))
    assert bench.heard(line) == Beat(bench.stage.generation)
    assert (member.fault, member.spares) == ("no device", 2)
    bench.say(line, Heartbeat(1, "", 0))
    bench.heard(line)
    assert member.fault == ""


def test_what_is_applied_is_known_and_handed_on(bench: Bench) -> None:
    line = bench.line(b"tun.0.1")
    member = bench.hello(line)
    bench.say(line, Applied(7))
    bench.turn(lambda: bench.messages, "the word")
    assert bench.messages == [(member, Applied(7))]
    assert member.applied == 7


def test_the_newest_life_of_a_stage_is_the_one_spoken_to(bench: Bench) -> None:
    old, new = bench.line(b"device.2.1"), bench.line(b"device.2.2")
    bench.hello(old, "device", 2, 1)
    bench.hello(new, "device", 2, 2)
    bench.hub.tell("device", 2, Beat(9))
    assert bench.heard(new) == Beat(9)
    assert not old.poll(0)
    bench.hub.tell("device", 3, Beat(9))  # nobody: no error
    bench.hub.send(b"nobody", Beat(9))


def test_whoever_claims_to_be_a_worker_is_not_spoken_to_in_place_of_the_one_with_the_line(bench: Bench) -> None:
    real, claims = bench.line(b"device.2.1"), bench.line(b"device.2.2")
    bench.hello(real, "device", 2, 1)
    bench.generations[2] = 1
    bench.hello(claims, "device", 2, 2)
    bench.hub.tell("device", 2, Beat(9))
    assert bench.heard(real) == Beat(9)
    assert not claims.poll(0)


def test_a_silent_stage_is_away_and_in_the_end_forgotten(bench: Bench) -> None:
    member = bench.hello(bench.line(b"tun.0.1"))
    heard = member.heard
    assert list(bench.hub.members(heard + control.SILENT_AFTER - 0.01)) == [member]
    assert list(bench.hub.members(heard + control.SILENT_AFTER)) == []
    bench.hub.forget_silent(heard + 5 * control.SILENT_AFTER)
    assert bench.hub.member("tun") is member
    bench.hub.forget_silent(heard + 11 * control.SILENT_AFTER)
    assert bench.hub.member("tun") is None


def test_nonsense_is_counted_and_the_others_are_served(bench: Bench) -> None:
    line, honest = bench.line(b"tun.0.1"), bench.line(b"conn.0.1")
    for data in (b"", b"\xc1", FROM_KEY.pack(Beat(1)), bytes(5000), b"\x93\x02\xa4Beat\x01"):
        line.send(data)
    line.send_multipart([b"several", b"frames", b"\xc1"])
    bench.hello(honest, "conn")
    counters = bench.stage.counters
    bench.turn(lambda: counters.total() == 6, "the nonsense to be counted")
    assert counters == {"control_malformed": 4, "control_of_unknown_kind": 1, "control_of_unknown_version": 1}


def test_a_query_needs_no_hello(bench: Bench) -> None:
    bench.say(bench.line(b"any name"), StatusQuery())
    bench.turn(lambda: bench.queries == [b"any name"], "the query")
    assert bench.hellos == []


def test_a_stage_that_could_not_be_told_something_is_told_nothing_more_until_it_says_hello_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(endpoints._HIGH_WATER, endpoints.CONTROL, 4)
    with made_bench(monkeypatch) as bench:
        line = bench.line(b"tun.0.1")
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
    line = bench.line(b"any name")
    bench.say(line, Scale(3))
    bench.turn(lambda: bench.queries == [b"any name"], "the wish")
    assert bench.hellos == []


def test_all_numbers_of_a_stage_are_known(bench: Bench) -> None:
    for number in (3, 0, 7):
        bench.hello(bench.line(b"device.%d.1" % number), "device", number)
    bench.hello(bench.line(b"device.3.2"), "device", 3, 2)
    assert bench.hub.numbers("device") == [0, 3, 7]
    assert bench.hub.numbers("tun") == []


def test_another_version_is_said_once_and_whoever_makes_versions_up_does_not_fill_the_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with ExitStack() as stack:
        bench = Bench(stack)
        for version in (*[2] * 20, *range(3, 40)):
            bench.stage.drop(BadControl("control_of_unknown_version", version))
        lines = [line for line in capfd.readouterr().out.splitlines() if "another version" in line]
        assert len(lines) == MAX_VERSIONS
        assert len([line for line in lines if "theirs=2 ours=1" in line]) == 1
        assert bench.stage.counters["control_of_unknown_version"] == 57
