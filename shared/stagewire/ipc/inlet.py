"""The receiving end of a pipe: takes what its pushers have sent, as many trains at once as are there."""

import socket as sockets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from stagewire.ipc import zmtp
from stagewire.ipc.loop import Loop
from stagewire.ipc.trains import BadTrain
from stagewire.ipc.zmtp import BadStream, Frame, Stream

MAX_PUSHERS: Final = 256
"""Each costs a descriptor."""


@dataclass(frozen=True, slots=True)
class Limits:
    """In bytes."""

    message: int
    """Of one."""
    read: int
    """Taken from one pusher in a turn; then the other sources get theirs."""
    queue: int
    """What may wait in the kernel, which counts its own administration, some 1,000 bytes a message."""


Handler = Callable[[Sequence[Frame], float], None]


class Inlet:
    """Welcomes whoever connects. `source` is what the loop knows all its pushers by, to be paused together."""

    def __init__(
        self,
        loop: Loop,
        listener: sockets.socket,
        limits: Limits,
        handler: Handler,
        drop: Callable[[BadTrain], None],
    ) -> None:
        """`handler` gets at least one train; `drop` is told when a pusher makes no sense."""
        self._loop = loop
        self._listener = listener
        self._limits = limits
        self._handler = handler
        self._drop = drop
        self._pushers: dict[int, sockets.socket] = {}
        self.source = listener.fileno()
        loop.add(self.source, self._welcome, pipe=True)

    def close(self) -> None:
        """Hangs up; whoever else has a copy of the listening socket has it still."""
        for descriptor in list(self._pushers):
            self._hang_up(descriptor)
        self._loop.remove(self.source)
        self._listener.close()

    def _welcome(self, _now: float) -> None:
        while True:
            try:
                pusher, _ = self._listener.accept()
            except OSError:  # nobody any more, or gone again
                return
            if len(self._pushers) >= MAX_PUSHERS:
                pusher.close()
                continue
            pusher.setblocking(False)
            with suppress(OSError):  # gone again: the end comes to be read
                pusher.send(zmtp.PULL)
            self._begin(pusher)

    def _begin(self, pusher: sockets.socket) -> None:
        descriptor, receive, most = pusher.fileno(), pusher.recv, self._limits.read
        take, handler = Stream(self._limits.message).take_untrusted, self._handler
        self._pushers[descriptor] = pusher

        def read(now: float) -> None:
            try:
                data = receive(most)
                frames = take(data)
            except BlockingIOError:
                return
            except BadStream:
                self._drop(BadTrain("train_malformed"))
                data = b""
            except OSError:
                data = b""
            if not data:
                self._hang_up(descriptor)
            elif frames:
                handler(frames, now)

        self._loop.add(descriptor, read, along=self.source)

    def _hang_up(self, descriptor: int) -> None:
        self._loop.remove(descriptor)
        self._pushers.pop(descriptor).close()
