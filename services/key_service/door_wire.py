"""Reads and writes what passes through the door for commands: lines of JSON and texts. Opens its socket."""

import json
import socket
from pathlib import Path
from typing import Any, BinaryIO, Final

from stagewire.limits import MAX_ACCEPTED
from stagewire.linux import root_socket
from stagewire.pipe.names import RELOAD

_WAITING: Final = 8
_MAX_LINE: Final = 4 << 20
"""Bytes of a line of JSON: an operation may add thousands of peers."""


def say(connection: socket.socket, said: dict[str, Any]) -> None:
    """Writes a line of JSON. Raises OSError."""
    connection.sendall(json.dumps(said).encode() + b"\n")


def heard(stream: BinaryIO) -> dict[str, Any]:
    """Reads a line of JSON. Raises ValueError, RecursionError or OSError."""
    line = stream.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise ValueError
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError  # noqa: TRY004 - no caller tells them apart
    return said


def text(stream: BinaryIO, length: object) -> str:
    """Reads a text of so many bytes. Raises ValueError or OSError."""
    if not isinstance(length, int) or not 0 <= length <= MAX_ACCEPTED:
        raise ValueError
    data = stream.read(length)
    if len(data) < length:
        raise ValueError
    return data.decode("utf-8", "surrogateescape")


def listen(run: Path) -> socket.socket:
    """Opens the socket as root, so that root alone may connect. Raises OSError."""
    return root_socket.listen(run / RELOAD.path, _WAITING)
