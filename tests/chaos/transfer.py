"""Runs a TCP connection through the tunnel that must never break: one end sends each byte back."""

import contextlib
import errno
import select
import socket
import time
from multiprocessing.connection import Connection
from typing import Final

from tests.chaos.children import Child
from tests.chaos.record import Record
from tests.chaos.stream import MARKER

from lab.namespaces import Namespace

PIECE: Final = 4096
PACE: Final = 0.025
"""s between pieces."""
UNDER_WAY: Final = 64 * PIECE
"""Bytes that may be on their way; beyond that the writer waits, as it does when nothing comes back."""
TRY_AGAIN: Final = 0.5


def content() -> bytes:
    """Returns the piece that is sent over and over: each line begins with the marker, so every segment has one."""
    return b"".join(MARKER + number.to_bytes(4, "big") * 12 for number in range(PIECE // 64))


class Transfer(Child):
    """Runs the process that has both ends."""

    def __init__(self, record: Record, client: Namespace, server: Namespace, address: tuple[str, int]) -> None:
        """Takes the server's address in its namespace."""
        super().__init__("transfer", self._work)
        self._record, self._client, self._server, self._address = record, client, server, address

    def _work(self, line: Connection) -> None:
        listener = self._server.call(lambda: socket.socket(socket.AF_INET))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self._address)
        listener.listen(4)
        listener.setblocking(False)
        while not line.poll(0):
            client = self._client.call(lambda: socket.socket(socket.AF_INET))
            client.setblocking(False)
            with client:
                try:
                    self._session(line, listener, client)
                except EOFError:
                    return
                except OSError:
                    self._record.add("tcp_broken")
            if line.poll(TRY_AGAIN):
                return

    def _session(self, line: Connection, listener: socket.socket, client: socket.socket) -> None:
        """Runs one connection. Raises OSError when it breaks, EOFError when the run is over."""
        if (failed := client.connect_ex(self._address)) != errno.EINPROGRESS:
            raise OSError(failed, "connect")
        server = self._accept(line, listener)
        with server:
            server.setblocking(False)
            self._record.add("tcp_connections")
            echo, flow = _Echo(server), _Writer(client, self._record)
            poll = select.poll()
            while not line.poll(0):
                for end, wants in ((server, bool(echo.owed)), (client, flow.due())):
                    poll.register(end, select.POLLIN | (select.POLLOUT if wants else 0))
                poll.poll(PACE * 1000 / 2)
                echo.turn()
                flow.turn()
        raise EOFError

    def _accept(self, line: Connection, listener: socket.socket) -> socket.socket:
        while not line.poll(0.01):
            try:
                return listener.accept()[0]
            except BlockingIOError:
                continue
        raise EOFError


class _Echo:
    """Plays the far end."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self.owed = end, bytearray()

    def turn(self) -> None:
        """Reads what came, and sends back as much as there is room for."""
        try:
            received = self._end.recv(1 << 16)
            if not received:
                raise OSError(errno.ECONNRESET, "closed by the other end")
            self.owed += received
        except BlockingIOError:
            pass
        if self.owed:
            with contextlib.suppress(BlockingIOError):
                del self.owed[: self._end.send(self.owed)]


class _Writer:
    """Plays the near end, which compares each byte that comes back."""

    def __init__(self, end: socket.socket, record: Record) -> None:
        self._end, self._record = end, record
        self._content = content() * 2
        self._written = self._read = 0
        self._next = time.monotonic()

    def due(self) -> bool:
        """Tells whether to write now."""
        return time.monotonic() >= self._next and self._written - self._read < UNDER_WAY

    def turn(self) -> None:
        """Writes at its pace, compares what came back."""
        if self.due():
            at = self._written % PIECE
            try:
                self._written += self._end.send(self._content[at : at + PIECE])
                self._next = max(self._next + PACE, time.monotonic() - PACE)
            except BlockingIOError:
                pass
        try:
            received = self._end.recv(PIECE)
        except BlockingIOError:
            return
        if not received:
            raise OSError(errno.ECONNRESET, "closed by the other end")
        at = self._read % PIECE
        if received != self._content[at : at + len(received)]:
            self._record.add("tcp_wrong")
        self._read += len(received)
        self._record.add("tcp_bytes", len(received))
        self._record.put("tcp_last_us", time.time_ns() // 1000)
