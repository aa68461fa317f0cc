"""Serves the `wg` socket, /var/run/wireguard/<interface>.sock, by which WireGuard tools reach a userspace implementation.

`config.uapi` reads operations and writes answers, `live` makes the changes. A client that is silent, sends too much or
does not take its answer costs a connection. At most MAX_CONNECTIONS stay open: the longest idle client is closed first.
"""

import fcntl
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from key_service.live import LiveConfiguration
from stagewire.config import uapi
from stagewire.linux import descriptors
from stagewire.linux.peer_credentials import Credentials, credentials
from stagewire.logs import Log
from stagewire.loop import Loop

MAX_CONNECTIONS: Final = 64
IDLE_AFTER: Final = 60.0
"""s after which a silent client is closed."""
_CHUNK: Final = 64 * 1024

_GONE_WITHIN: Final = 1.0
"""s that an earlier key-service may take to end."""
_SIOCGIFINDEX: Final = 0x8933
_NAME: Final = struct.Struct("@16si20x")
_MAX_NAME: Final = 15
_here: Final = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
"""Asks in this network namespace, which key-service leaves (`linux.sandbox`)."""


def listen(path: Path) -> socket.socket | None:
    """Opens the socket as root, before privileges are dropped. Returns None if another program serves it. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    until = time.monotonic() + _GONE_WITHIN
    while _is_served(path):
        if time.monotonic() > until:
            return None
        time.sleep(0.01)
    # Named only once it listens: `wg` deletes a socket that is bound and does not listen.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    descriptors.allow(opened, allowed=False)
    before = os.umask(0o177)
    try:
        opened.bind(str(fresh))
    finally:
        os.umask(before)
    opened.listen(MAX_CONNECTIONS)
    fresh.replace(path)  # also replaces a dead process's socket
    return opened


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:  # served, with a full backlog
            return True
        except OSError:
            return False
        return True


def index_of(name: str) -> int:
    """Returns the number of an interface in the services' network namespace; 0 if there is none of this name."""
    if len(name) > _MAX_NAME:
        return 0
    try:
        asked = fcntl.ioctl(_here, _SIOCGIFINDEX, _NAME.pack(name.encode(), 0))
    except OSError:
        return 0
    number: int = _NAME.unpack(asked)[1]
    return number


class _Client:
    """Keeps one connection's operations, in order, and the rest of its answer."""

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self.number = connection.fileno()
        self.reader = uapi.OperationReader(index_of)
        self.asked: deque[uapi.Operation | uapi.BadOperation] = deque()
        self.working = False
        self.pumping = False
        self.paused = False
        self.answer: Iterator[bytes | memoryview] = iter(())
        self.unsent: bytes | memoryview = b""
        self.heard = now
        self.ending = False


class WgSocket:
    """Serves the socket on the loop."""

    def __init__(self, loop: Loop, listener: socket.socket, live: LiveConfiguration, log: Log) -> None:
        self.changed: Callable[[Credentials, uapi.Change, list[str]], None] = lambda _asker, _change, _lines: None
        """Hears of each change that is in force, with a line for each difference."""
        self._loop = loop
        self._listener = listener
        self._live = live
        self._log = log
        self._clients: dict[int, _Client] = {}
        loop.add(listener.fileno(), self._accept)
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """Returns the time (s) at which the longest idle client is closed."""
        return min((client.heard + IDLE_AFTER for client in self._clients.values()), default=None)

    def act(self, now: float) -> None:
        """Closes idle clients."""
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
        """Begins the next operation, once the last answer has left."""
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
        """Reads from a client only while no operation of the client waits."""
        if client.paused == wanted:
            client.paused = not wanted
            (self._loop.resume if wanted else self._loop.pause)(client.number)

    def _begin(self, client: _Client, operation: uapi.Operation | uapi.BadOperation) -> None:
        match operation:
            case uapi.Get():
                self._reply(client, uapi.get_reply(self._live.state()))
            case uapi.Change():
                asker = credentials(client.connection)
                lines: list[str] = []
                done = partial(self._on_done, client, asker, operation, lines)
                self._live.change(operation, done, lines.extend)
            case uapi.BadOperation():
                self._log.warning("wg operation refused", line=operation.line, reason=operation.reason)
                client.ending = client.ending or operation.fatal
                self._reply(client, iter((operation.reply(),)))

    def _on_done(self, client: _Client, asker: Credentials, change: uapi.Change, lines: list[str], code: int) -> None:
        if not code:
            self.changed(asker, change, lines)
        self._reply(client, iter((uapi.set_reply(code),)))

    def _reply(self, client: _Client, answer: Iterator[bytes | memoryview]) -> None:
        client.answer = answer
        client.working = False
        self._pump(client)

    def _flush(self, client: _Client) -> bool:
        """Sends the answer. Returns whether all of it has left."""
        if self._clients.get(client.number) is not client:
            return False  # the client left during its change
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
