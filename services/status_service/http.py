"""Serves metrics and health by HTTP, without a thread: a few requests at a time, none for long.

A page of another site may have its name lead here, and its script would read what we answer. So a request must name an
address, `localhost` or a name that the operator has set.
"""

import re
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from stagewire.loop import Loop

MAX_CLIENTS: Final = 32
"""Connections at a time; one more ends the oldest."""
BACKLOG: Final = 128
"""Connections that wait to be accepted: the caller beyond them waits a second."""
PATIENCE: Final = 5.0
"""s for a request and its answer."""
MAX_REQUEST: Final = 8192
PORTS: Final = 64
"""Ports that are tried, one after the other: other interfaces may have the first ones."""
Answer = tuple[int, str, bytes]
"""(status, content type, body)"""
_REASONS: Final = {
    200: "OK",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    400: "Bad Request",
    503: "Service Unavailable",
}


class BadRequest(Exception):  # noqa: N818 - it is the client's error
    """Refuses a request, with HTTP's status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def read_untrusted(request: bytes, names: Collection[str] = ()) -> tuple[str, bool]:
    """Reads the path of a request, and whether only the answer's head is wanted. Raises BadRequest, and nothing else.

    `names` has the host names in lower case that it may be for, besides addresses and `localhost`.
    """
    words = request.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise BadRequest(400, "this is no HTTP request")
    if words[0] not in (b"GET", b"HEAD"):
        raise BadRequest(405, "only GET is answered")
    for name in _hosts(request):
        if not (name == "localhost" or name in names or _is_address(name)):
            raise BadRequest(403, "no such name here: use an address, or set STAGEWIRE_METRICS_NAMES for `up`")
    return words[1].partition(b"?")[0].decode("ascii", "replace"), words[0] == b"HEAD"


def _hosts(request: bytes) -> Iterator[str]:
    """Yields the host names that a request gives, without ports and in lower case."""
    for line in request.partition(b"\r\n\r\n")[0].split(b"\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"host":
            host = _PORT.sub("", value.strip().decode("ascii", "replace").lower())
            yield host.removeprefix("[").removesuffix("]").removesuffix(".")


_PORT: Final = re.compile(r"(?<!:):[0-9]*$")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def listen(address: str, port: int) -> socket.socket | str:
    """Opens the first free port from this one on. Returns why there is none, if so."""
    reason = ""
    for each in range(port, min(port + PORTS, 0xFFFF + 1)):
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, each))
            opened.listen(BACKLOG)
        except OSError as error:
            opened.close()
            reason = f"{address}:{each}: {error.strerror}"
        else:
            opened.setblocking(False)
            return opened
    return reason


@dataclass(slots=True, eq=False)
class _Client:
    opened: socket.socket
    until: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Server:
    """Answers GET requests by `answer`, which takes a path. `names` is that of `read_untrusted`."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        answer: Callable[[str, float], Answer],
        names: Collection[str] = (),
    ) -> None:
        self._loop, self._listener, self._answer, self._names = loop, listener, answer, names
        self._clients: dict[int, _Client] = {}
        loop.add(listener.fileno(), self._on_listener)
        loop.add_timed(self)

    @property
    def url(self) -> str:
        """Returns the address of the metrics."""
        address, port = self._listener.getsockname()[:2]
        return f"http://{f'[{address}]' if ':' in address else address}:{port}/metrics"

    def next_deadline(self) -> float | None:
        return min((client.until for client in self._clients.values()), default=None)

    def act(self, now: float) -> None:
        """Ends the connections that took too long."""
        for client in [client for client in self._clients.values() if client.until <= now]:
            self._end(client)

    def _on_listener(self, now: float) -> None:
        for _ in range(MAX_CLIENTS):
            try:
                opened, _ = self._listener.accept()
            except OSError:  # nobody else calls, or the client has gone
                return
            self._take(opened, now)

    def _take(self, opened: socket.socket, now: float) -> None:
        opened.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            self._end(next(iter(self._clients.values())))
        client = self._clients[opened.fileno()] = _Client(opened, now + PATIENCE)
        self._loop.add(opened.fileno(), lambda at: self._on_client(client, at))

    def _on_client(self, client: _Client, now: float) -> None:
        try:
            data = client.opened.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.request += data
        if not data or len(client.request) > MAX_REQUEST:
            self._end(client)
        elif client.answer is None and b"\r\n\r\n" in client.request:
            client.answer = memoryview(self._respond(bytes(client.request), now))
            self._write(client)

    def _respond(self, request: bytes, now: float) -> bytes:
        head_only = False
        try:
            path, head_only = read_untrusted(request, self._names)
        except BadRequest as bad:
            status, kind, body = bad.status, "text/plain", f"{bad}\n".encode()
        else:
            status, kind, body = self._answer(path, now)
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n"
        )
        return head.encode() + (b"" if head_only else body)

    def _write(self, client: _Client, _now: float = 0.0) -> None:
        if client.answer is None or client.opened.fileno() not in self._clients:
            return
        try:
            client.answer = client.answer[client.opened.send(client.answer) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end(client)
            return
        if client.answer:
            self._loop.when_writable(client.opened.fileno(), lambda at: self._write(client, at))
        else:
            self._end(client)

    def _end(self, client: _Client) -> None:
        descriptor = client.opened.fileno()
        if self._clients.pop(descriptor, None) is not None:
            self._loop.when_writable(descriptor, None)
            self._loop.remove(descriptor)
            client.opened.close()
