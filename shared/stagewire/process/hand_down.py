"""Hands down copies of a holder's descriptors, and key-service's last words, to its spares beforehand.

The holder listens on a Unix socket of packets in its stage's folder (`<stage>/spare.<n>`). It sends all its descriptors to
each spare that connects, and to every spare again at each change. They travel in one packet of names, with the descriptors
attached (SCM_RIGHTS). Both ends check that the other is root or the stage's uid. The end of the connection tells a spare
at once that the holder is gone. `handed` checks each descriptor for what its name means.

`Said` is a memory file of key-service's messages to the holder. Its descriptor is handed down with the others.
"""

import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.control.codec import BadControl, Codec
from stagewire.linux.descriptors import allow, close
from stagewire.linux.peer_credentials import peer_uid
from stagewire.loop import Loop
from stagewire.process import handed

VERSION: Final = 1
MAX_DESCRIPTORS: Final = 250
"""Descriptors in a packet; the kernel takes 253 (unix(7))."""
MAX_WAITING: Final = 128
"""Spares at once; each costs the holder a descriptor."""
_PACKET: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Named:
    """Names the descriptors of a packet, in their order."""

    names: tuple[str, ...]


_NAMED: Final[Codec[Named]] = Codec(VERSION, [Named])


def _path(folder: Path, number: int) -> Path:
    return folder / f"spare.{number}"


class Bequest:
    """Gives descriptors to the spares, in the holder."""

    def __init__(self, loop: Loop, folder: Path, number: int) -> None:
        """Listens in the stage's `folder`. Raises OSError."""
        self._loop = loop
        self._spares: list[socket.socket] = []
        self._left: dict[str, dict[str, int]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        allow(self._listener, allowed=False)
        self.path = _path(folder, number)
        files.clear(self.path)
        self._listener.bind(str(self.path))
        self._listener.listen(MAX_WAITING)
        loop.add(self._listener.fileno(), self._accept)

    @property
    def spares(self) -> int:
        """Counts the spares that wait."""
        return len(self._spares)

    def leave(self, descriptors: dict[str, int], of: str = "") -> None:
        """Hands down one part's descriptors from now on, MAX_DESCRIPTORS of all parts at most. `of` names the part."""
        self._left[of] = descriptors
        for spare in list(self._spares):
            self._give(spare)

    def close(self) -> None:
        """Ends the lines. A spare takes over then, if the lock is free."""
        for opened in (self._listener, *self._spares):
            opened.close()
        self._spares = []

    def _accept(self, _now: float) -> None:
        with suppress(OSError):
            spare, _ = self._listener.accept()
            spare.setblocking(False)
            if peer_uid(spare) not in {0, os.geteuid()} or len(self._spares) >= MAX_WAITING:
                spare.close()
                return
            self._spares.append(spare)
            self._loop.add(spare.fileno(), lambda _now: self._hang_up(spare))  # only an end is readable
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
    """Returns a spare's line to the holder of a slot; None if no holder of ours listens."""
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
    """Returns the descriptors of one packet by name; None when the holder is gone. Raises BlockingIOError without a packet.

    A packet that breaks a rule leaves nothing.
    """
    try:
        packet, descriptors, flags, _ = socket.recv_fds(line, _PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not packet:
        close_all(descriptors)
        return None
    names: tuple[str, ...] = ()
    with suppress(BadControl):  # another version's; the spare opens its own after the take-over
        names = _NAMED.unpack_untrusted(packet).names
    cut = flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
    if cut or len(names) != len(descriptors) or len(set(names)) != len(names):
        close_all(descriptors)
        return {}
    return dict(zip(names, descriptors, strict=True))


def sound(received: dict[str, int], run: Path, stage: str, uid: int) -> dict[str, int]:
    """Returns what is as its name says, and closes the rest. `uid` is the holder's."""
    good = {name: each for name, each in received.items() if handed.is_sound(name, each, run / stage, uid)}
    close_all(each for name, each in received.items() if name not in good)
    return good


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors, also sockets that would linger."""
    for descriptor in descriptors:
        close(descriptor)


_SAID_LENGTH: Final = struct.Struct("=I")


class Said:
    """Keeps control messages in memory that outlives the process.

    `inherited` is the descriptor that was handed down; this object owns it.
    """

    def __init__(self, inherited: int | None = None) -> None:
        self.descriptor = os.memfd_create(handed.SAID, os.MFD_CLOEXEC) if inherited is None else inherited
        self._size = os.fstat(self.descriptor).st_size

    def begin(self) -> None:
        """Empties the file for a new snapshot."""
        os.ftruncate(self.descriptor, 0)
        self._size = 0

    def add(self, message: bytes) -> None:
        """Appends a message. A message beyond handed.MAX_SAID empties the file until `begin`."""
        end = self._size + _SAID_LENGTH.size + len(message)
        if end > handed.MAX_SAID:
            os.ftruncate(self.descriptor, 0)
            end = handed.MAX_SAID
        else:
            os.pwrite(self.descriptor, _SAID_LENGTH.pack(len(message)) + message, self._size)
        self._size = end

    def messages(self) -> list[bytes]:
        """Returns all complete messages."""
        data = os.pread(self.descriptor, handed.MAX_SAID, 0)
        found, offset = [], 0
        while offset + _SAID_LENGTH.size <= len(data):
            [length] = _SAID_LENGTH.unpack_from(data, offset)
            offset += _SAID_LENGTH.size + length
            if offset > len(data):
                break
            found.append(data[offset - length : offset])
        return found
