"""A pipe of trains that its tests share: a loop for both ends, and what came out of one."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from tests.turning import turn_until

from stagewire.ipc import endpoints
from stagewire.ipc.endpoints import Pipes
from stagewire.ipc.inlet import Inlet
from stagewire.ipc.line import Line
from stagewire.ipc.loop import Loop
from stagewire.ipc.trains import BadTrain
from stagewire.ipc.zmtp import Frame

PIPE = endpoints.CIPHER_OUT


class Reader:
    """An inlet and what came out of it."""

    def __init__(self, pipes: Pipes, loop: Loop) -> None:
        self.trains: list[bytes] = []
        self.bad: list[str] = []
        self.turns = 0
        self.laid = 0
        """Trains that lay in shared memory."""
        self.closed = self.broken = False
        self.inlet: Inlet = pipes.inlet(loop, PIPE, self._take, self._drop)

    def close(self) -> None:
        if not self.closed:
            self.inlet.close()
        self.closed = True

    def _take(self, frames: Sequence[Frame], _now: float) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        self.turns += 1
        self.laid += sum(isinstance(data, mmap.mmap) for data, _, _ in frames)
        self.trains += [data[start:end] for data, start, end in frames]

    def _drop(self, bad: BadTrain) -> None:
        self.bad.append(bad.reason)


class Bench:
    """One loop for both ends, turned by hand."""

    def __init__(self, pipes: Pipes) -> None:
        self.pipes, self.loop = pipes, Loop()
        self._opened = ExitStack()

    def reader(self) -> Reader:
        reader = Reader(self.pipes, self.loop)
        self._opened.callback(reader.close)
        return reader

    def line(self) -> Line:
        line = self.pipes.line(self.loop, PIPE)
        self._opened.callback(line.close)
        return line

    def connected(self) -> tuple[Reader, Line]:
        """Both ends of a pipe that a first train has gone through."""
        reader, line = self.reader(), self.line()
        self.send(line, b"first")
        self.turn(lambda: reader.trains, "the connection")
        return reader, line

    def close(self) -> None:
        self._opened.close()
        self.pipes.close_listeners()

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)

    def send(self, line: Line, train: bytes) -> None:
        self.turn(lambda: line.send(train), "room")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)  # a Unix socket's name has 107 bytes, which pytest's folders don't leave
    (tmp_path / "conn").mkdir()
    with zmq.Context() as context:
        bench = Bench(Pipes(context, Path()))
        yield bench
        bench.close()
