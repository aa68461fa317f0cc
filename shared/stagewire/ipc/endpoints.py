"""Every pipe by name: who binds it, of what kind it is, how much it holds. The only place that says so.

A pipe is bound by the stage that reads it, inside a folder that only that stage can write; all connect who are in the
services' group. `<run>/<binder>/<pipe>`:

    device/plain-out.<n>   PULL     tun -> worker n       trains of packets
    conn/cipher-out        PULL     workers -> conn       trains of datagrams
    device/cipher-in.<n>   PULL     conn -> worker n      trains of datagrams
    tun/plain-in           PULL     workers -> tun        trains of packets
    key/handshake-in       PULL     conn -> key           messages of type 1 to 3, with their source
    conn/handshake-out     PULL     key -> conn           the same, with their destination
    key/control            ROUTER   every stage <-> key   `control`
    key/sessions           (SEQPACKET, see `handover`)    session keys
    status/telemetry       PULL     every stage -> status counters
    status/query           REP      the command line      a snapshot of them

Limits: high-water marks are small, because what waits in a pipe is delay (1,000 messages, the default, held 1.5 s of
packets when a stage stalled). `ZMQ_IMMEDIATE`: nothing is queued for a reader that isn't there, or it would be delivered
late when it is. A restarted reader is found again within milliseconds.

Whoever binds a pipe makes the socket that listens, and leaves copies of it to its spares (`bequest`). When it dies, the
others connect to it anew at once, and wait in the kernel's queue for the one that takes over to welcome them.
"""

import errno
import os
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq

from stagewire import privileges
from stagewire.ipc.inlet import Handler, Inlet, Limits
from stagewire.ipc.line import Line
from stagewire.ipc.loop import Loop
from stagewire.ipc.pushers import Pushers
from stagewire.ipc.trains import BadTrain

CONTROL_HIGH_WATER: Final = 4096
MAX_TRAIN: Final = 256 * 1024
"""Bytes; `trains.MAX_FRAME` of packets and their headers. ZeroMQ cuts the line of who sends more."""
MAX_CONTROL: Final = 8 * 1024 * 1024
"""Bytes; the longest is a peer with 130,560 prefixes."""
RECONNECT_MS: Final = 1
RECONNECT_MAX_MS: Final = 8
"""Each further attempt comes twice as late as the one before, and may be late by as much. One costs 30 us."""
WELCOME_MS: Final = 1000
"""A socket that listens for one who waits answers nobody, which must not be for ever; ZeroMQ's own limit is 30 s."""
_BACKLOG: Final = 128
_LISTENER: Final = "pipe"
"""What the name of a descriptor begins with that listens."""
_MAX_PATH: Final = 107

PLAIN_OUT: Final = "device/plain-out"
CIPHER_OUT: Final = "conn/cipher-out"
CIPHER_IN: Final = "device/cipher-in"
PLAIN_IN: Final = "tun/plain-in"
HANDSHAKE_IN: Final = "key/handshake-in"
HANDSHAKE_OUT: Final = "conn/handshake-out"
CONTROL: Final = "key/control"
SESSIONS: Final = "key/sessions"
TELEMETRY: Final = "status/telemetry"
STATUS_QUERY: Final = "status/query"

DATA_LIMITS: Final = Limits(MAX_TRAIN, 128 * 1024, 416 * 1024, memory=True)
"""A turn takes one long train, or many short ones, and what lies in memory; beside that seven of 64 KB may wait, as
net.core.wmem_max lets anybody have."""
_HANDSHAKE_LIMITS: Final = Limits(MAX_TRAIN, 4 * 1024, 80 * 1024)
"""18 messages in a turn, which is 5 ms of key-service's work, and 64 that wait: the gate watches the queue before."""
_LIMITS: Final = {HANDSHAKE_IN: _HANDSHAKE_LIMITS, HANDSHAKE_OUT: _HANDSHAKE_LIMITS}
_HIGH_WATER: Final = {
    CONTROL: CONTROL_HIGH_WATER,
    TELEMETRY: 64,
    STATUS_QUERY: 16,
}
_MAX_MESSAGE: Final = {CONTROL: MAX_CONTROL, TELEMETRY: MAX_CONTROL, STATUS_QUERY: MAX_CONTROL}


