"""A ZeroMQ socket that many processes of one uid storm: all but a few are sent away, and everybody else is served."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from tests.speakers import acting_as, connect_as
from tests.turning import turn_until

from lab.wait import until
from stagewire.linux import uids
from stagewire.linux.peer_credentials import Credentials
from stagewire.loop import Loop
from stagewire.pipe.names import TELEMETRY, Pipe
from stagewire.pipe.pipes import Pipes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

STORM = 1200
AT_ONCE = 100
FEW = 4
"""Connections of a storm that may stay: an end and a beginning can meet."""


class Guarded:
    """A guarded pipe on a loop, and what came out of it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.loop, self._stack = Loop(), stack
        self.heard: list[bytes] = []
        self.refused: list[Credentials] = []
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)

        def refuse(_pipe: Pipe, theirs: Credentials) -> None:
            self.refused.append(theirs)

        self.pipes = Pipes(context, folder, refused=refuse)
        stack.callback(self.pipes.close_listeners)
        self._socket, _ = self.pipes.guarded(self.loop, TELEMETRY)
        self.path = self.pipes.path(TELEMETRY)
        self.path.chmod(0o666)
        self.loop.add(self._socket, lambda _now: self.heard.append(self._socket.recv()))

    def speaker(self, stage: str) -> "zmq.Socket[bytes]":
        with acting_as(uids.uid_of(stage), uids.group()):
            line = self.pipes.connect(TELEMETRY)
            self._stack.callback(line.close)
            turn_until(self.loop, lambda: line.poll(0, zmq.POLLOUT), "the connection")
        return line

    def watched(self) -> int:
        return len(self.pipes.doormen[0]._lines)

    def says(self, line: "zmq.Socket[bytes]", word: bytes) -> None:
        line.send(word)
        turn_until(self.loop, lambda: word in self.heard, "the word")


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, *tmp_path.parents[:2], tmp_path / "status"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    with ExitStack() as stack:
        yield Guarded(Path(), stack)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def ended(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        while line.recv(1000):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_1200_connections_of_one_uid_leave_a_few_and_others_are_served(guarded: Guarded) -> None:
    honest = guarded.speaker("tun")
    guarded.says(honest, b"first")
    turn_until(guarded.loop, lambda: guarded.watched() == 1, "the watch")
    before = descriptors()
    left = 0
    for _ in range(STORM // AT_ONCE):
        storm = [connect_as(uids.uid_of("conn"), guarded.path) for _ in range(AT_ONCE)]
        turn_until(guarded.loop, lambda s=storm: sum(map(ended, s)) >= AT_ONCE - FEW, "the others to be hung up on")  # type: ignore[misc]
        left += AT_ONCE - sum(map(ended, storm))
        guarded.says(honest, b"here %d" % left)
        for line in storm:
            line.close()
        turn_until(guarded.loop, lambda: descriptors() <= before, "the descriptors to be back")
    assert len(guarded.refused) >= STORM - FEW * STORM // AT_ONCE
    assert {theirs.uid for theirs in guarded.refused} == {uids.uid_of("conn")}
    guarded.says(guarded.speaker("conn"), b"back")


def test_a_strangers_connection_is_closed_before_a_word(guarded: Guarded) -> None:
    with connect_as(uids.uid_of("tun") + 128, guarded.path) as stranger:
        turn_until(guarded.loop, lambda: ended(stranger), "the end")
    assert guarded.heard == []


def test_late_news_of_a_connection_that_has_ended_harms_no_other(guarded: Guarded) -> None:
    """The doorman's copy of one connection may have the number under which libzmq tells of another that has ended."""
    before = descriptors()
    with connect_as(uids.uid_of("tun"), guarded.path) as stays:
        goes = connect_as(uids.uid_of("conn"), guarded.path)
        until(lambda: descriptors() == before + 4, 5, "both to be accepted")
        goes.close()
        until(lambda: descriptors() == before + 2, 5, "libzmq to close its end")
        with Path(os.devnull).open() as _in_its_place:  # else the copy would take this number
            turn_until(guarded.loop, lambda: guarded.watched() == 1, "the watch")
        assert guarded.refused == []
        assert not ended(stays)
