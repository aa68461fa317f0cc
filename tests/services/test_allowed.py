"""Which party may say what: each pair of a party and a kind of message, at the real sockets of those that read."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.control.spoken import FROM_KEY, TO_KEY, sensible
from tests.services.hub_bench import Bench, made_bench
from tests.speakers import as_one
from tests.turning import turn_until

from lab.wait import until
from stagewire.control import messages
from stagewire.control.messages import ALLOWED, COMMAND, Beat, Heartbeat, Hello, LiveSessions, ToStatus, Welcome
from stagewire.control.questions import StatusQuery
from stagewire.control.speakers import Speaker
from stagewire.control.telemetry import Counters, GatewayReport, LastReport
from stagewire.linux.peer_credentials import Credentials
from stagewire.linux.uids import Place
from stagewire.loop import boot_time
from stagewire.pipe.names import STATUS_QUERY, TELEMETRY
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage
from stagewire.stages import STAGES
from status_service.service import StatusService

SPEAKERS = [stage for stage in STAGES if stage != "key"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with made_bench(monkeypatch) as made:
        yield made


def test_the_table_has_every_party_and_every_kind() -> None:
    assert set(ALLOWED) == {*STAGES, COMMAND}
    words = ALLOWED.values()
    assert frozenset().union(*(each.to_key for each in words)) == set(TO_KEY)
    assert frozenset().union(*(each.from_key for each in words)) == set(FROM_KEY)


@pytest.mark.parametrize("stage", SPEAKERS)
def test_key_service_hears_from_a_stage_what_is_allowed(bench: Bench, stage: str) -> None:
    line = bench.line()
    member = bench.hello(line, stage)

    def happened() -> tuple[int, int]:
        beats = sum(each.spares for each in bench.hellos)
        handled = len(bench.hellos) + len(bench.messages) + len(bench.queries) + beats
        return handled, bench.stage.counters["control_unexpected"]

    for kind in TO_KEY:
        member.welcomed = 0.0  # so that the same hello is a new one
        handled, dropped = happened()
        said = Hello(stage, 0, 1, 1) if kind is Hello else Heartbeat(1, "", 1) if kind is Heartbeat else sensible(kind)
        bench.say(line, said)
        bench.turn(lambda: happened() != (handled, dropped), kind.__name__)  # noqa: B023 - called at once
        allowed = kind in ALLOWED[stage].to_key
        assert happened() == ((handled + 1, dropped) if allowed else (handled, dropped + 1)), kind


@pytest.mark.parametrize("stage", ["key", COMMAND, "nonsense", ""])
def test_no_other_party_may_say_hello(bench: Bench, stage: str) -> None:
    bench.say(bench.line(), Hello(stage, 0, 1, 1))
    bench.turn(lambda: bench.stage.counters["control_unexpected"], "the hello to be counted")
    assert bench.hellos == []


@pytest.mark.parametrize("kind", [kind for kind in TO_KEY if kind is not Hello])
def test_a_stranger_is_a_command_or_is_asked_for_a_hello(bench: Bench, kind: type) -> None:
    line = bench.line()
    bench.say(line, sensible(kind))
    if kind in ALLOWED[COMMAND].to_key:
        bench.turn(lambda: bench.queries, kind.__name__)
    else:
        assert bench.heard(line) == Beat(0)
    assert not bench.messages
    assert not bench.hellos


class Handler:
    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.heard: list[type] = []

    def hello(self) -> list[Hello | LiveSessions]:
        return [Hello(self.stage, 0, 1, 1)]

    def on_control(self, message: Any, _now: float) -> None:
        self.heard.append(type(message))


@pytest.mark.parametrize("stage", SPEAKERS)
def test_a_stage_hears_from_key_service_what_is_allowed(bench: Bench, stage: str) -> None:
    pipes, loop, counters = bench.stage.pipes, bench.stage.loop, bench.stage.counters
    handler, hellos = Handler(stage), bench.hellos
    speaker: Any = SimpleNamespace(
        name=stage, number=0, generation=1, pipes=pipes, loop=loop, counters=counters, log=bench.stage.log,
        fault="", bequest=SimpleNamespace(spares=0),
    )  # fmt: skip
    ControlLine(speaker, handler)
    bench.turn(lambda: hellos, "the hello")
    for kind in FROM_KEY:
        bench.hub.send(hellos[0].identity, sensible(kind))
    bench.hub.send(hellos[0].identity, Welcome(1, 1))
    bench.turn(lambda: handler.heard[-1:] == [Welcome] and len(handler.heard) > 1, "the last")
    allowed = [kind for kind in FROM_KEY if kind in ALLOWED[stage].from_key and kind is not Beat]
    assert handler.heard == [*allowed, Welcome]
    assert counters["control_unexpected"] == len(FROM_KEY) - len(allowed) - 1


class Status:
    """A status-service on its own loop, and the pipes to it."""

    def __init__(self) -> None:
        self.stage = Stage("status")
        self.service = StatusService(self.stage)
        self.service.set_up()
        self.telemetry = self.stage.pipes.connect(TELEMETRY)
        self.query = self.stage.pipes.connect(STATUS_QUERY)

    def ask(self, message: ToStatus) -> Any:
        self.query.send(messages.TO_STATUS.pack(message))
        turn_until(self.stage.loop, lambda: self.query.poll(0), "the answer")
        return messages.TO_STATUS.unpack_untrusted(self.query.recv())

    @property
    def dropped(self) -> int:
        return self.stage.counters["control_unexpected"]


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Status]:
    for variable in ("RUN", "STATE", "LOG"):
        monkeypatch.setenv(f"STAGEWIRE_{variable}_DIR", str(tmp_path / variable.lower()))
    as_one(monkeypatch)
    made = Status()
    yield made
    made.stage.pipes.close_listeners()
    made.stage.pipes.context.destroy(linger=0)


@pytest.mark.parametrize("party", [*STAGES, COMMAND, "nonsense"])
def test_status_service_hears_what_is_allowed(status: Status, party: str) -> None:
    for kind in ToStatus.__args__:
        if kind in (GatewayReport, LastReport):  # its sender's uid alone tells whose it is
            continue
        dropped = status.dropped
        message = Counters(party, 0, 1, 1, ("no_peer",), (7,)) if kind is Counters else sensible(kind)
        status.telemetry.send(messages.TO_STATUS.pack(message))
        if kind is Counters and Counters in messages.allowed(party).to_status:
            until(lambda: "no_peer" in str(status.ask(StatusQuery())), 5, "the counters to be known")
            assert status.dropped == dropped
        else:
            turn_until(status.stage.loop, lambda: status.dropped > dropped, "the drop")  # noqa: B023 - called at once


def test_a_report_of_peers_is_key_services_alone(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    report = messages.TO_STATUS.pack(GatewayReport(True, (), ()))
    status.telemetry.send(report)
    turn_until(status.stage.loop, lambda: status.service._peers.hears(boot_time()), "the report")
    theirs = Speaker(Credentials(1, 2, 3), frozenset({Place("tun", 0)}), is_command=False)
    monkeypatch.setattr(status.service._speakers, "of", lambda _: theirs)
    status.telemetry.send(report)
    turn_until(status.stage.loop, lambda: status.stage.counters["speaker_refused"] == 1, "the refusal")
    assert status.dropped == 0


def test_status_service_answers_a_command_and_counts_what_is_no_question(status: Status) -> None:
    for kind in ToStatus.__args__:
        dropped = status.dropped
        status.ask(sensible(kind))
        assert status.dropped == dropped + (kind not in ALLOWED[COMMAND].to_status)
