"""Lists every pipe once: its binder, the processes that connect, its kind, how much it holds.

The stage that reads a pipe binds it, in a folder that only that stage can write: `<run>/<binder>/<name>`, and `.<n>` for
worker n. All of the services' group can connect. `pipes` opens what is listed here.

High-water marks are small, because what waits in a pipe is delay.
"""

from dataclasses import dataclass
from typing import Final

import zmq

from stagewire.stages import STAGES, WORKER

WRITER: Final = "writer"
"""The socket in the interface's run folder where supervisord starts root's writer of the configuration file, for
key-service alone. It is no pipe between stages."""
COMMAND: Final = "command"
"""The command line, which connects without being a stage."""
MAX_TRAIN: Final = 256 * 1024
"""Bytes; `trains.MAX_FRAME` of packets and their headers. The reader ends the connection of a sender that exceeds it."""
MAX_CONTROL: Final = 8 * 1024 * 1024
"""Bytes; the longest message is a peer with 130,560 prefixes."""
MAX_SAID: Final = 64 * 1024
"""Bytes; the longest message of a stage is a worker's report of the traffic of 1,024 peers."""
MAX_REPORT: Final = 64 * 1024
"""Bytes of a stage's counters."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Holds the socket types of a pipe's two ends. None: the pipe isn't ZeroMQ's."""

    word: str
    binds: int | None = None
    connects: int | None = None


TRAINS: Final = Kind("trains", zmq.PULL, zmq.PUSH)
REPORTS: Final = Kind("reports", zmq.PULL, zmq.PUSH)
MESSAGES: Final = Kind("messages", zmq.ROUTER, zmq.DEALER)
QUESTIONS: Final = Kind("questions", zmq.REP, zmq.REQ)
DESCRIPTORS: Final = Kind("descriptors")
"""Goes through a Unix socket of packets, which alone passes descriptors."""
TEXT: Final = Kind("text")
"""Goes through a Unix stream socket."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Says how much a pipe holds."""

    message: int
    """Bytes of one message."""
    high_water: int
    """Messages that wait at each end where libzmq is."""
    inward: int = 0
    """Bytes of one message to the binder of a pipe of ZeroMQ's; 0: as `message`."""
    inward_high_water: int = 0
    """Messages that wait at the binder; 0: as `high_water`. With `inward` it bounds what a speaker makes the binder keep."""
    read: int = 0
    """Bytes that a turn takes from one sender of trains; then the other sources get theirs."""
    queue: int = 0
    """Bytes of trains that wait in the kernel, which counts its own administration, some 1,000 bytes a message."""
    memory: bool = False
    """Allows long trains to lie in memory that both ends share, beside what waits in the kernel."""


@dataclass(frozen=True, slots=True)
class Pipe:
    """Holds one line of the table."""

    binder: str
    name: str
    kind: Kind
    connects: tuple[str, ...]
    """Stages that connect, or COMMAND."""
    limits: Limits | None = None
    per_worker: bool = False

    @property
    def path(self) -> str:
        """Names the socket's file below the interface's run folder, without a worker's number."""
        return f"{self.binder}/{self.name}"

    def __str__(self) -> str:
        return self.path


_DATA: Final = Limits(MAX_TRAIN, 4, read=128 * 1024, queue=96 * 1024, memory=True)
"""A turn takes one long train, or many short ones, and what lies in memory. Long trains wait in memory, so little waits
beside it."""
_HANDSHAKES: Final = Limits(MAX_TRAIN, 64, read=4 * 1024, queue=80 * 1024)
"""A turn takes 18 messages, a few milliseconds of key-service's work, and 64 wait."""
_INITIATIONS: Final = Limits(MAX_TRAIN, 64, read=4 * 1024, queue=24 * 1024)
"""Some 100 wait, as conn-service sends many at once, or 20 that it sends one by one: the gate watches the queue before."""

PLAIN_OUT: Final = Pipe("device", "plain-out", TRAINS, ("tun",), _DATA, per_worker=True)
CIPHER_OUT: Final = Pipe("conn", "cipher-out", TRAINS, (WORKER,), _DATA)
CIPHER_IN: Final = Pipe("device", "cipher-in", TRAINS, ("conn",), _DATA, per_worker=True)
PLAIN_IN: Final = Pipe("tun", "plain-in", TRAINS, (WORKER,), _DATA)
HANDSHAKE_IN: Final = Pipe("key", "handshake-in", TRAINS, ("conn",), _INITIATIONS)
HANDSHAKE_OUT: Final = Pipe("conn", "handshake-out", TRAINS, ("key",), _HANDSHAKES)
CONTROL: Final = Pipe("key", "control", MESSAGES, (*STAGES, COMMAND), Limits(MAX_CONTROL, 4096, MAX_SAID, 64))
TELEMETRY: Final = Pipe("status", "telemetry", REPORTS, STAGES, Limits(MAX_REPORT, 64))
STATUS_QUERY: Final = Pipe("status", "query", QUESTIONS, (COMMAND,), Limits(MAX_CONTROL, 16, MAX_REPORT))
SESSIONS: Final = Pipe("key", "sessions", DESCRIPTORS, (WORKER,))
SOCKETS: Final = Pipe("host", "sockets", DESCRIPTORS, ("conn", "resolver"))
CAPTURE: Final = Pipe("device", "capture", DESCRIPTORS, (COMMAND,), per_worker=True)
RELOAD: Final = Pipe("key", "reload", TEXT, (COMMAND,))

PIPES: Final = (
    PLAIN_OUT, CIPHER_OUT, CIPHER_IN, PLAIN_IN, HANDSHAKE_IN, HANDSHAKE_OUT,
    CONTROL, TELEMETRY, STATUS_QUERY, SESSIONS, SOCKETS, CAPTURE, RELOAD,
)  # fmt: skip
