"""Carries a session's keys from key-service to the session's worker, and to no other process.

ZeroMQ would leave copies of the keys in both processes' heaps. So key-service writes both keys into a fresh memory file,
and passes the file's descriptor over a Unix socket of packets (SOCK_SEQPACKET, `key/sessions`). The worker reads the
file, makes its ciphers, wipes the file and closes it. Both ends check the other's uid, which is one worker's own. The end of
the connection tells key-service at once that the worker is gone.

A packet to key-service is a WorkerHello. A packet to a worker is Grants, with the file's descriptor attached. A worker's
sessions of one turn of the loop share a packet: each packet costs key-service a file, and the worker a wake-up.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.control.codec import BadControl, Codec
from stagewire.limits import MAX_WORKERS
from stagewire.linux import descriptors
from stagewire.linux.peer_credentials import peer_uid
from stagewire.loop import Loop
from stagewire.pipe.speakers import Admission
from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto.events import InstallSession
from stagewire.proto.kernel.choice import SessionMaker
from stagewire.proto.session import Session

VERSION: Final = 2
BATCH: Final = 24
"""Sessions in a packet at most. A full packet leaves before the turn's end, so that its peers need not wait."""
_PACKET: Final = 4096
_KEYS: Final = 2 * c.KEY_LENGTH
_MAX_INDEX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """Says which worker has connected, and the generation of its process."""

    number: int
    generation: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Describes a session without its keys. `created` is in s on the boot-time clock, `endpoint` is packed."""

    public_key: bytes
    index: int
    remote_index: int
    initiator: bool
    created: float
    endpoint: bytes


@dataclass(frozen=True, slots=True)
class Grants:
    """Lists sessions. The memory file has their keys in the same order, each sending key first."""

    grants: tuple[Grant, ...]


_HELLO: Final[Codec[WorkerHello]] = Codec(VERSION, [WorkerHello])
_GRANTS: Final[Codec[Grants]] = Codec(VERSION, [Grants])


class SessionsGiver:
    """Gives sessions to the workers, in key-service."""

    HELLO_WITHIN: Final = 2.0
    """s from a connection to its hello."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        admission: Admission,
        on_refused: Callable[[int], None],
    ) -> None:
        """Listens at `path`. `on_refused` gets the index of each session that cannot reach its worker."""
        self._loop = loop
        self._admission = admission
        self._on_up: Callable[[int, float], None]
        self._on_down: Callable[[int, int], None]
        self._on_refused = on_refused
        self._workers: dict[int, tuple[socket.socket, int]] = {}
        self._new: dict[socket.socket, float] = {}
        """Connections without a hello, the oldest first, each with its time limit (s)."""
        self._pending: dict[int, list[InstallSession]] = {}
        """Sessions by worker, for the turn's end."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        descriptors.allow(self._listener, allowed=False)
        files.clear(path)
        self._listener.bind(str(path))
        self._listener.listen(64)

    def serve(self, on_up: Callable[[int, float], None], on_down: Callable[[int, int], None]) -> None:
        """Accepts workers. `on_up` gets a worker's number and the time, `on_down` the number and the generation."""
        self._on_up = on_up
        self._on_down = on_down
        self._loop.add(self._listener.fileno(), self._accept)
        self._loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """Returns 0 while sessions are pending; else the time limit of the oldest connection without a hello."""
        return 0.0 if self._pending else next(iter(self._new.values()), None)

    def act(self, now: float) -> None:
        """Sends the turn's sessions, and closes connections that said no hello in time."""
        for worker in list(self._pending):
            self._hand_over(worker)
        for connection in [connection for connection, until in self._new.items() if until <= now]:
            self._close(connection)

    def _accept(self, now: float) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if not self._admission.admit(connection):
                connection.close()
                return
            self._new[connection] = now + self.HELLO_WITHIN
            self._loop.add(connection.fileno(), lambda now: self._read(connection, now))

    def _read(self, connection: socket.socket, now: float) -> None:
        try:
            packet = connection.recv(_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        hello: WorkerHello | None = None
        with suppress(BadControl):
            hello = _HELLO.unpack_untrusted(packet)
        first = self._new.pop(connection, None) is not None
        if hello is None or not first or not self._may_be(connection, hello.number):
            self._close(connection)  # the worker is gone, or breaks the rules
            return
        standing = self._workers.get(hello.number)
        if standing is not None:
            self._close(standing[0])
        self._workers[hello.number] = (connection, hello.generation)
        self._on_up(hello.number, now)

    def _may_be(self, connection: socket.socket, number: int) -> bool:
        """Tells whether the worker of this number may be at the other end."""
        place = self._admission.place(peer_uid(connection))
        return 0 <= number < MAX_WORKERS and (place is None or place.number == number)

    def _close(self, connection: socket.socket) -> None:
        self._new.pop(connection, None)
        self._admission.forget(connection.fileno())
        self._loop.remove(connection.fileno())
        connection.close()
        for number, (known, generation) in list(self._workers.items()):
            if known is connection:
                del self._workers[number]
                self._pending.pop(number, None)
                self._on_down(number, generation)

    def generation(self, worker: int) -> int | None:
        """Returns the generation of a connected worker; None for any other."""
        standing = self._workers.get(worker)
        return standing[1] if standing else None

    def give(self, session: InstallSession) -> None:
        """Hands a session to its worker by the turn's end. Calls `on_refused` at once if that worker isn't connected."""
        if session.worker not in self._workers:
            self._on_refused(session.index)
            return
        pending = self._pending.setdefault(session.worker, [])
        pending.append(session)
        if len(pending) >= BATCH:
            self._hand_over(session.worker)

    def _hand_over(self, worker: int) -> None:
        # Hot.
        sessions = self._pending.pop(worker)
        page = -1
        try:
            page = os.memfd_create("stagewire-session", os.MFD_CLOEXEC)
            os.writev(page, [key for each in sessions for key in (each.keys.send, each.keys.receive)])
            socket.send_fds(self._workers[worker][0], [_GRANTS.pack(Grants(tuple(map(_grant, sessions))))], [page])
        except OSError:
            for each in sessions:
                self._on_refused(each.index)
        finally:
            if page >= 0:
                os.close(page)


def _grant(session: InstallSession) -> Grant:
    return Grant(
        session.public_key,
        session.index,
        session.remote_index,
        session.initiator,
        session.created,
        session.endpoint,
    )


class SessionsTaker:
    """Takes sessions from key-service, in a worker. Connects again to each new key-service.

    `make` makes each session of its keys, `on_sessions` gets those that came together. `on_connected` is called after each
    connecting: it is the worker's first sign of a new key-service. `drops` counts grants that are malformed or lack their
    keys.
    """

    RETRY: Final = 0.02
    """s between two attempts to connect."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        key_uid: int,
        hello: WorkerHello,
        on_sessions: Callable[[Sequence[tuple[Grant, Session]]], None],
        drops: Counter[str],
        make: SessionMaker,
        on_connected: Callable[[float], None] = lambda _now: None,
    ) -> None:
        self._loop = loop
        self._path = path
        self._on_connected = on_connected
        self._key_uid = key_uid
        self._hello = hello
        self._on_sessions = on_sessions
        self._drops = drops
        self._make = make
        self._connection: socket.socket | None = None
        self._retry: float | None = 0.0
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """Returns when to try to connect."""
        return self._retry

    def act(self, now: float) -> None:
        """Tries to connect."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.connect(str(self._path))
            if peer_uid(connection) != self._key_uid:
                raise PermissionError(f"{self._path} isn't key-service's")
            connection.send(_HELLO.pack(self._hello))
        except OSError:
            connection.close()
            self._retry = now + self.RETRY
            return
        self._retry = None
        self._connection = connection
        self._loop.add(connection.fileno(), self._read)
        self._on_connected(now)

    def _read(self, now: float) -> None:
        assert self._connection is not None  # noqa: S101 - it is what became readable
        try:
            packet, handed, _, _ = socket.recv_fds(self._connection, _PACKET, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, handed = b"", []
        if not packet:
            _close(handed)
            self._loop.remove(self._connection.fileno())
            self._connection.close()
            self._connection = None
            self._retry = now + self.RETRY
            return
        try:
            sessions = _sessions(_GRANTS.unpack_untrusted(packet).grants, handed[0], self._make)
        except (BadControl, IndexError, OSError, ValueError):
            self._drops["grant_malformed"] += 1
            return
        finally:
            _close(handed)
        self._on_sessions(sessions)


def _close(handed: Iterable[int]) -> None:
    for each in handed:
        descriptors.close(each)


def _sessions(grants: tuple[Grant, ...], page: int, make: SessionMaker) -> list[tuple[Grant, Session]]:
    """Makes the ciphers, then wipes the memory file and our copy of its keys."""
    length = len(grants) * _KEYS
    keys = bytearray(length)
    try:
        if not length or os.preadv(page, [keys], 0) != length:
            raise BadControl("control_malformed")
        view = memoryview(keys)
        return [(grant, _session(grant, view[at * _KEYS :], make)) for at, grant in enumerate(grants)]
    finally:
        keys[:] = bytes(length)
        os.pwrite(page, keys, 0)


def _session(grant: Grant, keys: memoryview, make: SessionMaker) -> Session:
    """Makes a session. Raises BadControl for numbers that no session has."""
    if not (
        0 <= grant.index <= _MAX_INDEX
        and 0 <= grant.remote_index <= _MAX_INDEX
        and isfinite(grant.created)
        and len(grant.endpoint) in {0, places.LENGTH}
    ):
        raise BadControl("control_malformed")
    # A new session has expanded its keys already, so the caller may wipe `keys`.
    send, receive = keys[: c.KEY_LENGTH], keys[c.KEY_LENGTH : _KEYS]
    return make(grant.index, grant.remote_index, send, receive, initiator=grant.initiator, created=grant.created)
