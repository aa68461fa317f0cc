"""Takes what the pushers of a pipe have sent, as many trains at once as are there."""

import socket as sockets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from stagewire.linux import descriptors
from stagewire.linux.peer_credentials import credentials
from stagewire.loop import Loop
from stagewire.pipe.contract import Frame, Handler, OfPlace
from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.inherited import MOST, Pushers, hang_up, let_go
from stagewire.pipe.direct.shared_memory import BadMemory, Memory
from stagewire.pipe.direct.zmtp import BadStream, Stream
from stagewire.pipe.names import Limits
from stagewire.pipe.speakers import Admission
from stagewire.pipe.trains import BadTrain
from stagewire.pipe.waits import Waits

MAX_WELCOMES: Final = 16
"""Pushers that a turn welcomes or refuses."""
_MOST_QUEUED: Final = 512 * 1024
"""Bytes; more can't have come, with descriptors, before they were no longer allowed (net.core.wmem_max)."""
Deliver = Callable[[list[Frame], float], None]


class DirectReceiver:
    """Welcomes every pusher that may connect. The loop pauses and resumes them together, by `source`.

    A train may lie in memory that is the pusher's again when the handler returns.
    """

    def __init__(
        self,
        loop: Loop,
        listener: sockets.socket,
        limits: Limits,
        handler: Handler,
        drop: Callable[[BadTrain], None],
        kept: tuple[Pushers, str],
        admission: Admission,
        waits: Waits,
        of_place: OfPlace | None = None,
        compiled: Any = None,
    ) -> None:
        """Welcomes from now on. `handler` gets at least one train; `drop` hears of a pusher that makes no sense.

        `kept`: where connections are kept for a successor, and the pipe's name there. `of_place` returns the handler of
        each pusher instead. Takes `linux.pipe_trains` as `compiled`; with None, Python does all work.
        """
        self._compiled = compiled
        self._loop = loop
        self._listener = listener
        self._limits = limits
        self._handler = handler
        self._drop = drop
        self._kept, self._name = kept
        self._admission = admission
        self._waits = waits
        self._of_place = of_place
        self._pushers: dict[int, sockets.socket] = {}
        self._marks: dict[int, int] = {}
        """Numbers that connections are kept under, by descriptor."""
        self._memories: dict[int, Memory] = {}
        """Memory that pushers share, by descriptor."""
        descriptors.allow(listener, allowed=limits.memory)
        self.source = listener.fileno()
        loop.add(self.source, self._welcome, pipe=True)
        for pusher, memory in self._kept.of(self._name):
            if not admission.admit(pusher):
                let_go(pusher, memory)
                continue
            self._begin(pusher, Stream(limits.message, ready=True, memory=memory))

    def close(self) -> None:
        """Hangs up on every pusher; copies of the listening socket stay open."""
        for descriptor in list(self._pushers):
            self._hang_up(descriptor)
        self._loop.remove(self.source)
        self._listener.close()

    def _welcome(self, _now: float) -> None:
        for _ in range(MAX_WELCOMES):
            try:
                pusher, _ = self._listener.accept()
            except OSError:  # no more connections, or one that has gone again
                return
            if not self._admission.admit(pusher):
                pusher.close()
                continue
            pusher.setblocking(False)
            with suppress(OSError):  # gone again: the end comes to be read
                pusher.send(zmtp.PULL_SHARING if self._limits.memory else zmtp.PULL)
            self._begin(pusher, Stream(self._limits.message))

    def _begin(self, pusher: sockets.socket, stream: Stream) -> None:
        descriptor, marks = pusher.fileno(), self._kept.marks
        self._pushers[descriptor] = pusher
        if stream.ready:
            descriptors.allow(pusher, allowed=self._limits.memory and stream.memory is None)
            marks[self._enter(pusher, stream)] = 0
            if self._limits.memory and stream.memory is None:  # it was welcomed by an older version
                with suppress(OSError):
                    pusher.send(zmtp.SHARING)
        handler, gathering, waits = self._handler_of(pusher), self._loop.gathering, self._waits

        def deliver(frames: list[Frame], now: float) -> None:
            for _, start, end in frames:
                gathering.carried += end - start
            if now >= waits.due:
                waits.note(frames[0])
            handler(frames, now)
            if stream.memory is not None:
                stream.memory.release()

        plain = partial(self._read, pusher, stream, deliver)
        read = plain if self._compiled is None else self._ordinary_reader(pusher, stream, deliver, plain)
        self._loop.add(descriptor, read, along=self.source)

    def _ordinary_reader(
        self, pusher: sockets.socket, stream: Stream, deliver: Deliver, plain: Callable[..., None]
    ) -> Callable[[float], None]:
        """Returns what reads ordinary messages, compiled, and leaves all else to `plain`."""
        receive, descriptor = self._compiled.receive, pusher.fileno()
        most, limit = self._limits.read, self._limits.message
        marks, numbers, shares = self._kept.marks, self._marks, self._limits.memory

        def read(now: float) -> None:
            memory = stream.memory
            if not stream.between or (memory is None and shares):
                plain(now)
                return
            shared, in_hand = (None, []) if memory is None else (memory.map, memory.in_hand)
            found = receive(descriptor, most, limit, marks, numbers[descriptor], shared, in_hand)
            if not isinstance(found, list):
                plain(now, found)
            elif found:
                deliver(found, now)

        return read

    def _read(
        self, pusher: sockets.socket, stream: Stream, deliver: Deliver, now: float, data: bytes | None = None
    ) -> None:
        """Takes what a pusher says; `data` if it is received already."""
        descriptor, marks = pusher.fileno(), self._kept.marks
        number = self._marks.get(descriptor, MOST)
        marks[number] = 1  # first: a death in the middle must leave nothing to be read on
        try:
            if data is None:
                first = self._limits.memory and stream.memory is None
                data = self._receive_first(pusher, stream) if first else pusher.recv(self._limits.read)
            frames = stream.take_untrusted(data)
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
        if number == MOST and stream.ready and descriptor not in self._marks:
            number = self._enter(pusher, stream)
        marks[number] = stream.begun
        if frames:
            deliver(frames, now)

    def _handler_of(self, pusher: sockets.socket) -> Handler:
        if self._of_place is None:
            return self._handler
        return self._of_place(self._admission.place(credentials(pusher).uid))

    def _enter(self, pusher: sockets.socket, stream: Stream) -> int:
        """Keeps the connection of a greeted pusher for a successor; returns the number of its byte."""
        number = self._marks[pusher.fileno()] = self._kept.enter(self._name, pusher)
        self._share(pusher.fileno(), stream)
        return number

    def _receive_first(self, pusher: sockets.socket, stream: Stream) -> bytes:
        """Receives while the pusher may still hand over memory, the first descriptor that comes. Raises OSError."""
        data = self._receive_all(pusher, self._limits.read, stream)
        if stream.memory is not None:
            descriptors.allow(pusher, allowed=False)
            with suppress(OSError):  # that was all, or the end comes to be read again
                while len(data) < _MOST_QUEUED and (more := self._receive_all(pusher, self._limits.read, stream)):
                    data += more
            self._share(pusher.fileno(), stream)
        return data

    @staticmethod
    def _receive_all(pusher: sockets.socket, most: int, stream: Stream) -> bytes:
        """Receives up to `most` bytes, and takes all descriptors that come with them. Raises OSError."""
        data, handed, _, _ = sockets.recv_fds(pusher, most, descriptors.MOST)
        for each in handed:
            if stream.memory is not None:
                descriptors.close(each)
                continue
            with suppress(BadMemory):
                stream.memory = Memory(each)
        return data

    def _share(self, descriptor: int, stream: Stream) -> None:
        """Begins to use a pusher's memory, once its connection has a number under which both are kept.

        Until then the pusher lays nothing there.
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
        self._admission.forget(descriptor)
        pusher = self._pushers.pop(descriptor)
        number = self._marks.pop(descriptor, None)
        if number is not None:
            self._kept.remove(number)
        memory = self._memories.pop(descriptor, None)
        if memory is not None:
            memory.close()
        hang_up(pusher)
