"""No process can attach a descriptor to what it says where none belongs: closing it could hold up the reader."""

import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.pipe.direct.test_hostile_descriptors import refuses_descriptors
from tests.speakers import admission

from key_service import file_writer, wg_socket
from stagewire.control import requests
from stagewire.control.session_keys import SessionsGiver
from stagewire.environment import Environment
from stagewire.linux import root_socket
from stagewire.loop import Loop
from stagewire.pipe.names import CAPTURE, RELOAD, SESSIONS, WRITER
from stagewire.process.bell import Bell, Ringer
from stagewire.process.hand_down import Bequest
from stagewire_cli import capturing, in_force, key_door

pytestmark = pytest.mark.skipif(not refuses_descriptors(), reason="this kernel lets everybody attach descriptors")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        for each in ("key", "device"):
            (Path(name) / "wg0" / each).mkdir(parents=True)
        yield Path(name) / "wg0"


def expect_refusal(line: socket.socket) -> None:
    with pytest.raises(PermissionError):
        socket.send_fds(line, [b"words"], [0])
    line.send(b"words")


def sessions(folder: Path, stack: ExitStack) -> Path:
    made = SessionsGiver(Loop(), folder / "door", admission(SESSIONS), lambda _index: None)
    stack.callback(made._listener.close)
    return folder / "door"


def wg(folder: Path, stack: ExitStack) -> Path:
    opened = wg_socket.listen(folder / "door")
    assert opened is not None
    stack.callback(opened.close)
    return folder / "door"


def of_root(folder: Path, stack: ExitStack) -> Path:
    stack.callback(root_socket.listen(folder / "door", 4).close)
    return folder / "door"


def spares(folder: Path, stack: ExitStack) -> Path:
    made = Bequest(Loop(), folder, 0)
    stack.callback(made.close)
    return made.path


@pytest.mark.parametrize("listens", [sessions, wg, of_root, spares])
def test_a_door_takes_no_descriptor(folder: Path, listens: Callable[[Path, ExitStack], Path]) -> None:
    with ExitStack() as stack:
        path = listens(folder, stack)
        kind = socket.SOCK_SEQPACKET if listens in (sessions, spares) else socket.SOCK_STREAM
        with socket.socket(socket.AF_UNIX, kind) as line:
            line.connect(str(path))
            expect_refusal(line)


def test_a_bell_takes_no_descriptor(folder: Path) -> None:
    bell, ringer = Bell(folder), Ringer(folder)
    with pytest.raises(PermissionError):
        ringer._socket.sendmsg(
            [b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))], 0, str(folder / "bell")
        )
    ringer.ring()
    assert bell._socket.recv(1) == b"\0"


def command(folder: Path) -> socket.socket:
    environment = Environment.read({"STAGEWIRE_RUN_DIR": str(folder.parent)}, "wg0")
    return key_door._connected(environment, requests.Confirm(), "")


def capture(folder: Path) -> socket.socket:
    return capturing._connected(Environment.read({"STAGEWIRE_RUN_DIR": str(folder.parent)}, "wg0"), 0)


def asks_for_the_writer(folder: Path) -> socket.socket:
    loop = Loop()
    stage = SimpleNamespace(environment=SimpleNamespace(run=folder), loop=loop, log=None)
    asks = file_writer.FileWriter(cast("Any", stage))
    asks.ask()
    asks.act(asks.next_deadline() or 0.0)
    assert asks._line is not None
    return asks._line


@pytest.mark.parametrize(
    ("connects", "path", "kind"),
    [
        (command, RELOAD.path, socket.SOCK_STREAM),
        (capture, f"{CAPTURE.path}.0", socket.SOCK_SEQPACKET),
        (asks_for_the_writer, WRITER, socket.SOCK_STREAM),
    ],
)
def test_an_end_that_connects_takes_no_descriptor(
    folder: Path, connects: Callable[[Path], socket.socket], path: str, kind: int
) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(folder / path))
        listener.listen()
        with connects(folder), listener.accept()[0] as line:
            expect_refusal(line)


def test_a_command_that_asks_the_wg_socket_takes_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def received(line: socket.socket, _within: float) -> bytes:
        with listener.accept()[0] as theirs:
            expect_refusal(theirs)
        return b"errno=0\n"

    monkeypatch.setattr(in_force, "received", received)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "wg"))
        listener.listen()
        assert in_force.ask(folder / "wg") == [("errno", "0")]
