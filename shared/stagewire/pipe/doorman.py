"""Watches which processes connect to a ZeroMQ socket, and ends the connections that `speakers` refuses.

libzmq accepts connections itself, and any number of them. `IPC_FILTER_UID` keeps strangers out. A monitor
(zmq_socket_monitor(3)) tells of each accepted connection, by its descriptor in this process. The doorman asks the kernel who
is at its other end, and keeps a copy of the descriptor: the number itself may be another's by then. It may even be that of
such a copy, so the doorman knows connections by their inodes.
"""

import itertools
import os
import socket as sockets
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

from stagewire.loop import Loop
from stagewire.pipe.speakers import Admission

_EVENT: Final = struct.Struct("=Hi")
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
_ENDED: Final = int(zmq.EVENT_DISCONNECTED) | int(zmq.EVENT_CLOSED)
_DONTWAIT: Final = int(zmq.DONTWAIT)
_numbers: Final = itertools.count()
PER_TURN: Final = 64
"""Events."""


class Doorman:
    """Watches one socket, from before it is bound."""

    def __init__(self, loop: Loop, socket: "zmq.Socket[bytes]", path: Path, admission: Admission) -> None:
        """Watches the connections to the socket at `path`."""
        self._loop, self._admission, self._path = loop, admission, str(path)
        self._lines: dict[int, sockets.socket] = {}
        """Copies of the admitted connections, by libzmq's own descriptors."""
        self._inodes: dict[int, int] = {}
        """The inodes of these connections, by the same descriptors."""
        self._socket = socket
        address = f"inproc://doorman-{next(_numbers)}"
        socket.monitor(address, _ACCEPTED | _ENDED)
        self._events: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
        self._events.set(zmq.RCVHWM, 0)  # a lost event would be a connection that nobody watches
        self._events.connect(address)
        loop.add(self._events, self._read)

    def close(self) -> None:
        """Ends the watch; to be called before the socket is closed."""
        if self._events.closed:
            return
        self._loop.remove(self._events)
        self._socket.disable_monitor()
        self._events.close()
        for line in self._lines.values():
            line.close()
        self._lines.clear()
        self._inodes.clear()

    def _read(self, _now: float) -> None:
        for _ in range(PER_TURN):
            try:
                event = self._events.recv_multipart(_DONTWAIT)[0]
            except zmq.Again:
                return
            if len(event) != _EVENT.size:
                continue
            kind, descriptor = _EVENT.unpack(event)
            self._forget(descriptor)  # libzmq may use a number again before we hear of the end
            if kind == _ACCEPTED:
                self._welcome(descriptor)

    def _welcome(self, descriptor: int) -> None:
        try:
            line = sockets.socket(fileno=os.dup(descriptor))
        except OSError:  # it has ended, and the number is free or no socket's
            return
        inode = os.fstat(line.fileno()).st_ino
        if not self._is_a_connection(line) or inode in self._inodes.values():
            line.close()  # it has ended, and the number is another's
        elif self._admission.admit(line):
            self._lines[descriptor], self._inodes[descriptor] = line, inode
        else:
            with suppress(OSError):  # it has ended
                line.shutdown(sockets.SHUT_RDWR)
            line.close()

    def _is_a_connection(self, line: sockets.socket) -> bool:
        if line.family != sockets.AF_UNIX or line.getsockname() != self._path:
            return False
        return not line.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN)

    def _forget(self, descriptor: int) -> None:
        line = self._lines.pop(descriptor, None)
        if line is not None:
            del self._inodes[descriptor]
            self._admission.forget(line.fileno())
            line.close()
