"""Asks root, through supervisord, to put the peers out of use in the file whose time is over.

key-service cannot write the file. It says which kind of change it wants, and no more (`stagewire_cli/writer.py`).
"""

import json
import socket
from contextlib import suppress
from typing import Any, Final

from stagewire import logs
from stagewire.config.operations import ExpirePeers
from stagewire.control.operations import to_json
from stagewire.linux import descriptors
from stagewire.loop import boot_time
from stagewire.pipe.names import WRITER
from stagewire.process.stage import Stage

FIRST_PAUSE: Final = 5.0
"""s until another attempt after a refusal; each further pause is twice as long."""
LAST_PAUSE: Final = 3600.0
"""s."""
PATIENCE: Final = 200.0
"""s that the writer gets to answer."""
_MOST: Final = 4096
"""Bytes of an answer."""


class FileWriter:
    """Asks again until root's writer says that the file and key-service agree."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._due: float | None = None
        self._pause = FIRST_PAUSE
        self._line: socket.socket | None = None
        self._asked_again = False
        """Another peer's time was over while the writer was at work."""
        self._complaint = ""

    def ask(self) -> None:
        """Begins to ask."""
        if self._line is not None:
            self._asked_again = True
        else:
            self._due, self._pause = boot_time(), FIRST_PAUSE

    def next_deadline(self) -> float | None:
        return self._due

    def act(self, now: float) -> None:
        """Asks, or ends a question that was left without an answer."""
        if self._due is None or now < self._due:
            return
        if self._line is not None:
            self._ended("root's writer does not answer", now)
            return
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        descriptors.allow(line, allowed=False)
        try:
            line.connect(str(self._stage.environment.run / WRITER))
            line.send(json.dumps(to_json(ExpirePeers())).encode() + b"\n")
        except OSError as error:
            line.close()
            self._ended(f"supervisord starts no writer ({error.strerror})", now)
            return
        self._line, self._due = line, now + PATIENCE
        self._stage.loop.add(line.fileno(), self._on_answer)

    def _on_answer(self, now: float) -> None:
        assert self._line is not None  # noqa: S101 - the loop watches it
        data = b""
        with suppress(OSError):
            data = self._line.recv(_MOST)
        self._ended(_error_in(data), now)

    def _ended(self, error: str, now: float) -> None:
        if self._line is not None:
            self._stage.loop.remove(self._line.fileno())
            self._line.close()
            self._line = None
        if error:
            if error != self._complaint:
                self._stage.log.warning("expired peers stay in the file for now", reason=error)
            self._due, self._pause = now + self._pause, min(2 * self._pause, LAST_PAUSE)
        else:
            self._due = now if self._asked_again else None
            self._pause = FIRST_PAUSE
        self._asked_again, self._complaint = False, error


def _error_in(data: bytes) -> str:
    """Returns what the writer says, which is short enough to come in one piece."""
    try:
        said: Any = json.loads(data)
        return logs.cleaned(str(said["error"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "root's writer ended without an answer"
