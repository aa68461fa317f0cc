"""A pipe of trains that its tests share: a loop for both ends, and what came out of one."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from tests.turning import turn_until

from stagewire.loop import Loop
from stagewire.pipe.contract import Frame, Receiver, Sender
from stagewire.pipe.direct.receiver import DirectReceiver
from stagewire.pipe.direct.sender import DirectSender
from stagewire.pipe.names import CIPHER_OUT
from stagewire.pipe.pipes import Pipes
from stagewire.pipe.trains import BadTrain

PIPE = CIPHER_OUT


class Reader:
    """The receiving end of a pipe, and what came out of it."""

    receiver: Receiver

    def __init__(self, pipes: Pipes, loop: Loop) -> None:
        self.trains: list[bytes] = []
        self.bad: list[str] = []
        self.turns = 0
        self.laid = 0
        """Trains that lay in shared memory."""
        self.closed = self.broken = False
        self.receiver = pipes.receiver(loop, PIPE, self._take, self._drop)

    def close(self) -> None:
        if not self.closed:
            self.receiver.close()
        self.closed = True

    def _take(self, frames: Sequence[Frame], _now: float) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        self.turns += 1
        self.laid += sum(isinstance(data, mmap.mmap) for data, _, _ in frames)
        self.trains += [data[start:end] for data, start, end in frames]

    def _drop(self, bad: BadTrain) -> None:
        self.bad.append(bad.reason)


class DirectReader(Reader):
    """A Reader whose transport's inside is looked at."""

    receiver: DirectReceiver


class Bench:
    """One loop for both ends of a pipe, turned by hand."""

    def __init__(self, pipes: Pipes) -> None:
        self.pipes, self.loop = pipes, Loop()
        self._opened = ExitStack()

    def reader(self) -> Reader:
        reader = Reader(self.pipes, self.loop)
        self._opened.callback(reader.close)
        return reader

    def sender(self) -> Sender:
        sender = self.pipes.sender(self.loop, PIPE)
        self._opened.callback(sender.close)
        return sender

    def connected(self) -> tuple[Reader, Sender]:
        """Both ends of a pipe that a first train has gone through."""
        reader, sender = self.reader(), self.sender()
        self.send(sender, b"first")
        self.turn(lambda: reader.trains, "the connection")
        return reader, sender

    def close(self) -> None:
        self._opened.close()
        self.pipes.close_listeners()

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)

    def send(self, sender: Sender, train: bytes) -> None:
        self.turn(lambda: sender.send(train), "room")


class DirectBench(Bench):
    """A Bench whose transport's inside is looked at."""

    def reader(self) -> DirectReader:
        return cast("DirectReader", super().reader())

    def sender(self) -> DirectSender:
        return cast("DirectSender", super().sender())

    def connected(self) -> tuple[DirectReader, DirectSender]:
        return cast("tuple[DirectReader, DirectSender]", super().connected())


DIRECT = ("plain", "compiled")
TRANSPORTS = (*DIRECT, "libzmq")


def compiled_for(transport: str) -> Any:
    """What `Pipes.compiled` is for one of TRANSPORTS. Skips the test where it isn't built."""
    return pytest.importorskip("stagewire.linux.pipe_trains") if transport == "compiled" else None


@contextmanager
def pipes_at(folder: Path, monkeypatch: pytest.MonkeyPatch, transport: str = "plain") -> Iterator[Pipes]:
    """The pipes of a run folder that has room for conn-service's, by one of TRANSPORTS."""
    monkeypatch.chdir(folder)  # a Unix socket's name has 107 bytes, which pytest's folders don't leave
    (folder / "conn").mkdir()
    with zmq.Context() as context:
        yield Pipes(context, Path(), libzmq=transport == "libzmq", compiled=compiled_for(transport))


@pytest.fixture(name="bench", params=DIRECT)
def direct_bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DirectBench]:
    with pipes_at(tmp_path, monkeypatch, request.param) as pipes:
        bench = DirectBench(pipes)
        yield bench
        bench.close()


@pytest.fixture(params=TRANSPORTS)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A Bench of each transport in turn."""
    with pipes_at(tmp_path, monkeypatch, request.param) as pipes:
        bench = Bench(pipes)
        yield bench
        bench.close()
