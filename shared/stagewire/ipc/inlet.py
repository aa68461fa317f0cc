"""The receiving end of a pipe: takes what its pushers have sent, as many trains at once as are there."""

import socket as sockets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from stagewire.ipc import zmtp
from stagewire.ipc.loop import Loop
from stagewire.ipc.memory import BadMemory, Memory
from stagewire.ipc.pushers import MOST, Pushers, hang_up
from stagewire.ipc.trains import BadTrain
from stagewire.ipc.zmtp import BadStream, Frame, Stream

MAX_PUSHERS: Final = 256
"""Each costs a descriptor, and three if it shares memory, as no more than `pushers.MOST` can."""


@dataclass(frozen=True, slots=True)
class Limits:
    """In bytes."""

    message: int
    """Of one."""
    read: int
    """Taken from one pusher in a turn; then the other sources get theirs."""
    queue: int
    """What may wait in the kernel, which counts its own administration, some 1,000 bytes a message."""
    memory: bool = False
    """Whether long ones may lie in memory that both ends share, `memory.SLOTS` of them beside what is in the kernel."""


Handler = Callable[[Sequence[Frame], float], None]


class Inlet:
    """Welcomes whoever connects. `source` is what the loop knows all its pushers by, to be paused together.

    What a handler gets may lie in memory that is the pusher's again when it returns.
    """

    def __init__(
        self,
        loop: Loop,
        listener: sockets.socket,
        limits: Limits,
        handler: Handler,
        drop: Callable[[BadTrain], None],
        kept: tuple[Pushers, str],
    ) -> None:
        """`handler` gets at least one train; `drop` is told when a pusher makes no sense.

        `kept`: where pushers are left to whoever takes over, and what the pipe is called there.
        """
        self._loop = loop
        self._listener = listener
        self._limits = limits
        self._handler = handler
        self._drop = drop
        self._kept, self._name = kept
        self._pushers: dict[int, sockets.socket] = {}
        self._marks: dict[int, int] = {}
        """The number that a pusher is kept under, by descriptor."""
        self._memories: dict[int, Memory] = {}
        """What the pusher shares with us, by descriptor."""
        self.source = listener.fileno()
        loop.add(self.source, self._welcome, pipe=True)
        for pusher, memory in self._kept.of(self._name):
            self._begin(pusher, Stream(limits.message, ready=True, memory=memory))

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
                pusher.send(zmtp.PULL_SHARING if self._limits.memory else zmtp.PULL)
            self._begin(pusher, Stream(self._limits.message))

    def _begin(self, pusher: sockets.socket, stream: Stream) -> None:
        descriptor, receive, most = pusher.fileno(), pusher.recv, self._limits.read
        take, handler, marks, numbers = stream.take_untrusted, self._handler, self._kept.marks, self._marks
        shares, first, gathering = self._limits.memory, self._receive_first, self._loop.gathering
        self._pushers[descriptor] = pusher
        if stream.ready:
            marks[self._enter(pusher, stream)] = 0
            if shares and stream.memory is None:  # it was welcomed by an older version
                with suppress(OSError):
                    pusher.send(zmtp.SHARING)

        def read(now: float) -> None:
            number = numbers.get(descriptor, MOST)
            marks[number] = 1  # before: who dies in the middle of this leaves nothing to be read on
            try:
                data = first(pusher, stream) if shares and stream.memory is None else receive(most)
                frames = take(data)
            except BlockingIOError:
                marks[number] = stream.begun
                return
            except BadStream:
                self._drop(BadTrain("train_malformed"))
                data = b""
            except OSError:
                data = b""
            if not data:
                self._hang_up(descriptor)
                return
            if number == MOST and stream.ready and descriptor not in numbers:
                number = self._enter(pusher, stream)
            marks[number] = stream.begun
            if frames:
                for _, start, end in frames:
                    gathering.carried += end - start
                handler(frames, now)
                if stream.memory is not None:
                    stream.memory.release()

        self._loop.add(descriptor, read, along=self.source)

    def _enter(self, pusher: sockets.socket, stream: Stream) -> int:
        """Leaves one who has said all that comes before trains to whoever takes over; returns the number of its byte."""
        number = self._marks[pusher.fileno()] = self._kept.enter(self._name, pusher)
        self._share(pusher.fileno(), stream)
        return number

    def _receive_first(self, pusher: sockets.socket, stream: Stream) -> bytes:
        """What comes before the memory does, or with it. Raises OSError."""
        data, descriptors, _, _ = sockets.recv_fds(pusher, self._limits.read, 1)
        for each in descriptors:
            with suppress(BadMemory):
                stream.memory = Memory(each)
                self._share(pusher.fileno(), stream)
        return data

    def _share(self, descriptor: int, stream: Stream) -> None:
        """Begins to use what a pusher has handed over, once there is a number to leave it under with its connection.

        Who isn't told that we have it lays nothing there.
        """
        memory, number = stream.memory, self._marks.get(descriptor)
        if memory is None:
            return
        self._memories[descriptor] = memory
        if number is None:
            return
        if number == MOST:
            stream.memory = None
            self._memories.pop(descriptor).close()
            return
        self._kept.share(number, memory.descriptor)
        memory.begin()

    def _hang_up(self, descriptor: int) -> None:
        self._loop.remove(descriptor)
        pusher = self._pushers.pop(descriptor)
        number = self._marks.pop(descriptor, None)
        if number is not None:
            self._kept.remove(number)
        memory = self._memories.pop(descriptor, None)
        if memory is not None:
            memory.close()
        hang_up(pusher)
