"""The door to root's writer: for key-service alone, one writer after another, in a folder that may be wiped."""

import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.wait import until
from stagewire import files
from stagewire.environment import Environment
from stagewire.linux import privileges
from stagewire_cli import writer_door
from stagewire_cli.writer_door import WriterDoor

ANSWERS = (sys.executable, "-c", "import os; os.write(0, b'served')")


class Options:
    """As much of supervisord's as is asked for. `turn` does what its loop does with the sources."""

    def __init__(self) -> None:
        self.mood = 1
        self.sources: dict[int, Any] = {}
        self.said: list[str] = []
        self.logger = SimpleNamespace(warn=self.said.append)
        self.poller = SimpleNamespace(unregister_readable=lambda _descriptor: None)

    def get_socket_map(self) -> dict[int, Any]:
        return self.sources

    def turn(self) -> None:
        for descriptor, source in list(self.sources.items()):
            if source.readable() and select.select([descriptor], [], [], 0)[0]:
                source.handle_read_event()

    def rests(self) -> bool:
        """Turns once; tells whether no writer is at work."""
        self.turn()
        return len(self.sources) == 1


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setattr(writer_door, "_COMMAND", ANSWERS)
    monkeypatch.setattr(writer_door, "REST", 0.0)
    return Options()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    (tmp_path / "wg0").mkdir()
    return Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")


@pytest.fixture
def door(options: Options, environment: Environment) -> Iterator[WriterDoor]:
    door = WriterDoor(SimpleNamespace(options=options), environment)
    door.open()
    yield door
    for descriptor in options.sources:
        os.close(descriptor)


def connected(environment: Environment) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(10)
    line.connect(str(environment.run / "writer"))
    return line


def served(options: Options, environment: Environment) -> bytes:
    with connected(environment) as line:
        options.turn()
        return line.recv(100)


def test_key_service_gets_a_writer(door: WriterDoor, options: Options, environment: Environment) -> None:
    assert served(options, environment) == b"served"
    found = (environment.run / "writer").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, privileges.uid_of("key"))
    until(options.rests, 10, "the writer's end")
    assert list(options.sources.values()) == [door]
    assert [each.name for each in environment.run.iterdir()] == ["writer"]


def test_any_other_uid_gets_none(
    door: WriterDoor, options: Options, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_door, "peer_uid", lambda _connection: 12345)
    assert served(options, environment) == b""
    assert list(options.sources.values()) == [door]


def test_one_writer_after_another_with_rests(
    door: WriterDoor, options: Options, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_door, "_COMMAND", (sys.executable, "-c", "input()"))
    monkeypatch.setattr(writer_door, "REST", 3600.0)
    with connected(environment) as one, connected(environment):
        options.turn()
        assert not door.readable()
        one.sendall(b"\n")
        until(options.rests, 10, "the first one's end")
        assert not door.readable(), "it rests"
        monkeypatch.setattr(door, "_rests_until", time.monotonic())
        options.turn()
        assert len(options.sources) == 2
    until(options.rests, 10, "the second one's end")


def test_a_wiped_folder_gets_its_door_again(door: WriterDoor, options: Options, environment: Environment) -> None:
    files.wipe(environment.run)
    door.look(None)
    assert not environment.run.exists()
    environment.run.mkdir()
    door.look(None)
    assert served(options, environment) == b"served"
    until(options.rests, 10, "the writer's end")


def test_whatever_has_its_name_goes(door: WriterDoor, options: Options, environment: Environment) -> None:
    path = environment.run / "writer"
    path.unlink()
    path.symlink_to("/etc/passwd")
    door.look(None)
    assert path.is_socket()
    assert not path.is_symlink()
    assert options.said == []


def test_where_it_cannot_listen_it_says_so_once(options: Options, environment: Environment) -> None:
    files.wipe(environment.run)
    door = WriterDoor(SimpleNamespace(options=options), environment)
    door.open()
    door.open()
    assert len(options.said) == 1
    assert "expired peers stay in the file" in options.said[0]


def test_a_supervisord_that_starts_anew_has_one_door(
    door: WriterDoor, options: Options, environment: Environment
) -> None:
    os.close(next(iter(options.sources)))  # as supervisord does with all descriptors
    anew = WriterDoor(SimpleNamespace(options=options), environment)
    anew.open()
    assert list(options.sources.values()) == [anew]
    assert door is not anew
    assert served(options, environment) == b"served"
    until(options.rests, 10, "the writer's end")
