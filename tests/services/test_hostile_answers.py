"""A hostile stage answers or reports: no command of root's and no other stage ends by a number or a text."""

import io
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from rich.console import Console
from tests import schemas
from tests.fuzz.doors.control import message
from tests.fuzz.doors.door import Given

from key_service.workers import Workers
from stagewire.control import query
from stagewire.control.event import KINDS, Event, as_json
from stagewire.control.messages import TO_STATUS
from stagewire.control.status import CountersStatus, EventsStatus, GatewayStatus, WorkersStatus
from stagewire.control.telemetry import Counters, GatewayReport, PeerReport, PeerTraffic, Traffic
from stagewire.environment import Environment
from stagewire.limits import MAX_COUNT
from stagewire.logs import Log
from stagewire.pipe.names import MAX_REPORT
from stagewire.proto.cookie import MacSealer
from stagewire.proto.peer import Peer
from stagewire.proto.timers import HandshakeTimers
from stagewire.reasons import Incident
from stagewire_cli import events, layout, metrics, show, top_view
from stagewire_cli.failures import Failed
from stagewire_cli.top_model import Model, Sample, View
from status_service.bounded import MAX_ALLOWED_IPS, MAX_TEXT
from status_service.happenings import Happenings
from status_service.history import History
from status_service.peers import Peers
from status_service.presence import Presence
from status_service.ring import Ring
from status_service.tally import Tally

ANSWERS = 100
MOST = (1 << 64) - 1
T, UNIX = 1000.0, 1_800_000_000.0


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    found = Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    found.run.mkdir()
    return found


class Answered:
    """Stands for a question to a service."""

    def __init__(self, said: object) -> None:
        self._said = said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self) -> bool:
        return True

    def answer(self) -> object:
        return self._said


def pages(environment: Environment, gateway: GatewayStatus, counted: CountersStatus) -> str:
    """What `stagewire status`, its --json and `stagewire top` print of these answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "asking_key_service", lambda _: Answered(query._cleaned(gateway)))
        patch.setattr(query, "asking_status_service", lambda _: Answered(query._cleaned(counted)))
        status = show.gather(environment)
        assert status is not None
        schemas.check(status, "status")
        model = Model()
        for at in (T, T + 2):
            model.take(Sample(at, UNIX, query._cleaned(gateway), query._cleaned(counted), {}))
    screen = Console(file=io.StringIO(), width=100)
    screen.print(top_view.draw(model, View(), 100, 40))
    return "\n".join(layout.lines(status, 80)) + json.dumps(status, allow_nan=False)


@pytest.mark.attack("hostile-key", "hostile-status")
def test_every_answer_can_be_shown(environment: Environment) -> None:
    luck = random.Random(16)
    for _ in range(ANSWERS):
        given = Given(luck.randbytes(luck.randrange(2000)))
        assert pages(environment, message(GatewayStatus, given), message(CountersStatus, given))


@pytest.mark.attack("hostile-key")
def test_a_wanted_number_of_workers_without_bound_takes_no_memory(environment: Environment) -> None:
    gateway = message(GatewayStatus, Given(b""))
    assert pages(environment, replace(gateway, workers=WorkersStatus(MOST, (), 0)), CountersStatus(()))


@pytest.mark.attack("hostile-status")
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_an_event_of_no_time_can_be_shown(number: float) -> None:
    for kind in (*KINDS, "another"):
        told = EventsStatus((Event(kind, unix_s=number, seconds=number),), 0, False)
        (event,) = query._cleaned(told).events
        assert events.line(event)
        assert json.dumps(as_json(event, "wg0"), allow_nan=False)


@pytest.mark.attack("hostile-status")
def test_events_whose_ids_do_not_grow_are_read_once(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    same = tuple(Event("rekeyed", id=7) for _ in range(events.AT_ONCE))
    monkeypatch.setattr(query, "events", lambda *_: EventsStatus(same, 7, False))
    reader = events.Reader(environment, tuple(KINDS), lambda _: None)
    assert [event.id for event in reader.after(0, follow=False)] == [7]


@pytest.mark.attack("hostile-device", "hostile-conn")
def test_counts_without_bound_end_no_status_service() -> None:
    tally = Tally()
    for generation in range(1, 5):
        incidents = (Incident("bad_mac1", b"", bytes(6), MOST, MOST),)
        tally.take(Counters("conn", 0, generation, 1, ("datagrams_in",), (MOST,), incidents), T)
    counted = tally.status(T)
    assert counted.services[0].counters == {"datagrams_in": MAX_COUNT}
    assert TO_STATUS.unpack_untrusted(TO_STATUS.pack(counted)) == counted


@pytest.mark.attack("hostile-key")
def test_long_texts_of_key_service_take_little_memory_of_status_service() -> None:
    long = "x" * (MAX_REPORT // 4)
    happenings = Happenings(Log(), Peers(), Presence(UNIX, []), Ring(), History())
    told = tuple(Event(kind, name=long, what=long, before=long, changes=(long,) * 99) for kind in KINDS)
    peers = (PeerReport(bytes(32), long, long, MOST, MOST, 0.0, endpoint=long, heard_s_ago=0.0),)
    happenings.on_report(GatewayReport(True, peers, (), told), T, UNIX)
    kept = happenings.ring.after(0, KINDS, 99)[0]
    assert kept
    for event in kept:
        texts = [event.name, event.what, event.before, event.endpoint, event.public_key, *event.changes]
        assert sum(map(len, texts)) <= 8 * MAX_TEXT
    (known,) = happenings._peers.known.values()
    assert len(known.report.name + known.report.allowed_ips + known.report.endpoint) == 2 * MAX_TEXT + MAX_ALLOWED_IPS


@pytest.mark.attack("hostile-device")
def test_no_worker_makes_a_count_of_bytes_that_wg_cannot_read() -> None:
    peer = Peer(bytes(32), bytes(32), 0, False, MacSealer(bytes(32)), HandshakeTimers(lambda: 0.0))
    totals = list[int]()
    workers = SimpleNamespace(
        _handshaker=SimpleNamespace(peers={bytes(32): peer}),
        _traffic={},
        _traffic_before={},
        touched=lambda _key: None,
        at_home=lambda _key, _member: True,
        _quotas=SimpleNamespace(on_traffic=lambda *counted: totals.append(counted[-1])),
    )
    member = SimpleNamespace(number=0, generation=1)
    for count in (MOST, 0, MOST, -MOST, MOST):
        Workers.on_traffic(workers, member, PeerTraffic((Traffic(bytes(32), count, count),)), T)  # type: ignore[arg-type]
        assert 0 <= peer.tx_bytes == peer.rx_bytes <= MAX_COUNT
        assert 0 <= totals.pop() <= MAX_COUNT


@pytest.mark.attack("hostile-device")
def test_bytes_without_bound_end_neither_key_service_nor_status_service() -> None:
    """A worker counts its peers' bytes, key-service adds them up and reports the sums."""
    sums = GatewayReport(True, (PeerReport(bytes(32), "", "", 5 * MOST, 5 * MOST, 0.0, heard_s_ago=0.0),), ())
    happenings = Happenings(Log(), Peers(), Presence(UNIX, []), Ring(), History())
    for _ in range(3):
        report = TO_STATUS.unpack_untrusted(TO_STATUS.pack(sums))
        assert isinstance(report, GatewayReport)
        happenings.on_report(report, T, UNIX)
        happenings.on_report(GatewayReport(True, (replace(report.peers[0], tx_bytes=0, rx_bytes=0),), ()), T, UNIX)
    happenings.on_report(GatewayReport(True, (), (bytes(32),)), T, UNIX)
    (ended,) = (each for each in happenings.ring.after(0, KINDS, 99)[0] if each.kind == "disconnected")
    assert ended.rx_bytes == ended.tx_bytes == MAX_COUNT
    assert TO_STATUS.pack(EventsStatus((ended,), 0, False))


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"


