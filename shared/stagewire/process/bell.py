"""Shows the spares of a stage that work waits, where libzmq would hide it.

libzmq reads connections in a thread of its own, so no spare can wait for the same descriptors. A stage rings the bell before
it says anything of weight. The holder silences it before each sleep. So a bell that rings while a stopped holder sleeps
tells of a message that the holder has not read.
"""

import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import finalize

from stagewire import files
from stagewire.linux import descriptors

NAME: Final = "bell"
_MOST: Final = 64
"""Datagrams that one call reads; the kernel keeps fewer for a socket (net.unix.max_dgram_qlen)."""


class Bell:
    """Rings in the holder of a slot."""

    def __init__(self, folder: Path) -> None:
        """Makes the bell anew in the stage's `folder`. Raises OSError."""
        path = folder / NAME
        files.clear(path)
        self._socket = _socket()
        finalize(self, self._socket.close)
        self._socket.bind(str(path))
        self._waits = select.epoll()
        self.watch(self._socket.fileno())

    @property
    def descriptor(self) -> int:
        """Shows what a spare gets a copy of: it is readable while the bell rings, or while a watched descriptor is."""
        return self._waits.fileno()

    def fileno(self) -> int:
        return self._socket.fileno()

    def watch(self, descriptor: int) -> None:
        """Has the descriptor tell of another one as well, such as a listener of the holder."""
        self._waits.register(descriptor, select.EPOLLIN)

    def silence(self) -> None:
        """Ends the ringing, as all that came has been read. Hot."""
        with suppress(OSError):
            for _ in range(_MOST):
                self._socket.recv(1)


class Ringer:
    """Rings the bell of another stage."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / NAME)
        self._socket = _socket()
        finalize(self, self._socket.close)

    def ring(self) -> None:
        """Rings, or does nothing if the bell is gone or rings already."""
        with suppress(OSError):
            self._socket.sendto(b"\0", self._path)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    descriptors.allow(made, allowed=False)
    return made
