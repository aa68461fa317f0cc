"""A hub of key-service's on a real socket, with lines to it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq
from tests.speakers import as_one
from tests.turning import turn_until

from key_service.hub import Hub, Member
from stagewire.control.messages import FROM_KEY, FROM_STAGE, FromKey, FromStage, Hello
from stagewire.linux import sandbox
from stagewire.pipe.names import CONTROL
from stagewire.process.stage import Stage


class Bench:
    """A hub on a stage's own loop, what it was told, and stages that connect to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.stage = Stage("key")
        stack.callback(self.stage.pipes.context.destroy, linger=0)
        stack.callback(self.stage.pipes.close_listeners)
        self.hellos: list[Member] = []
        self.generations: dict[int, int] = {}
        self.messages: list[tuple[Member, FromStage]] = []
        self.queries: list[bytes] = []
        self.lines: list[zmq.Socket[bytes]] = []  # until the context is destroyed
        self.hub = Hub(self.stage, self.generations.get)
        self.hub.serve(
            self.hellos.append,
            lambda member, message, _now: self.messages.append((member, message)),
            lambda identity, _message: self.queries.append(identity),
        )

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.stage.loop, condition, what)

    def line(self) -> "zmq.Socket[bytes]":
        line = self.stage.pipes.connect(CONTROL)
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
        as_one(monkeypatch)
        # A real key-service leaves the host's network for good; the process of the tests stays.
        monkeypatch.setattr(sandbox, "prepare", lambda _stage: [])
        yield Bench(stack)