@dataclass(frozen=True, slots=True)
class Pipes:
    """Opens the pipes of one interface. `run` is its folder."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    run: Path
    inherited: dict[str, int] = field(default_factory=dict)
    """Sockets that listen, from who was at work before us; ours from here on."""
    listeners: dict[str, int] = field(default_factory=dict)
    """Those of the pipes that are bound, by names that say to which file they belong."""
    pushers: Pushers = field(init=False)

    def __post_init__(self) -> None:
        """Takes those who are connected already."""
        object.__setattr__(self, "pushers", Pushers(self.inherited))

    def path(self, pipe: str, number: int | None = None) -> Path:
        """Where a pipe is; `number` is the worker's, for pipes that each worker has."""
        path = self.run / (pipe if number is None else f"{pipe}.{number}")
        if len(os.fsencode(path)) > _MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, f"{path}: longer than a Unix socket's name may be; set STAGEWIRE_RUN_DIR")
        return path

    def bind(self, kind: int, pipe: str, number: int | None = None) -> "zmq.Socket[bytes]":
        """The reading end. Raises OSError."""
        path = self.path(pipe, number)
        listener = self._listener(path)
        socket = self._socket(kind, pipe)
        socket.set(zmq.USE_FD, os.dup(listener))  # ZeroMQ closes its own, and leaves the file where it is
        socket.bind(f"ipc://{path}")
        return socket

    def _listener(self, path: Path) -> int:
        """The socket that listens there already, if it was left to us, or a new one in its place."""
        left = self.inherited.pop(_name(path), None) if path.exists() else None
        if left is None:
            path.unlink(missing_ok=True)
            with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK) as fresh:
                fresh.bind(str(path))
                fresh.listen(_BACKLOG)
                left = fresh.detach()
        self.listeners[_name(path)] = left
        return left

    def close_inherited(self) -> None:
        """Those that nobody had a use for: their files are gone, or there were other pipes then."""
        self.pushers.close_inherited()
        while self.inherited:
            os.close(self.inherited.popitem()[1])

    def leave_to(self, leave: Callable[[dict[str, int]], None]) -> None:
        """Tells what spares are to have copies of, now and whenever it changes."""
        self.pushers.on_change = lambda: leave({**self.listeners, **self.pushers.left()})
        self.pushers.on_change()

    def close_listeners(self) -> None:
        """Ours; who was left a copy has it still."""
        self.pushers.close()
        while self.listeners:
            os.close(self.listeners.popitem()[1])

    def inlet(
        self, loop: Loop, pipe: str, handler: Handler, drop: Callable[[BadTrain], None], number: int | None = None
    ) -> Inlet:
        """The reading end of a pipe of trains. Raises OSError."""
        path = self.path(pipe, number)
        listener = sockets.socket(fileno=os.dup(self._listener(path)))
        kept = self.pushers, path.name
        return Inlet(loop, listener, _LIMITS.get(pipe, DATA_LIMITS), handler, drop, kept)

    def line(self, loop: Loop, pipe: str, number: int | None = None) -> Line:
        """The other end. The reader needn't be there yet, and may come and go."""
        return Line(loop, self.path(pipe, number), _LIMITS.get(pipe, DATA_LIMITS))

    def connect(self, kind: int, pipe: str, number: int | None = None, routing_id: bytes = b"") -> "zmq.Socket[bytes]":
        """The other end. It needn't be there yet, and may come and go. A ROUTER knows it by `routing_id`."""
        socket = self._socket(kind, pipe)
        if routing_id:
            socket.set(zmq.ROUTING_ID, routing_id)
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.set(zmq.HANDSHAKE_IVL, WELCOME_MS)
        socket.connect(f"ipc://{self.path(pipe, number)}")
        return socket

    def _socket(self, kind: int, pipe: str) -> "zmq.Socket[bytes]":
        socket = self.context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, _HIGH_WATER.get(pipe, 16))
        socket.set(zmq.RCVHWM, _HIGH_WATER.get(pipe, 16))
        socket.set(zmq.MAXMSGSIZE, _MAX_MESSAGE.get(pipe, MAX_TRAIN))
        if kind == zmq.ROUTER:
            socket.set(zmq.ROUTER_MANDATORY, 1)
            socket.set(zmq.ROUTER_HANDOVER, 1)
        return socket


def take_listeners(descriptors: dict[str, int]) -> dict[str, int]:
    """Takes those out that listen, from what was inherited."""
    return {name: descriptors.pop(name) for name in list(descriptors) if name.startswith(_LISTENER)}


def _name(path: Path) -> str:
    """By the file itself, not by its path: somebody may have wiped the folder and bound another there."""
    found = path.stat()
    return f"{_LISTENER}:{path.name}:{found.st_dev}:{found.st_ino}"


def prepare_folders(run: Path, stage: str) -> None:
    """Makes the interface's folder and `stage`'s own in it; as root they get their owners and modes."""
    privileges.make_folder(run, None, 0o710)
    privileges.make_folder(run / stage, stage, 0o710)
