"""One real program, and the test in the place of all others: at the other ends of its real pipes."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, TypeVar

import zmq
from tests.speakers import acting_as

from lab.namespaces import Namespace
from lab.stagewire import executable
from lab.wait import until
from stagewire.control import messages as control_messages
from stagewire.control.messages import FROM_KEY, FROM_STAGE, FromKey, FromStage, Heartbeat, Hello, SnapshotEnd, Welcome
from stagewire.control.telemetry import Counters
from stagewire.environment import Environment
from stagewire.linux import uids
from stagewire.pipe.names import CONTROL, TELEMETRY, Pipe
from stagewire.pipe.pipes import Pipes, prepare_folders
from stagewire.stages import STAGES

M = TypeVar("M")
GENERATION = 77
PATIENCE = 10
"""s; for a program to start on a busy machine."""


class Surroundings:
    """The folders and pipes of interface wg0, and the programs that a test starts in them."""

    def __init__(self, directory: Path, namespace: Namespace) -> None:
        self.directory, self.namespace = directory, namespace
        self._stack = ExitStack()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.pipes = Pipes(self.context, directory / "run" / "wg0")
        self.config = directory / "wg0.conf"

    def __enter__(self) -> Self:
        self._stack.callback(self.context.destroy, linger=0)
        uids.claim(Environment.read({"STAGEWIRE_RUN_DIR": str(self.pipes.run.parent)}, "wg0"), afresh=True)
        for stage in STAGES:
            prepare_folders(self.pipes.run, stage)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def bind(self, pipe: Pipe, number: int | None = None) -> "zmq.Socket[bytes]":
        """The reading end of a pipe; the program under test may connect though it runs as another user."""
        before = os.umask(0)
        try:
            return self._stack.enter_context(self.pipes.bind(pipe, number))
        finally:
            os.umask(before)

    def connect_as(self, pipe: Pipe, stage: str, number: int = 0) -> "zmq.Socket[bytes]":
        """The writing end of a pipe that many stages speak at, as one of them."""
        with acting_as(uids.uid_of(stage, number), uids.group()):
            return self.connect(pipe)

    def connect(self, pipe: Pipe, number: int | None = None) -> "zmq.Socket[bytes]":
        """The writing end, once somebody reads."""
        socket = self._stack.enter_context(self.pipes.connect(pipe, number))
        assert socket.poll(PATIENCE * 1000, zmq.POLLOUT), f"nobody reads {pipe}"
        return socket

    def start(self, program: str, *arguments: str, **env: str) -> "Program":
        """Starts one of the services as supervisord would."""
        variables = {
            "STAGEWIRE_INTERFACE": "wg0",
            "STAGEWIRE_CONFIG": str(self.config),
            "STAGEWIRE_RUN_DIR": str(self.directory / "run"),
            "STAGEWIRE_STATE_DIR": str(self.directory / "state"),
            "STAGEWIRE_LOG_DIR": str(self.directory / "log"),
            "STAGEWIRE_WG_DIR": str(self.directory / "wg"),
            "STAGEWIRE_WORKERS": "1",
        }
        log = self.directory / f"{program}.log"
        with log.open("ab") as output:
            process = self.namespace.popen(executable(program), *arguments, env=variables | env, output=output)
        made = Program(process, log)
        self._stack.callback(made.kill)
        return made


class Program:
    """A service's process and what it has said."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self._log = process, log

    @property
    def log(self) -> str:
        """Everything it wrote."""
        return self._log.read_text()

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(5)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.wait()


class KeyStandIn:
    """key-service's place at `control`: hears what a stage says, tells it what a test wants it to know."""

    def __init__(self, around: Surroundings) -> None:
        self._router = around.bind(CONTROL)
        self._identity = b""
        self.heard: list[FromStage] = []
        self.fault = ""

    def pump(self) -> None:
        """Takes in what has come."""
        while self._router.poll(0):
            self._identity, data = self._router.recv_multipart()
            if not data:  # the greeting of a connection
                continue
            message = FROM_STAGE.unpack_untrusted(data)
            if isinstance(message, Heartbeat):
                self.fault = message.fault
            self.heard.append(message)

    def wait_for(self, kind: type[M], matching: Callable[[M], bool] = lambda _: True) -> M:
        """The first message of a kind from now on, or since the last one waited for."""

        def found() -> M | None:
            self.pump()
            while self.heard:
                message = self.heard.pop(0)
                if isinstance(message, kind) and matching(message):
                    return message
            return None

        answer = until(found, PATIENCE, f"a {kind.__name__}")
        assert answer is not None
        return answer

    def wait_for_fault(self, words: str) -> str:
        """Until the stage says that it can't work, in these words among others."""
        return self.wait_for(Heartbeat, lambda beat: words in beat.fault).fault

    def tell(self, *messages: FromKey) -> None:
        """Says something to the stage that spoke last."""
        for message in messages:
            self._router.send_multipart([self._identity, FROM_KEY.pack(message)])

    def configure(self, *messages: FromKey, version: int = 1) -> None:
        """A whole snapshot."""
        self.tell(Welcome(GENERATION, version), *messages, SnapshotEnd(version))

    def welcome(self, *messages: FromKey) -> Hello:
        """Waits for the stage's Hello, answers with a snapshot, and waits until it is in force."""
        hello = self.wait_for(Hello)
        self.configure(*messages)
        self.wait_for(control_messages.Applied)
        return hello


class CountersStandIn:
    """status-service's place at `telemetry`."""

    def __init__(self, around: Surroundings) -> None:
        self._pull = around.bind(TELEMETRY)
        self.latest: dict[str, int] = {}

    def wait_for(self, **expected: int) -> dict[str, int]:
        """Until these counters have at least these values."""

        def reached() -> bool:
            while self._pull.poll(0):
                message = control_messages.TO_STATUS.unpack_untrusted(self._pull.recv())
                if isinstance(message, Counters):
                    self.latest = dict(zip(message.names, message.values, strict=True))
            return all(self.latest.get(name, 0) >= value for name, value in expected.items())

        until(reached, PATIENCE, f"counters {expected}, now {self.latest}")
        return self.latest


@contextmanager
def surroundings(label: str) -> Iterator[Surroundings]:
    """In a namespace and a folder of their own, with a name short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name, Namespace(label) as namespace:
        directory = Path(name)
        directory.chmod(0o755)
        with Surroundings(directory, namespace) as around:
            yield around
