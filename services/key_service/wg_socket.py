"""The `wg` socket: /var/run/wireguard/<interface>.sock, which every WireGuard tool speaks to a userspace implementation by.

Bytes in and out; what they mean is `proto.uapi`, what they do is `live`. A client that says nothing, says too much or
stays away from its answer costs a connection, of which there are a bounded number; the one idle longest goes first.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from key_service.live import LiveConfiguration
from stagewire.ipc.loop import Loop
from stagewire.logs import Log
from stagewire.proto import uapi

MAX_CONNECTIONS: Final = 64
IDLE_AFTER: Final = 60.0
"""s a client may keep a connection without a word."""
_CHUNK: Final = 64 * 1024

_GONE_WITHIN: Final = 1.0
"""s that the key-service before us, whose place we have, may still be ending."""


def listen(path: Path) -> socket.socket | None:
    """Opens the socket as root, before privileges are dropped; None when somebody else serves it. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    until = time.monotonic() + _GONE_WITHIN
    while _is_served(path):
        if time.monotonic() > until:
            return None
        time.sleep(0.01)
    # It gets its name when it listens: `wg` removes one that it finds bound and not yet listening, as it does dead ones.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        opened.bind(str(fresh))
    finally:
        os.umask(before)
    opened.listen(MAX_CONNECTIONS)
    fresh.replace(path)  # and with it the one that was left by a process that is no more
    return opened


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:  # by one that has no time to accept anybody
            return True
        except OSError:
            return False
        return True


def index_of(name: str) -> int:
    """The number of a network interface where our sockets are; 0 when there is none of this name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


class _Client:
    """One connection: what it asked, in order, and what it has still to be told."""

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.number = connection.fileno()
        self.reader = uapi.OperationReader(index_of)
        self.asked: deque[uapi.Operation | uapi.BadOperation] = deque()
        self.working = False
        self.pumping = False
        self.paused = False
        self.answer: Iterator[bytes] = iter(())
        self.unsent = b""
        self.heard = now
        self.ending = False


class WgSocket:
    """Serves the socket on the loop."""

    def __init__(self, loop: Loop, listener: socket.socket, live: LiveConfiguration, log: Log) -> None:
        self._loop = loop
        self._listener = listener
        self._live = live
        self._log = log
        self._clients: dict[int, _Client] = {}
        loop.add(listener.fileno(), self._accept)
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """When the client idle longest has been so for too long."""
        return min((client.heard + IDLE_AFTER for client in self._clients.values()), default=None)

    def act(self, now: float) -> None:
        """Lets idle clients go."""
        for client in list(self._clients.values()):
            if client.heard + IDLE_AFTER <= now:
                self._close(client)

    def _accept(self, now: float) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CONNECTIONS:
            self._close(min(self._clients.values(), key=lambda client: client.heard))
        connection.setblocking(False)
        client = _Client(connection, now)
        self._clients[client.number] = client
        self._loop.add(client.number, partial(self._read, client))

    def _read(self, client: _Client, now: float) -> None:
        try:
            data = client.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.heard = now
        if not data:
            self._end_of_input(client)
            return
        client.asked.extend(client.reader.feed_untrusted(data))
        self._pump(client)

    def _end_of_input(self, client: _Client) -> None:
        bad = client.reader.end_untrusted()
        if bad is not None:
            client.asked.append(bad)
        client.ending = True
        self._pump(client)

    def _pump(self, client: _Client) -> None:
        """One operation after another: the next begins when the answer to the one before has left."""
        if client.pumping:
            return
        client.pumping = True
        while self._flush(client) and client.asked and not client.working:
            client.working = True
            self._begin(client, client.asked.popleft())
        client.pumping = False
        idle = not client.asked and not client.working and not client.unsent
        if client.ending and idle:
            self._close(client)
        elif self._clients.get(client.number) is client:
            self._read_only_if(client, idle and not client.ending)

    def _read_only_if(self, client: _Client, wanted: bool) -> None:
        """Who asks faster than we answer is not listened to."""
        if client.paused == wanted:
            client.paused = not wanted
            (self._loop.resume if wanted else self._loop.pause)(client.number)

    def _begin(self, client: _Client, operation: uapi.Operation | uapi.BadOperation) -> None:
        match operation:
            case uapi.Get():
                self._reply(client, uapi.get_reply(self._live.state()))
            case uapi.Change():
                self._live.change(operation, lambda code: self._reply(client, iter((uapi.set_reply(code),))))
            case uapi.BadOperation():
                self._log.warning("wg operation refused", line=operation.line, reason=operation.reason)
                client.ending = client.ending or operation.fatal
                self._reply(client, iter((operation.reply(),)))

    def _reply(self, client: _Client, answer: Iterator[bytes]) -> None:
        client.answer = answer
        client.working = False
        self._pump(client)

    def _flush(self, client: _Client) -> bool:
        """Sends what there is to send; whether all of it has left."""
        if self._clients.get(client.number) is not client:
            return False  # it went away while its change was being made
        try:
            while client.unsent or (chunk := next(client.answer, b"")):
                client.unsent = client.unsent or chunk
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
        except BlockingIOError:
            self._loop.when_writable(client.number, lambda _now: self._pump(client))
            return False
        except OSError:
            self._close(client)
            return False
        self._loop.when_writable(client.number, None)
        return True

    def _close(self, client: _Client) -> None:
        if self._clients.pop(client.number, None) is client:
            self._loop.remove(client.number)
            with suppress(OSError):
                client.connection.close()
