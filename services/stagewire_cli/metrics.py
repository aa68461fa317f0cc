"""Fetches a gateway's metrics for `stagewire metrics`, writes them to a textfile, and lists where Prometheus finds them."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from stagewire import logs
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.whole_files import WholeFile
from stagewire_cli.failures import Failed, NotUp

PATIENCE: Final = 5.0
"""s for an answer, and for each piece of it."""
WHOLE_WITHIN: Final = 30.0
"""s for all of it."""
MOST: Final = 256 << 20
"""Bytes of it: a page of 65,536 peers has fewer."""
_PIECE: Final = 1 << 20
_MODE: Final = 0o644
"""The collector reads the file as another user."""


def url(environment: Environment) -> str:
    """Returns where status-service serves a gateway's metrics. Raises Failed."""
    if not environment.run.exists():
        raise NotUp(environment.interface)
    counted = query.status_service(environment)
    if counted is None:
        raise Failed("status-service does not answer")
    if not counted.metrics.startswith("http"):
        off = counted.metrics == "off"
        raise Failed(f"serves no metrics: {'STAGEWIRE_METRICS is off' if off else counted.metrics}")
    return counted.metrics


def text(environment: Environment) -> bytes:
    """Returns the metrics in Prometheus' text format. Raises Failed.

    status-service may be an attacker's: so this reads from an address of this host alone, and neither for ever nor without
    end.
    """
    said = url(environment)
    try:
        place = urlsplit(said)
        host, port = place.hostname or "", place.port
        _expect_ours(host)
        line = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        with closing(line):
            line.connect()
            until = time.monotonic() + WHOLE_WITHIN
            with _cut_in_time(line.sock):
                line.request("GET", place.path)
                answer = line.getresponse()
                body = _body(answer, until)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Failed(f"{said}: {logs.cleaned(str(error))}") from None
    if answer.status != http.HTTPStatus.OK:
        raise Failed(f"{said}: answers {answer.status} {logs.cleaned(answer.reason)}")
    return logs.cleaned_output(body)


@contextmanager
def _cut_in_time(connection: socket.socket) -> Iterator[None]:
    """Cuts a connection WHOLE_WITHIN later: http.client has no bound for a head that comes byte by byte, nor for many."""

    def cut() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(WHOLE_WITHIN, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _expect_ours(host: str) -> None:
    """Raises OSError or ValueError unless the host is an address of this machine."""
    address = ip_address(host)
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))


def _body(answer: http.client.HTTPResponse, until: float) -> bytes:
    """Reads the whole answer. Raises ValueError for one that doesn't end by that time (s)."""
    pieces, size, is_whole = [], 0, False
    while not is_whole:
        piece = answer.read1(_PIECE)
        pieces.append(piece)
        size += len(piece)
        is_whole = not piece
        if size > MOST or time.monotonic() >= until:
            raise ValueError("the answer does not end")
    return b"".join(pieces)


def write(environment: Environment, file: Path) -> None:
    """Puts the metrics into a file, in one step: a reader sees the old text or the new one. Raises Failed."""
    if file.suffix != ".prom":
        raise Failed(f"{file}: node-exporter reads only files whose names end in .prom")
    body = text(environment)
    try:
        with WholeFile(file) as fresh:
            fresh.write(body)
            os.fchmod(fresh.descriptor, _MODE)
            fresh.replace()
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}; nothing is written") from None


def targets(urls: Iterable[str]) -> str:
    """Lists gateways as Prometheus' file_sd_configs reads them."""
    places = [urlsplit(each).netloc for each in urls]
    return json.dumps([{"targets": places, "labels": {"job": "stagewire"}}], indent=2)
