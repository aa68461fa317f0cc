"""Opens the pipes that `names` lists.

The binder makes the socket that listens, and leaves copies of it to its spares (`process.hand_down`). When it dies, the
others connect anew at once, and wait in the kernel's queue until the spare welcomes them.
"""

import os
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import zmq

from stagewire import files
from stagewire.linux import descriptors, privileges, uids
from stagewire.linux.peer_credentials import Credentials
from stagewire.linux.uids import Place
from stagewire.loop import Loop
from stagewire.pipe import zmq_ends
from stagewire.pipe.contract import Handler, OfPlace, Receiver, Sender
from stagewire.pipe.direct.inherited import Pushers
from stagewire.pipe.direct.receiver import DirectReceiver
from stagewire.pipe.direct.sender import DirectSender
from stagewire.pipe.doorman import Doorman
from stagewire.pipe.libzmq import LibzmqReceiver, LibzmqSender
from stagewire.pipe.names import DESCRIPTORS, PIPES, TRAINS, Kind, Pipe
from stagewire.pipe.speakers import Admission, is_of
from stagewire.pipe.trains import BadTrain
from stagewire.pipe.waits import Waits
from stagewire.stages import WORKER

_BACKLOG: Final = 128
_LISTENER: Final = "pipe"
"""Begins the name of each listening descriptor."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """Opens the pipes of one interface. `run` is its folder; `libzmq` has it carry trains too."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    run: Path
    inherited: dict[str, int] = field(default_factory=dict)
    """Listening sockets of the process that was at work before, owned here from now on."""
    libzmq: bool = False
    compiled: Any = None
    """`linux.pipe_trains`; with None, Python does all work."""
    listeners: dict[str, int] = field(default_factory=dict)
    """Listening sockets of the bound pipes, by names that say to which file they belong."""
    doormen: list[Doorman] = field(default_factory=list)
    own_stages: tuple[tuple[str, str], ...] = ()
    """The operator's own stages, each with the name of its pipe."""
    contest: Callable[[Place, int], bool | None] = lambda _place, _pid: None
    """Tells whether a process holds the slot of a place; None if that is unknown."""
    refused: Callable[[Pipe, Credentials], None] = lambda _pipe, _theirs: None
    """Hears of each connection that is refused."""
    pushers: Pushers = field(init=False)
    senders: dict[str, Sender] = field(default_factory=dict)
    """The sending ends of pipes of trains, by the name of the socket."""
    waits: dict[str, Waits] = field(default_factory=dict)
    """What the reading ends have sampled, by the name of the socket."""

    def __post_init__(self) -> None:
        """Takes the connections that were inherited."""
        object.__setattr__(self, "pushers", Pushers(self.inherited))

    def path(self, pipe: Pipe, number: int | None = None) -> Path:
        """Returns a pipe's socket; `number` is the worker's, for a pipe that each worker has."""
        return zmq_ends.path(self.run, pipe, number)

    # --- trains --------------------------------------------------------------------------------------------

    def receiver(
        self,
        loop: Loop,
        pipe: Pipe,
        handler: Handler,
        drop: Callable[[BadTrain], None],
        number: int | None = None,
        of_place: OfPlace | None = None,
    ) -> Receiver:
        """Opens the reading end of a pipe of trains. `of_place` returns a Handler for each speaker. Raises OSError.

        `drop` is told when a sender makes no sense; libzmq ends such a connection by itself and tells nobody.
        """
        limits, path = zmq_ends.limits(pipe), self.path(pipe, number)
        waits = self.waits[path.name] = Waits()
        if self.libzmq:
            socket, doorman = self.guarded(loop, pipe, number)
            return LibzmqReceiver(
                loop, socket, limits, handler, doorman, waits, of_place and self._of_uid(pipe, of_place)
            )
        listener = sockets.socket(fileno=os.dup(self._listener(path)))
        listener.listen(_BACKLOG)
        return DirectReceiver(
            loop, listener, limits, handler, drop, (self.pushers, path.name), self.admission(pipe), waits, of_place,
            self.compiled,
        )  # fmt: skip

    def _of_uid(self, pipe: Pipe, of_place: OfPlace) -> Callable[[int], Handler]:
        place = self.admission(pipe).place
        return cache(lambda uid: of_place(place(uid)))

    def sender(self, loop: Loop, pipe: Pipe, number: int | None = None) -> Sender:
        """Opens the sending end. The reader needn't be there yet, and may come and go."""
        path = self.path(pipe, number)
        made = self.senders[path.name] = (
            LibzmqSender(loop, self.connect(pipe, number)) if self.libzmq else self._direct(loop, pipe, number)
        )
        return made

    def _direct(self, loop: Loop, pipe: Pipe, number: int | None) -> DirectSender:
        owns = self._own_stages_at(pipe)
        return DirectSender(
            loop, self.path(pipe, number), zmq_ends.limits(pipe), lambda line: is_of(line, pipe, number, owns),
            self.compiled,
        )  # fmt: skip

    def admission(self, pipe: Pipe, each: int = 1) -> Admission:
        """Returns what admits connections to a pipe: `each` from every place that may connect."""
        own = self._own_stages_at(pipe)
        return Admission(pipe, own_stages=own, each=each, contest=self.contest, refused=self.refused)

    def _own_stages_at(self, pipe: Pipe) -> tuple[str, ...]:
        return tuple(name for name, at in self.own_stages if at == pipe.name)

    # --- by libzmq -----------------------------------------------------------------------------------------

    def bind(self, pipe: Pipe, number: int | None = None) -> "zmq.Socket[bytes]":
        """Opens the reading end. Raises OSError."""
        socket = zmq_ends.opened(self.context, pipe, pipe.kind.binds)
        self._bind(socket, pipe, number)
        return socket

    def guarded(self, loop: Loop, pipe: Pipe, number: int | None = None) -> "tuple[zmq.Socket[bytes], Doorman]":
        """Opens the reading end for those alone that `names` lets connect, each once. Raises OSError."""
        socket = zmq_ends.opened(self.context, pipe, pipe.kind.binds)
        admission = self.admission(pipe)
        for uid in admission.uids:
            socket.set(zmq.IPC_FILTER_UID, uid)
        doorman = Doorman(loop, socket, self.path(pipe, number), admission)
        self.doormen.append(doorman)
        self._bind(socket, pipe, number)
        return socket, doorman

    def _bind(self, socket: "zmq.Socket[bytes]", pipe: Pipe, number: int | None) -> None:
        path = self.path(pipe, number)
        listener = os.dup(self._listener(path))
        with sockets.socket(fileno=listener) as listening:
            descriptors.allow(listening, allowed=False)
            listening.listen(_BACKLOG)
            listening.detach()
        socket.set(zmq.USE_FD, listener)  # ZeroMQ closes its own, and leaves the file where it is
        socket.bind(f"ipc://{path}")

    def connect(self, pipe: Pipe, number: int | None = None, *, announced: bool = False) -> "zmq.Socket[bytes]":
        """Opens the end that connects (`zmq_ends.connect`)."""
        return zmq_ends.connect(self.context, self.run, pipe, number, announced=announced)

    # --- listening sockets ---------------------------------------------------------------------------------

    def open(self, stage: str, number: int) -> None:
        """Binds all pipes of a worker, as root: no worker may write in the folder that all workers share. Raises OSError.

        The worker itself begins to listen, as the other ends look whose uid does.
        """
        for pipe in PIPES:
            if pipe.binder == stage and pipe.per_worker:
                path = self.path(pipe, number)
                self._listener(path, pipe.kind)
                privileges.give_socket(path, stage, number)

    def listening(self, pipe: Pipe, number: int) -> sockets.socket:
        """Listens at a worker's socket that carries no trains. Raises OSError."""
        listener = sockets.socket(fileno=os.dup(self._listener(self.path(pipe, number), pipe.kind)))
        listener.listen(_BACKLOG)
        return listener

    def _listener(self, path: Path, kind: Kind = TRAINS) -> int:
        """Returns the socket that was bound at `path`, by us or our predecessor, or makes a new one in its place."""
        left = None
        if path.exists():
            name = _name(path)
            left = self.listeners.get(name) or self.inherited.pop(name, None)
        if left is None:
            files.clear(path)
            of_packets = sockets.SOCK_SEQPACKET if kind is DESCRIPTORS else sockets.SOCK_STREAM
            with sockets.socket(sockets.AF_UNIX, of_packets | sockets.SOCK_NONBLOCK) as fresh:
                fresh.bind(str(path))
                left = fresh.detach()
        self.listeners[_name(path)] = left
        return left

    def close_inherited(self) -> None:
        """Closes what no pipe took: its file is gone, or the predecessor had other pipes."""
        self.pushers.close_inherited()
        while self.inherited:
            os.close(self.inherited.popitem()[1])

    def leave_to(self, leave: Callable[[dict[str, int]], None]) -> None:
        """Tells `leave` which descriptors spares copy, now and after each change."""
        self.pushers.on_change = lambda: leave({**self.listeners, **self.pushers.left()})
        self.pushers.on_change()

    def close_listeners(self) -> None:
        """Closes this process's copies; the spares keep theirs."""
        self.pushers.close()
        while self.doormen:
            self.doormen.pop().close()
        while self.listeners:
            os.close(self.listeners.popitem()[1])


def take_listeners(descriptors: dict[str, int]) -> dict[str, int]:
    """Takes the listening sockets out of what was inherited."""
    return {name: descriptors.pop(name) for name in list(descriptors) if name.startswith(_LISTENER)}


def _name(path: Path) -> str:
    """Names a listener by the file itself, not by its path: a wiped folder may have another socket there."""
    found = path.stat()
    return f"{_LISTENER}:{path.name}:{found.st_dev}:{found.st_ino}"


def prepare_folders(run: Path, stage: str) -> None:
    """Makes the interface's folder and `stage`'s own in it; as root they get their owners and modes."""
    privileges.make_folder(run, None, 0o710)
    # Workers share a folder, so only root may write there.
    privileges.make_folder(run / stage, None if stage == WORKER and not uids.are_shared() else stage, 0o710)
    privileges.give_all(run / stage, stage)
