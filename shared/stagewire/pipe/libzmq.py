"""Carries trains by pyzmq, PUSH to PULL: the same contract as `direct`, for STAGEWIRE_PIPES=libzmq.

libzmq's threads move the messages, so a train costs more wake-ups and copies than with `direct`. A killed stage loses what
its libzmq had read or not yet written, and so do the stages that were sending to it: no connection is inherited.
"""

from collections.abc import Callable, Sequence

import zmq

from stagewire.loop import Loop
from stagewire.pipe.contract import Frame, Handler
from stagewire.pipe.doorman import Doorman
from stagewire.pipe.names import Limits
from stagewire.pipe.trains import HEADER, Part
from stagewire.pipe.waits import Waits

_EVENTS = int(zmq.EVENTS)
_WRITABLE = int(zmq.POLLOUT)
_DONTWAIT = int(zmq.DONTWAIT)
_LEAST = HEADER.size
"""Bytes that each message counts at least: a turn that takes empty messages must end as well."""


class LibzmqSender:
    """Sends by a connected PUSH socket, which is this sender's to close."""

    def __init__(self, loop: Loop, socket: "zmq.Socket[bytes]") -> None:
        self.most_held = 0
        self._loop = loop
        self._gathering = loop.gathering
        self._socket = socket

    @property
    def waiting(self) -> int:
        """Counts nothing: libzmq tells nobody how much it has."""
        return 0

    @property
    def connected(self) -> bool:
        """Tells whether libzmq has a reader with room."""
        return bool(int(self._socket.get(_EVENTS)) & _WRITABLE)

    def send(self, *parts: Part) -> bool:
        """Sends a train, all of it or nothing; tells which."""
        train = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            self._socket.send(train, _DONTWAIT)
        except zmq.Again:
            return False
        finally:
            self._loop.sent(self._socket)
        self._gathering.carried += len(train)
        return True

    def send_each(self, trains: Sequence[bytes]) -> int:
        """Sends trains until the pipe is full. Returns how many."""
        return next((at for at, train in enumerate(trains) if not self.send(train)), len(trains))

    def when_room(self, waiter: Callable[[float], None] | None) -> None:
        """Calls `waiter` while there is room; None: no longer."""
        self._loop.when_writable(self._socket, waiter)

    def close(self) -> None:
        """Hangs up; libzmq still sends what it has, as long as the socket lingers."""
        self._loop.remove(self._socket)
        self._socket.close()


class LibzmqReceiver:
    """Receives by a bound PULL socket, which is this receiver's to close. A turn takes no more than `limits.read`."""

    def __init__(
        self,
        loop: Loop,
        socket: "zmq.Socket[bytes]",
        limits: Limits,
        handler: Handler,
        doorman: Doorman,
        waits: Waits,
        of_uid: Callable[[int], Handler] | None = None,
    ) -> None:
        """Takes what returns the handler of a speaker as `of_uid`; without it, `handler` gets all trains."""
        self._loop = loop
        self._doorman = doorman
        self._handler = handler
        self._most = limits.read
        self._waits = waits
        self._socket = self.source = socket
        self._of_uid = of_uid
        loop.add(socket, self._read if of_uid is None else self._read_apart)

    def close(self) -> None:
        """Hangs up; the listening socket stays with every process that has a copy."""
        self._doorman.close()
        self._loop.remove(self._socket)
        self._socket.close()

    def _read(self, now: float) -> None:
        receive, most, size = self._socket.recv, self._most, 0
        frames: list[Frame] = []
        while size < most:
            try:
                train = receive(_DONTWAIT)
            except zmq.Again:
                break
            size += max(len(train), _LEAST)
            frames.append((train, 0, len(train)))
        if frames:
            self._loop.gathering.carried += size
            if now >= self._waits.due:
                self._waits.note(frames[0])
            self._handler(frames, now)

    def _read_apart(self, now: float) -> None:
        """Does what `_read` does, and gives each speaker's trains to its own handler."""
        size = 0
        of_uid = self._of_uid
        while of_uid is not None and size < self._most:
            try:
                message = self._socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            train = message.bytes
            size += max(len(train), _LEAST)
            frame: Frame = (train, 0, len(train))
            if now >= self._waits.due:
                self._waits.note(frame)
            of_uid(uid_of(message))([frame], now)
        self._loop.gathering.carried += size


def uid_of(message: zmq.Frame) -> int:
    """Returns the uid of a message's sender, which libzmq has from the kernel: `localhost:<uid>:<gid>:<pid>`."""
    return int(str(message.get("Peer-Address")).rsplit(":", 3)[1])
