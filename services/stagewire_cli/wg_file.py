"""Tells which process listens at an interface's `wg` socket, and removes the file unless it is another program's."""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.environment import Environment
from stagewire.process import slots

_TIMEOUT: Final = 1.0
_CREDENTIALS: Final = struct.Struct("3i")
"""pid, uid, gid."""


def path_of(environment: Environment) -> Path:
    """Returns the path at which `wg` finds an interface's socket."""
    return environment.wg / f"{environment.interface}.sock"


def server(path: Path) -> int | None:
    """Returns the pid of the process that listens at a socket; 0 when none does; None without a socket.

    The kernel names the process that began to listen (SO_PEERCRED).
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_TIMEOUT)
        try:
            line.connect(str(path))
        except ConnectionRefusedError:
            return 0
        except OSError:
            return None
        credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[0])


class WgFile:
    """Remembers the socket's file as it was at first sight."""

    def __init__(self, environment: Environment) -> None:
        self._path = path_of(environment)
        self._found = _stat(self._path)
        self.server = server(self._path) if self._found else None
        self.is_ours = bool(self.server) and self.server in slots.contenders(environment.run, "key")
        """Whether a key-service of this interface listens at it."""

    def remove(self) -> None:
        """Removes the file if it is ours, or if no process listened at first sight and none does now."""
        if self.is_ours or (self.server == 0 and server(self._path) == 0):
            found = _stat(self._path)
            if found and self._found and os.path.samestat(found, self._found):
                with suppress(OSError):
                    self._path.unlink()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None
