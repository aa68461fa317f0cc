"""Keeps descriptors from harm that other processes hand over through Unix sockets (unix(7), SCM_RIGHTS)."""

import ctypes
import socket
import stat
import struct
from contextlib import suppress
from os import close as close_now
from os import fstat
from typing import Final

MOST: Final = 253
"""Descriptors that one message can carry."""
_SO_PASSRIGHTS: Final = 83
"""Linux 6.16."""
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_NOBODY: Final = struct.pack("H14x", socket.AF_UNSPEC)
_libc: Final = ctypes.CDLL(None)


def close(descriptor: int) -> None:
    """Closes a descriptor. A socket that lingers would hold us up (socket(7), SO_LINGER)."""
    with suppress(OSError):
        if stat.S_ISSOCK(fstat(descriptor).st_mode):
            opened = socket.socket(fileno=descriptor)
            try:
                _end_lingering(opened)
            finally:
                opened.detach()
    with suppress(OSError):
        close_now(descriptor)


def _end_lingering(opened: socket.socket) -> None:
    if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
        return
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except PermissionError:  # a stage may not set it (`sandbox.calls`); disconnected, the socket waits for nothing
        _libc.connect(opened.fileno(), _NOBODY, len(_NOBODY))


def allow(opened: socket.socket, *, allowed: bool) -> None:
    """Says whether the other end may attach descriptors; a connection that is accepted does as its listener did.

    The kernel itself closes those that nobody takes, and a socket that lingers would hold us up. An older kernel lets all
    be attached.
    """
    with suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, allowed)
