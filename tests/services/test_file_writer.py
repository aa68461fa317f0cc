"""How key-service asks root's writer: without waiting, again after a refusal, and with one line in the log."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from key_service import file_writer
from key_service.file_writer import FIRST_PAUSE, FileWriter
from stagewire.config import operations


class Loop:
    """Holds the sources, and calls one's handler on demand."""

    def __init__(self) -> None:
        self.sources: dict[int, Any] = {}

    def add(self, source: int, handler: Any) -> None:
        self.sources[source] = handler

    def remove(self, source: int) -> None:
        del self.sources[source]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "writer"))
        opened.listen()
        opened.settimeout(10)
        yield opened


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(file_writer, "boot_time", lambda: 0.0)
    said: list[str] = []
    log = SimpleNamespace(warning=lambda _what, reason: said.append(reason))
    return SimpleNamespace(environment=SimpleNamespace(run=tmp_path), loop=Loop(), log=log, said=said)


def answer(stage: Any, listener: socket.socket, said: bytes, now: float) -> None:
    line, _ = listener.accept()
    with line:
        assert json.loads(line.recv(4096)) == {"version": 1, "do": "ExpirePeers"}
        line.sendall(said)
        (handler,) = stage.loop.sources.values()
        handler(now)
    assert not stage.loop.sources


def test_it_asks_once_and_rests(stage: Any, listener: socket.socket) -> None:
    one = FileWriter(cast("Any", stage))
    assert one.next_deadline() is None
    one.ask()
    one.act(0)
    answer(stage, listener, b'{"error": ""}\n', 1)
    assert one.next_deadline() is None
    assert stage.said == []


def test_a_refusal_is_logged_once_and_tried_again_ever_less_often(stage: Any, listener: socket.socket) -> None:
    one = FileWriter(cast("Any", stage))
    one.ask()
    now, waits = 0.0, []
    for _ in range(14):
        one.act(now)
        answer(stage, listener, b'{"error": "the disk is full"}\n', now)
        until = one.next_deadline()
        assert until is not None
        waits.append(until - now)
        one.act(until - 0.1)
        assert not stage.loop.sources
        now = until
    assert waits[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert waits[-1] == file_writer.LAST_PAUSE
    assert stage.said == ["the disk is full"]
    one.act(now)
    answer(stage, listener, b'{"error": ""}\n', now)
    assert one.next_deadline() is None


def test_whoever_expires_meanwhile_is_asked_for_as_well(stage: Any, listener: socket.socket) -> None:
    one = FileWriter(cast("Any", stage))
    one.ask()
    one.act(0)
    one.ask()
    answer(stage, listener, b'{"error": ""}\n', 3)
    assert one.next_deadline() == 3


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"error": ', b"\xff"])
def test_no_good_answer_is_a_refusal(stage: Any, listener: socket.socket, said: bytes) -> None:
    one = FileWriter(cast("Any", stage))
    one.ask()
    one.act(0)
    line, _ = listener.accept()
    line.sendall(said)
    line.close()
    (handler,) = stage.loop.sources.values()
    handler(1)
    assert one.next_deadline() == 1 + FIRST_PAUSE
    assert stage.said == ["root's writer ended without an answer"]


def test_without_a_supervisord_it_tries_again(stage: Any) -> None:
    one = FileWriter(cast("Any", stage))
    one.ask()
    one.act(0)
    assert one.next_deadline() == FIRST_PAUSE
    assert "supervisord starts no writer" in stage.said[0]


def test_a_writer_that_hangs_is_given_up(stage: Any, listener: socket.socket) -> None:
    one = FileWriter(cast("Any", stage))
    one.ask()
    one.act(0)
    until = one.next_deadline()
    assert until == file_writer.PATIENCE
    one.act(until)
    assert not stage.loop.sources
    assert one.next_deadline() == until + FIRST_PAUSE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# stagewire: Expires = 2001-01-01T00:00:00Z\n", True),
        ("  #stagewire:expires=2001-01-01\r\n", True),
        ("# stagewire off: # stagewire: Expires = 2001-01-01T00:00:00Z\n", False),
        ("# stagewire: Expires = 2999-01-01T00:00:00Z\n", False),
        ("# stagewire: Expires = soon\n", False),
        ("# stagewire: Expires = 2999-01-01\n# stagewire: Expires = 2001-01-01\n", True),
        ("", False),
    ],
)
def test_a_starting_key_service_knows_whether_to_ask(text: str, found: bool) -> None:
    assert operations.has_expired(text, 1_700_000_000) is found
