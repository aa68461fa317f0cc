"""How a session's keys get from key-service to the one worker they are for.

Not through ZeroMQ, which would leave copies of them in both processes' heaps: key-service writes the two keys into a
fresh memory file and passes its descriptor over a Unix socket of packets (SOCK_SEQPACKET, `key/sessions`). The worker
reads it, makes its ciphers, wipes the page and closes. Both ends check the other's uid; the end of the connection tells
key-service at once that a worker is gone.

A packet to key-service is a WorkerHello, one to a worker a Grant with its descriptor attached.
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

VERSION: Final = 1
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


_HELLO: Final[Codec[WorkerHello]] = Codec(VERSION, [WorkerHello])
_GRANT: Final[Codec[Grant]] = Codec(VERSION, [Grant])


class SessionsGiver:
    """key-service's end. `on_up` is told a worker's number, `on_down` its generation as well."""

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
    ) -> None:
        self._loop = loop
        self._worker_uid = worker_uid
        self._on_up = on_up
        self._on_down = on_down
        self._workers: dict[int, tuple[socket.socket, int]] = {}
        self._new: dict[socket.socket, float] = {}
        """Those that are to say hello, and until when (s); in the order of their coming."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(64)
        loop.add(self._listener.fileno(), self._accept)
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """When the connection that has been silent longest has been so for too long."""
        return next(iter(self._new.values()), None)

    def act(self, now: float) -> None:
        """Lets go of those that said nothing."""
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
                self._on_down(number, generation)

    def generation(self, worker: int) -> int | None:
        """The life of a worker that is connected, or None."""
        standing = self._workers.get(worker)
        return standing[1] if standing else None

    def give(self, session: InstallSession) -> bool:
        """Hands a session to its worker; False if that is away or doesn't take any more."""
        standing = self._workers.get(session.worker)
        if standing is None:
            return False
        grant = Grant(
            session.public_key,
            session.index,
            session.remote_index,
            session.initiator,
            session.created,
            session.endpoint,
        )
        page = os.memfd_create("stagewire-session", os.MFD_CLOEXEC)
        try:
            os.writev(page, [session.keys.send, session.keys.receive])
            socket.send_fds(standing[0], [_GRANT.pack(grant)], [page])
        except OSError:
            return False
        finally:
            os.close(page)
        return True


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
            grant = _GRANT.unpack_untrusted(packet)
            session = _session(grant, descriptors[0])
        except (BadControl, IndexError, OSError, ValueError):
            self._drops["grant_malformed"] += 1
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._on_session(grant, session)


def _session(grant: Grant, page: int) -> Session:
    """Makes the ciphers, then wipes the page the keys came in and our copy of it."""
    keys = bytearray(_KEYS)
    try:
        if os.preadv(page, [keys], 0) != _KEYS:
            raise BadControl("control_malformed")
        view = memoryview(keys)
        # The ciphers have expanded the keys for themselves by the time they exist.
        sender, receiver = ChaCha20Poly1305(view[: c.KEY_LENGTH]), ChaCha20Poly1305(view[c.KEY_LENGTH :])
    finally:
        keys[:] = bytes(_KEYS)
        os.pwrite(page, keys, 0)
    return Session(grant.index, grant.remote_index, sender, receiver, initiator=grant.initiator, created=grant.created)
