"""Asks the kernel which process is at the other end of a Unix socket (unix(7), SO_PEERCRED)."""

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

_CREDENTIALS: Final = struct.Struct("3i")
_SO_PEERPIDFD: Final = 77
"""Linux 6.5."""


class Credentials(NamedTuple):
    """Describes the process that connected or listened at the other end. `pid` is 0 if our pid namespace hasn't got it."""

    pid: int
    uid: int
    gid: int


def credentials(connection: socket.socket) -> Credentials:
    """Returns what the kernel noted when the other end connected or began to listen. Raises OSError."""
    return Credentials(
        *_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    )


def peer_uid(connection: socket.socket) -> int:
    """Returns the uid of the process that connected or listened at the other end. Raises OSError."""
    return credentials(connection).uid


def peer_pid(connection: socket.socket) -> int:
    """Returns the pid of the process that connected or listened at the other end; 0 if our pid namespace hasn't got it."""
    return credentials(connection).pid


def peer_process(connection: socket.socket) -> int:
    """Returns a descriptor of that process (pidfd), which never means another with the same pid. Raises OSError.

    An older kernel names only the pid.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.pidfd_open(peer_pid(connection))


def pid_of(process: int) -> int | None:
    """Returns the pid of a process, given by its descriptor; None once the process is gone (pidfd_open(2))."""
    text = Path(f"/proc/self/fdinfo/{process}").read_text()
    pid = next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pid:")), -1)
    return pid if pid > 0 else None
