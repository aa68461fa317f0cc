"""The configuration socket as a server: what is pipelined, who reads slowly, and how many come."""

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from key_service import wg_socket
from key_service.wg_socket import MAX_CONNECTIONS, WgSocket
from lab.wait import until
from stagewire.config import uapi
from stagewire.logs import Log
from stagewire.loop import Loop, boot_time


class Live:
    """In LiveConfiguration's place: remembers changes, and answers when the test says so."""

    def __init__(self) -> None:
        self.changes: list[uapi.Change] = []
        self.done: list[Any] = []
        self.at_once = True
        self.peers = 1

    def state(self) -> uapi.InterfaceState:
        return uapi.InterfaceState(
            listen_port=7, peers=(uapi.PeerState(number.to_bytes(32)) for number in range(self.peers))
        )

    def change(self, change: uapi.Change, done: Any, _told: Any) -> None:
        self.changes.append(change)
        if self.at_once:
            done(0)
        else:
            self.done.append(done)


class Served:
    """The socket upon a loop that the test turns."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path, self._stack = path, stack
        self.live, self.loop = Live(), Loop()
        listener = wg_socket.listen(path)
        assert listener is not None
        stack.enter_context(listener)
        self.server = WgSocket(self.loop, listener, self.live, Log())  # type: ignore[arg-type]

    def client(self, text: str = "") -> socket.socket:
        opened = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        opened.setblocking(False)
        opened.connect(str(self.path))
        self.turn()
        opened.send(text.encode())
        self.turn()
        return opened

    def turn(self, times: int = 30) -> None:
        """As long as there is something to do."""
        for _ in range(times):
            if not self.loop._serve(0.0):
                return

    def read(self, client: socket.socket) -> bytes:
        """What has come."""
        try:
            return client.recv(1 << 20)
        except BlockingIOError:
            return b"nothing"


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as folder, ExitStack() as stack:
        served = Served(Path(folder) / "wg" / "x.sock", stack)
        yield served
        for client in served.server._clients.values():
            client.connection.close()


def test_operations_are_answered_one_after_another(served: Served) -> None:
    served.live.at_once = False
    client = served.client("set=1\nfwmark=1\n\nget=1\n\nset=1\nrabbit=1\n\nset=1\nfwmark=2\n\n")
    assert served.read(client) == b"nothing"
    assert len(served.live.changes) == 1, "the next begins when the one before has been answered"
    served.live.done.pop()(0)
    served.turn()
    answer = served.read(client)
    assert answer.startswith(b"errno=0\n\nlisten_port=7\n")
    assert answer.endswith(b"errno=0\n\nerrno=-22\n\n")
    served.live.done.pop()(98)
    served.turn()
    assert served.read(client) == b"errno=-98\n\n"
    assert [change.fwmark for change in served.live.changes] == [1, 2]


def test_the_end_of_its_words_is_not_the_end_of_its_answers(served: Served) -> None:
    client = served.client("get=1\n\nset=1\nfwmark=1\n")
    client.shutdown(socket.SHUT_WR)
    served.turn()
    assert served.read(client).endswith(b"errno=0\n\nerrno=-71\n\n")
    assert served.read(client) == b""
    assert served.live.changes == []


def test_what_is_no_operation_ends_the_connection(served: Served) -> None:
    client = served.client("hello\n\nset=1\nfwmark=1\n\n")
    assert served.read(client) == b""
    assert served.live.changes == []


def test_who_leaves_before_the_answer_is_forgotten(served: Served) -> None:
    served.live.at_once = False
    client = served.client("set=1\nfwmark=1\n\n")
    client.close()
    served.turn()
    served.live.done.pop()(0)
    served.turn()
    assert served.read(served.client("get=1\n\n")).endswith(b"errno=0\n\n")


def test_a_slow_reader_gets_all_of_it_and_keeps_nobody_waiting(served: Served) -> None:
    served.live.peers = 20_000
    slow = served.client("get=1\n\n")
    served.live.peers = 1
    assert served.read(served.client("get=1\n\n")).endswith(b"errno=0\n\n")
    # While its answer leaves it isn't listened to.
    slow.send(b"set=1\nfwmark=1\n\n")
    served.turn()
    assert served.live.changes == []
    got = b""

    def complete() -> bool:
        nonlocal got
        served.turn()
        more = served.read(slow)
        got += b"" if more == b"nothing" else more
        return got.endswith(b"errno=0\n\nerrno=0\n\n")

    until(complete, 20, "the whole answer")
    assert got.count(b"public_key=") == 20_000
    assert len(served.live.changes) == 1


def test_the_one_idle_longest_makes_room(served: Served) -> None:
    clients = [served.client("get=1\n\n") for _ in range(MAX_CONNECTIONS)]
    for client in clients:
        assert served.read(client).endswith(b"errno=0\n\n")
    clients[0].send(b"get=1\n")  # no longer the one idle longest
    served.turn()
    clients.append(served.client("get=1\n\n"))
    assert served.read(clients[-1]).endswith(b"errno=0\n\n")
    assert served.read(clients[1]) == b""
    clients[0].send(b"\n")
    served.turn()
    assert served.read(clients[0]).endswith(b"errno=0\n\n")


def test_the_silent_are_let_go(served: Served) -> None:
    client = served.client()
    assert served.server.next_deadline() == pytest.approx(boot_time() + wg_socket.IDLE_AFTER, abs=5)
    served.server.act(boot_time())
    assert served.read(client) == b"nothing"
    served.server.act(boot_time() + wg_socket.IDLE_AFTER + 1)
    assert served.read(client) == b""
    assert served.server.next_deadline() is None


def test_one_socket_is_served_by_one(served: Served) -> None:
    assert wg_socket.listen(served.path) is None
    assert served.path.stat().st_mode & 0o777 == 0o600
    stale = served.path.with_name("stale.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    begun = time.monotonic()
    fresh = wg_socket.listen(stale)
    assert fresh is not None
    fresh.close()
    assert time.monotonic() - begun < 1


def test_has_its_name_only_once_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wg` unlinks a socket that refuses it: one that is bound but doesn't listen yet would be lost to it."""
    path, seen, listens = tmp_path / "wg9.sock", [], socket.socket.listen

    def listen(opened: socket.socket, backlog: int) -> None:
        seen.append(path.exists())
        listens(opened, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    opened = wg_socket.listen(path)
    assert opened is not None
    opened.close()
    assert seen == [False]
    assert [entry.name for entry in tmp_path.iterdir()] == ["wg9.sock"]
