"""Hands events over to web servers and commands, to each one after another, and tries again what fails.

Each receiver reads for itself, so none waits for another. Nothing waits here but the event at hand of each: the next ones
stay in status-service, which keeps a bounded number of each kind.
"""

import http.client
import queue
import shlex
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from stagewire import logs
from stagewire_cli.failures import Failed

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 300.0
PATIENCE: Final = 15.0
"""s for one attempt, however slowly the server answers."""
_TRY_AGAIN: Final = frozenset((408, 425, 429))
"""Statuses that speak of the moment; the others from 400 to 499 speak of the event."""
_SHOWN: Final = 200
"""Letters of a command's complaint that are shown."""


class Undelivered(Exception):  # noqa: N818 - it is the receiver's error
    """Says in a line why an attempt failed. `for_good`: another attempt would fail as well."""

    def __init__(self, text: str, *, for_good: bool = False) -> None:
        super().__init__(text)
        self.for_good = for_good


Send = Callable[[bytes], None]
"""Hands one event over, as JSON. Raises Undelivered."""


def deliver(
    body: bytes, send: Send, warn: Callable[[str], None], pause: Callable[[float], object] = time.sleep
) -> None:
    """Hands an event over, until it is taken or refused for good. `warn` hears of the first failure and of the end."""
    wait, failures = FIRST_PAUSE, 0
    while True:
        try:
            send(body)
        except Undelivered as failed:
            failures += 1
            if failed.for_good:
                warn(f"an event was refused, and is passed over: {failed}")
                return
            if failures == 1:
                warn(f"an event could not be delivered, and is tried again: {failed}")
            pause(wait)
            wait = min(2 * wait, LONGEST_PAUSE)
        else:
            if failures:
                warn(f"delivered again, after {failures} failures")
            return


class Slowest:
    """Tells how far all receivers are: to the event that the slowest has dealt with."""

    def __init__(self, receivers: int, advance: Callable[[int], None]) -> None:
        """Takes `advance`, which hears of each such event's id."""
        self._at = [0] * receivers
        self._told = 0
        self._advance = advance
        self._lock = threading.Lock()

    def reached(self, receiver: int, id_: int) -> None:
        """Notes that a receiver has dealt with an event."""
        with self._lock:
            self._at[receiver] = id_
            if (slowest := min(self._at)) > self._told:
                self._told = slowest
                self._advance(slowest)


def to_each(
    sends: Sequence[Send],
    read: Callable[[], Iterator[tuple[int, bytes]]],
    advance: Callable[[int], None],
    warn: Callable[[str], None],
) -> None:
    """Hands events over to each receiver at its own pace, without end. Raises what reading and `advance` raise.

    `read` yields (id, event) for one receiver. `advance` hears how far all of them are.
    """
    slowest, ended = Slowest(len(sends), advance), queue.SimpleQueue[Exception]()

    def serve(receiver: int, send: Send) -> None:
        try:
            for id_, body in read():
                deliver(body, send, warn)
                slowest.reached(receiver, id_)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            ended.put(error)

    for receiver, send in enumerate(sends):
        threading.Thread(target=serve, args=(receiver, send), daemon=True).start()
    raise ended.get()


class Webhook:
    """Posts each event to a URL of http or https."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        """Raises Failed for what is no such URL. The URL may hold a secret, so no message repeats it."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Failed(f"the webhook's URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise Failed("the webhook's URL must begin with http:// or https:// and a host")
        if parts.username is not None:
            raise Failed("the webhook's URL must hold no user name; put a token into its path")
        self._host, self._port, self._tls = parts.hostname, port, parts.scheme == "https"
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._patience = patience

    def __call__(self, body: bytes) -> None:
        connection = self._connection()
        late = threading.Event()

        def end() -> None:
            late.set()
            with suppress(OSError):
                if connection.sock is not None:
                    connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._patience, end)
        timer.daemon = True
        timer.start()
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "stagewire"}
            connection.request("POST", self._target, body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            text = f"no answer in {self._patience:.0f} s" if late.is_set() else str(error) or type(error).__name__
            raise Undelivered(logs.cleaned(text)) from None
        finally:
            timer.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise Undelivered(
                f"the server answered {status}", for_good=400 <= status < 500 and status not in _TRY_AGAIN
            )

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._patience, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._patience)


class Command:
    """Runs a command for each event, without a shell, with the event on its standard input."""

    def __init__(self, line: str, patience: float = PATIENCE) -> None:
        """Raises Failed for an empty line and an open quotation."""
        try:
            self._words = shlex.split(line)
        except ValueError as error:
            raise Failed(f"--exec: {error}") from None
        if not self._words:
            raise Failed("--exec: no command")
        self._patience = patience

    def __call__(self, body: bytes) -> None:
        try:
            done = subprocess.run(self._words, input=body, capture_output=True, timeout=self._patience, check=False)
        except subprocess.TimeoutExpired:
            raise Undelivered(f"{self._words[0]} did not end in {self._patience:.0f} s") from None
        except OSError as error:
            raise Undelivered(f"{self._words[0]}: {error.strerror}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            more = f": {logs.cleaned(said[-1][:_SHOWN])}" if said else ""
            raise Undelivered(f"{self._words[0]} ended with status {done.returncode}{more}")
