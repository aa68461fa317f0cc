"""Copies of a holder's descriptors, given to its spare in good time.

The holder listens on a Unix socket of packets in its own folder (`<stage>/spare.<n>`). Each spare that connects is given
what there is, and all of it again when it changes: one packet of names with the descriptors attached (SCM_RIGHTS). The
spare sees to it that the other end is root or the stage's uid, and so does the holder. That the connection ends is how a
spare learns at once that the holder is gone.
"""

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stagewire.ipc.codec import BadControl, Codec
from stagewire.ipc.loop import Loop

VERSION: Final = 1
MAX_DESCRIPTORS: Final = 250
"""In one packet; the kernel takes 253."""
MAX_SPARES: Final = 128
"""Lines at once; each costs a descriptor."""
_PACKET: Final = 16 * 1024
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Named:
    """What the descriptors of a packet are, in their order."""

    names: tuple[str, ...]


_NAMED: Final[Codec[Named]] = Codec(VERSION, [Named])


def peer_uid(connection: socket.socket) -> int:
    """Whose process is, or was, at the other end of a Unix socket (SO_PEERCRED). Raises OSError."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def peer_pid(connection: socket.socket) -> int:
    """Which process is, or was, at the other end, as it was when it began to listen; 0 if we can't know it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


def _path(folder: Path, number: int) -> Path:
    return folder / f"spare.{number}"


class Bequest:
    """The holder's end."""

    def __init__(self, loop: Loop, folder: Path, number: int) -> None:
        """Listens in the stage's `folder`. Raises OSError."""
        self._loop = loop
        self._spares: list[socket.socket] = []
        self._left: dict[str, dict[str, int]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        path = _path(folder, number)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(MAX_SPARES)
        loop.add(self._listener.fileno(), self._accept)

    @property
    def spares(self) -> int:
        """How many wait."""
        return len(self._spares)

    def leave(self, descriptors: dict[str, int], of: str = "") -> None:
        """What spares are to hold copies of from now on, of one part of us; no more than MAX_DESCRIPTORS in all."""
        self._left[of] = descriptors
        for spare in list(self._spares):
            self._give(spare)

    def close(self) -> None:
        """Ends the lines, at which a spare takes over if the lock is free."""
        for opened in (self._listener, *self._spares):
            opened.close()
        self._spares = []

    def _accept(self, _now: float) -> None:
        with suppress(OSError):
            spare, _ = self._listener.accept()
            spare.setblocking(False)
            if peer_uid(spare) not in {0, os.geteuid()} or len(self._spares) >= MAX_SPARES:
                spare.close()
                return
            self._spares.append(spare)
            self._loop.add(spare.fileno(), lambda _now: self._hang_up(spare))  # it has nothing to say but its end
            self._give(spare)

    def _give(self, spare: socket.socket) -> None:
        all_left = {name: descriptor for part in self._left.values() for name, descriptor in part.items()}
        try:
            socket.send_fds(spare, [_NAMED.pack(Named(tuple(all_left)))], list(all_left.values()))
        except OSError:
            self._hang_up(spare)

    def _hang_up(self, spare: socket.socket) -> None:
        if spare in self._spares:
            self._spares.remove(spare)
            self._loop.remove(spare.fileno())
            spare.close()


def ask(folder: Path, number: int, holder_uid: int) -> socket.socket | None:
    """A spare's line to the holder of a slot, if that listens by now."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        line.connect(str(_path(folder, number)))
        if peer_uid(line) in {0, holder_uid}:
            return line
    except OSError:
        pass
    line.close()
    return None


def receive(line: socket.socket) -> dict[str, int] | None:
    """The descriptors by name that came; None when the holder is gone."""
    try:
        packet, descriptors, _, _ = socket.recv_fds(line, _PACKET, MAX_DESCRIPTORS)
    except BlockingIOError:
        return {}
    except OSError:
        return None
    if not packet:
        return None
    try:
        names = _NAMED.unpack_untrusted(packet).names
    except BadControl:  # another version's: we open our own when the time comes
        names = ()
    if len(names) != len(descriptors):
        for descriptor in descriptors:
            os.close(descriptor)
        return {}
    return dict(zip(names, descriptors, strict=True))
