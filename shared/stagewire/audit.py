"""Writes down each change of the configuration that an operator asks for: who, when, what. No line holds a secret.

key-service writes while the interface is up, otherwise the command.

{"when": "2030-12-31T18:00:00Z", "interface": "wg0", "uid": 0, "pid": 4711, "by": "anna", "what": "peer add",
 "changes": ["+ peer phone (vG4mK2Aa…)  AllowedIPs 10.8.0.2/32"]}
"""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stagewire import files

NAME: Final = "audit"
MAX_SIZE: Final = 4 << 20
"""Bytes of a file; the one before it is kept as `audit.1`."""
_COMMANDS: Final = ("PreUp", "PostUp", "PreDown", "PostDown")


@dataclass(frozen=True, slots=True)
class Asker:
    """Describes the process that asked, by the kernel's word; `by` is a name that it gives itself."""

    uid: int
    pid: int
    by: str = ""


class Audit:
    """Appends lines to the audit of an interface."""

    def __init__(self, state: Path, interface: str) -> None:
        """Writes into a file of the interface's state folder."""
        self._path = state / NAME
        self._interface = interface
        self._before = 0

    def write(self, asker: Asker, what: str, changes: Iterable[str]) -> None:
        """Appends a line, which is on the disk afterwards. Raises OSError, and then leaves no part of it."""
        said = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "interface": self._interface,
            "uid": asker.uid,
            "pid": asker.pid,
            "by": asker.by,
            "what": what,
            "changes": [_without_command(line) for line in changes],
        }
        line = json.dumps(said, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._make_room(len(line))
        descriptor = files.opened(self._path, MAX_SIZE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            self._before = os.fstat(descriptor).st_size
            try:
                rest = memoryview(line)
                while rest:  # on a disk that is nearly full, the second write raises
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self._before)
                raise
        finally:
            os.close(descriptor)

    def take_back(self) -> None:
        """Removes the last line: its change was not made. Raises OSError."""
        descriptor = files.opened(self._path, MAX_SIZE, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, self._before)
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        try:
            full = self._path.lstat().st_size + size > MAX_SIZE
        except FileNotFoundError:
            return
        if full:
            files.put(self._path, self._path.with_name(f"{self._path.name}.1"))


def _without_command(line: str) -> str:
    """Cuts a hook's command, which may hold a secret."""
    sign, _, rest = line.partition(" ")
    key = rest.partition(" ")[0]
    return f"{sign} {key}" if key in _COMMANDS else line
