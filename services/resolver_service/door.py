"""Gets sockets from host-service, whose mark keeps their packets outside the tunnel."""

import errno
import os
import socket
import time
from pathlib import Path
from threading import Semaphore
from typing import Final

from stagewire.control import socket_door

MOST_AT_ONCE: Final = 8
"""Connections to host-service; it accepts 16 from all stages together."""
PATIENCE: Final = 3.0
"""s to wait for a host-service that is starting."""
ONE_TRY: Final = 1.0
"""s for one answer of host-service."""
RETRY: Final = 0.05
"""s between two tries."""
_DATAGRAM: Final = {socket.AF_INET: socket_door.UDP4, socket.AF_INET6: socket_door.UDP6}
_STREAM: Final = {socket.AF_INET: socket_door.TCP4, socket.AF_INET6: socket_door.TCP6}
_NAMES: Final[dict[int, dict[int, str]]] = {
    kind: {int(family): name for family, name in names.items()}
    for kind, names in ((socket.SOCK_DGRAM, _DATAGRAM), (socket.SOCK_STREAM, _STREAM))
}


class HostDoor:
    """Returns one socket for each call. Threads may share a door."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places = Semaphore(MOST_AT_ONCE)

    def __call__(self, family: int, kind: int) -> socket.socket:
        """Returns a socket. Raises OSError if the host lacks the family or host-service stays away."""
        wanted = _NAMES[kind][family]
        until = time.monotonic() + PATIENCE
        while True:
            given = self._ask(tuple(_NAMES[kind].values()))
            found = given.pop(wanted, None)
            for other in given.values():
                other.close()
            if found is not None:
                return found
            if given:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            if time.monotonic() >= until:
                raise OSError(errno.EAGAIN, "host-service hands no socket over")
            time.sleep(RETRY)

    def _ask(self, kinds: tuple[str, ...]) -> dict[str, socket.socket]:
        try:
            with self._places:
                return socket_door.ask(self._path, kinds, ONE_TRY)
        except OSError:  # host-service is away, or starting
            return {}
