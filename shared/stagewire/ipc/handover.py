"""How a session's keys get from key-service to the one worker they are for.

Not through ZeroMQ, which would leave copies of them in both processes' heaps: key-service writes the two keys into a
fresh memory file and passes its descriptor over a Unix socket of packets (SOCK_SEQPACKET, `key/sessions`). The worker
reads it, makes its ciphers, wipes the page and closes. Both ends check the other's uid; the end of the connection tells
key-service at once that a worker is gone.

A packet to key-service is a WorkerHello, one to a worker Grants with the descriptor attached. Under load it has several:
what one turn of the loop brings for a worker goes together, as file and packet cost a busy key-service 40 us, and the
worker a wake-up.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.environment import MAX_WORKERS
from stagewire.ipc.bequest import peer_uid
from stagewire.ipc.codec import BadControl, Codec
from stagewire.ipc.loop import Loop
from stagewire.proto import constants as c
from stagewire.proto.effects import InstallSession
from stagewire.proto.session import Session

VERSION: Final = 2
BATCH: Final = 8
"""Sessions in a packet at most: more would have the worker, and their peers, wait for the turn's end."""
_PACKET: Final = 4096
_KEYS: Final = 2 * c.KEY_LENGTH


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """Says which worker this connection is, and which life of it."""

    number: int
    generation: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A session but for its keys. `created` is in s on the boot-time clock, `endpoint` is packed."""

    public_key: bytes
    index: int
    remote_index: int
    initiator: bool
    created: float
    endpoint: bytes


@dataclass(frozen=True, slots=True)
class Grants:
    """Their keys are in the memory file in the same order, sending key first."""

    grants: tuple[Grant, ...]


_HELLO: Final[Codec[WorkerHello]] = Codec(VERSION, [WorkerHello])
_GRANTS: Final[Codec[Grants]] = Codec(VERSION, [Grants])


class SessionsGiver:
    """key-service's end. `on_up` is told a worker's number, `on_down` its generation as well.

    `on_refused` is told the index of a session that its worker can't be given.
    """

    HELLO_WITHIN: Final = 2.0
    """s; a worker says hello as soon as it is connected."""
    MAX_NEW: Final = 64
    """Connections that haven't said hello; beyond it the oldest goes."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        worker_uid: int,
        on_up: Callable[[int], None],
        on_down: Callable[[int, int], None],
        on_refused: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._worker_uid = worker_uid
        self._on_up = on_up
        self._on_down = on_down
        self._on_refused = on_refused
        self._workers: dict[int, tuple[socket.socket, int]] = {}
        self._new: dict[socket.socket, float] = {}
        """Those that are to say hello, and until when (s); in the order of their coming."""
        self._pending: dict[int, list[InstallSession]] = {}
        """By worker, for the turn's end."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(64)
        loop.add(self._listener.fileno(), self._accept)
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """At once while there is something to give; else when the longest silence of a connection has been too long."""
        return 0.0 if self._pending else next(iter(self._new.values()), None)

    def act(self, now: float) -> None:
        """Gives what the turn has brought, and lets go of those that said nothing."""
        for worker in list(self._pending):
            self._hand_over(worker)
        for connection in [connection for connection, until in self._new.items() if until <= now]:
            self._close(connection)

    def _accept(self, now: float) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if peer_uid(connection) != self._worker_uid:
                connection.close()
                return
            if len(self._new) >= self.MAX_NEW:
                self._close(next(iter(self._new)))
            self._new[connection] = now + self.HELLO_WITHIN
            self._loop.add(connection.fileno(), lambda _now: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
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
        if hello is None or not first or not 0 <= hello.number < MAX_WORKERS:
            self._close(connection)  # it has ended, or it talks nonsense
            return
        standing = self._workers.get(hello.number)
        if standing is not None:
            self._close(standing[0])
        self._workers[hello.number] = (connection, hello.generation)
        self._on_up(hello.number)

    def _close(self, connection: socket.socket) -> None:
        self._new.pop(connection, None)
        self._loop.remove(connection.fileno())
        connection.close()
        for number, (known, generation) in list(self._workers.items()):
            if known is connection:
                del self._workers[number]
                self._pending.pop(number, None)
                self._on_down(number, generation)

    def generation(self, worker: int) -> int | None:
        """The life of a worker that is connected, or None."""
        standing = self._workers.get(worker)
        return standing[1] if standing else None

    def give(self, session: InstallSession) -> None:
        """Hands a session to its worker at the end of the turn, or tells that it is refused."""
        if session.worker not in self._workers:
            self._on_refused(session.index)
            return
        pending = self._pending.setdefault(session.worker, [])
        pending.append(session)
        if len(pending) >= BATCH:
            self._hand_over(session.worker)

    def _hand_over(self, worker: int) -> None:
        """Hot: 14 us for one session, 28 for eight, where each by itself took 16."""
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
    """The worker's end: connects, and connects again when key-service is new. `on_session` gets what arrives.

    `on_connected` is called whenever there is a line: the first that a worker hears of a new key-service.

    A grant that is none, or comes without its keys, is counted among `drops`.
    """

    RETRY: Final = 0.02
    """s between two attempts to connect."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        key_uid: int,
        hello: WorkerHello,
        on_session: Callable[[Grant, Session], None],
        drops: Counter[str],
        on_connected: Callable[[float], None] = lambda _now: None,
    ) -> None:
        self._loop = loop
        self._path = path
        self._on_connected = on_connected
        self._key_uid = key_uid
        self._hello = hello
        self._on_session = on_session
        self._drops = drops
        self._connection: socket.socket | None = None
        self._retry: float | None = 0.0
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """When to try to connect."""
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
            packet, descriptors, _, _ = socket.recv_fds(self._connection, _PACKET, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self._loop.remove(self._connection.fileno())
            self._connection.close()
            self._connection = None
            self._retry = now + self.RETRY
            return
        try:
            sessions = _sessions(_GRANTS.unpack_untrusted(packet).grants, descriptors[0])
        except (BadControl, IndexError, OSError, ValueError):
            self._drops["grant_malformed"] += 1
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        for grant, session in sessions:
            self._on_session(grant, session)


def _sessions(grants: tuple[Grant, ...], page: int) -> list[tuple[Grant, Session]]:
    """Makes the ciphers, then wipes the file the keys came in and our copy of it."""
    length = len(grants) * _KEYS
    keys = bytearray(length)
    try:
        if not length or os.preadv(page, [keys], 0) != length:
            raise BadControl("control_malformed")
        view = memoryview(keys)
        return [(grant, _session(grant, view[at * _KEYS :])) for at, grant in enumerate(grants)]
    finally:
        keys[:] = bytes(length)
        os.pwrite(page, keys, 0)


def _session(grant: Grant, keys: memoryview) -> Session:
    # The ciphers have expanded the keys for themselves by the time they exist.
    sender, receiver = ChaCha20Poly1305(keys[: c.KEY_LENGTH]), ChaCha20Poly1305(keys[c.KEY_LENGTH : _KEYS])
    return Session(grant.index, grant.remote_index, sender, receiver, initiator=grant.initiator, created=grant.created)