@contextmanager
def serving(said: Callable[[socket.socket], None]) -> Iterator[str]:
    """A status-service's page of metrics, at this URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                line, _ = listener.accept()
                with line:
                    line.recv(4096)
                    said(line)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
    thread.join()


def read_metrics(environment: Environment, url: str) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "status_service", lambda _: query._cleaned(CountersStatus((), metrics=url)))
        return metrics.text(environment)


@pytest.mark.attack("hostile-status")
def test_metrics_that_do_not_end_end_the_command(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST", 1 << 20)

    def forever(line: socket.socket) -> None:
        line.sendall(PAGE)
        while True:
            line.sendall(bytes(1 << 16))

    with serving(forever) as url, pytest.raises(Failed, match="the answer does not end"):
        read_metrics(environment, url)


@pytest.mark.attack("hostile-status")
def test_metrics_that_drip_end_the_command(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "WHOLE_WITHIN", 0.1)

    def drip(line: socket.socket) -> None:
        line.sendall(PAGE)
        while True:
            line.sendall(b"x")

    with serving(drip) as url, pytest.raises(Failed, match="the answer does not end"):
        read_metrics(environment, url)


@pytest.mark.attack("hostile-status")
@pytest.mark.parametrize("head", [b"HTTP/1.1 100 Continue\r\n\r\n", b"x"])
def test_metrics_whose_head_does_not_end_end_the_command(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(metrics, "WHOLE_WITHIN", 0.1)

    def drip(line: socket.socket) -> None:
        line.sendall(b"" if head.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            line.sendall(head)
            time.sleep(0.001)

    with serving(drip) as url, pytest.raises(Failed):
        read_metrics(environment, url)


@pytest.mark.attack("hostile-status")
@pytest.mark.parametrize(
    "url",
    ["http://192.0.2.77:80/", "http://example.org/", "http://[::1/", "http://127.0.0.1:99999/", "http://", "http:///x"],
)
def test_metrics_are_read_from_an_address_of_this_host_alone(environment: Environment, url: str) -> None:
    with pytest.raises(Failed) as refused:
        read_metrics(environment, url)
    assert "\n" not in str(refused.value)


@pytest.mark.attack("hostile-status")
def test_metrics_tell_a_terminal_nothing(environment: Environment) -> None:
    with serving(lambda line: line.sendall(PAGE + b'a{b="\x1b[2J\xc2\x9b"} 1\n\r\n')) as url:
        found = read_metrics(environment, url).decode()
        assert all(line.isprintable() for line in found.splitlines())
        assert found.startswith('a{b="')
    with (
        serving(lambda line: line.sendall(b"HTTP/1.1 500 \x1b]0;x\x07\r\n\r\n")) as url,
        pytest.raises(Failed) as failed,
    ):
        read_metrics(environment, url)
    assert str(failed.value).isprintable()
