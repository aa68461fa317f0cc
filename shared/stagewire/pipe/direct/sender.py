"""Connects a pusher to the reader of a pipe, which may come and go."""

import fcntl
import mmap
import socket as sockets
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stagewire.deadlines import Alarm
from stagewire.linux import descriptors
from stagewire.loop import Loop, boot_time
from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.shared_memory import LEAST, BadMemory, Memory
from stagewire.pipe.direct.zmtp import BadStream, Stream
from stagewire.pipe.names import Limits
from stagewire.pipe.trains import Part

RECONNECT: Final = 0.001
RECONNECT_MAX: Final = 0.008
"""s; each further attempt comes twice as late as the one before."""
ABSENT_PART: Final = 0.05
"""Of the time for which there has been no reader: the pause may grow to it, so that a lasting absence costs little."""
ABSENT_MAX: Final = 0.1
"""s, the longest pause."""
MAX_PARTS: Final = 32
"""The kernel takes 1,023, but many small ones are quicker joined than told of."""
WELCOME_WITHIN: Final = 1.0
"""s; a spare holds the listening socket but welcomes nobody, which must not be for ever."""
_FLAGS: Final = sockets.MSG_NOSIGNAL
_SIOCOUTQ: Final = 0x5411
_INT: Final = struct.Struct("@i")
_NO_ENDS: Final[tuple[int, mmap.mmap | None, list[int]]] = (-1, None, [])


class DirectSender:
    """Sends trains over a socket, long ones in shared memory."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        limits: Limits,
        is_reader: Callable[[sockets.socket], bool] = lambda _: True,
        compiled: Any = None,
    ) -> None:
        """Connects at once. `is_reader` tells whether the reader may be at the other end.

        Takes `linux.pipe_trains` as `compiled`; with None, Python does all work.
        """
        self._send_ordinary = None if compiled is None else compiled.send
        self.most_held = 0
        self._loop = loop
        self._is_reader = is_reader
        self._gathering = loop.gathering
        self._queue = limits.queue
        self._path = str(path)
        self._socket: sockets.socket | None = None
        self._greeting = Stream(0)
        """Cuts what the reader says."""
        self._rest = memoryview(b"")
        """Of a train that the kernel took a part of."""
        self._memory: Memory | None = None
        """Shared with the reader."""
        self._ends = _NO_ENDS
        """The socket's descriptor, the memory, and the lengths of the trains there, as `pipe_trains.send` takes them."""
        self._waiter: Callable[[float], None] | None = None
        self._pause = RECONNECT
        self._absent_since: float | None = None
        """When the first attempt failed (s)."""
        self._since = 0.0
        """When the connection began (s)."""
        self._retry = Alarm(loop, self._lost)
        """When to look for the reader again."""
        self._connect()

    @property
    def connected(self) -> bool:
        """Tells whether there is a reader."""
        return self._socket is not None and self._greeting.ready

    @property
    def waiting(self) -> int:
        """Counts the bytes in the socket, behind it, and in shared memory."""
        if self._socket is None:
            return 0
        queued = len(self._rest)
        with suppress(OSError):  # the reader has just gone
            queued += _INT.unpack(fcntl.ioctl(self._socket, _SIOCOUTQ, bytes(_INT.size)))[0]
        return queued + (self._memory.laid() if self._memory is not None else 0)

    def send(self, *parts: Part) -> bool:
        """Sends a train, all of it or nothing; tells which. hot: bench traffic"""
        if self._socket is None or self._rest or not self._greeting.ready:
            return False
        if self._send_ordinary is not None:
            size, rest = self._send_ordinary(*self._ends, parts)
            if size >= 0:
                self._gathering.carried += size
                if rest:
                    self._keep(self._socket, rest)
                return bool(size)
        length = size = sum(map(len, parts))
        slot = self._memory.lay(parts, length) if self._memory is not None and length >= LEAST else None
        if slot is not None:
            front, length, parts = zmtp.train_in(slot, length), 0, ()
        else:
            front = zmtp.front(length)
            if len(parts) > MAX_PARTS:
                parts = (b"".join(parts),)
        if not self._push(self._socket, (front, *parts), len(front) + length):
            if slot is not None and self._memory is not None:
                self._memory.take_back(slot)
            return False
        self._gathering.carried += size
        return True

    def _push(self, socket: sockets.socket, parts: Sequence[Part], length: int) -> bool:
        """Hands the kernel all parts, and keeps what the kernel has no room for; or nothing. Tells which."""
        try:
            sent = socket.sendmsg(parts, (), _FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            self._lost()
            return False
        if sent < length:
            self._keep(socket, b"".join(parts)[sent:])
        return True

    def _keep(self, socket: sockets.socket, rest: bytes) -> None:
        self._rest = memoryview(rest)
        self._loop.when_writable(socket.fileno(), self._on_room)

    def send_each(self, trains: Sequence[bytes]) -> int:
        """Sends all of the trains by one call of the kernel, or none. Returns how many."""
        if self._socket is None or self._rest or not self._greeting.ready:
            return 0
        joined = b"".join([part for train in trains for part in (zmtp.front(len(train)), train)])
        if not self._push(self._socket, (joined,), len(joined)):
            return 0
        self._gathering.carried += len(joined)
        return len(trains)

    def when_room(self, waiter: Callable[[float], None] | None) -> None:
        """Calls `waiter` while there is room; None: no longer."""
        self._waiter = waiter
        if self._socket is not None and self._greeting.ready:
            wanted = waiter is not None or bool(self._rest)
            self._loop.when_writable(self._socket.fileno(), self._on_room if wanted else None)

    def close(self) -> None:
        """Hangs up. The reader still gets what was sent."""
        self._retry.set(None)
        self._disconnect()

    def _connect(self) -> None:
        socket = None
        try:
            socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK)
            descriptors.allow(socket, allowed=False)
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, self._queue // 2)  # Linux doubles it
            socket.connect(self._path)
            if not self._is_reader(socket):
                raise PermissionError(f"{self._path} isn't its reader's")
            socket.send(zmtp.PUSH, _FLAGS)
        except OSError:  # no reader, or no descriptor left
            if socket is not None:
                socket.close()
            self._wait()
            return
        self._since = boot_time()
        self._retry.set(self._since + WELCOME_WITHIN)
        self._socket, self._ends = socket, (socket.fileno(), None, [])
        self._greeting = Stream(0)
        self._loop.add(socket.fileno(), self._listen, pipe=True)

    def _listen(self, _now: float) -> None:
        """Reads the reader's greeting, and later its end; it says nothing else."""
        assert self._socket is not None  # noqa: S101 - it was just readable
        try:
            said = self._socket.recv(4096)
            self._greeting.take_untrusted(said)
        except BlockingIOError:
            return
        except (OSError, BadStream):
            said = b""
        if not said:
            self._lost()
        elif self._greeting.ready:
            if self._greeting.shares and self._memory is None and not self._rest:
                self._share(self._socket)
            if self._retry.next_deadline() is not None:
                self._retry.set(None)
                self.when_room(self._waiter)

    def _share(self, socket: sockets.socket) -> None:
        """Hands the reader memory. Without memory, trains go through the socket, so a failure costs only time."""
        with suppress(OSError, BadMemory):
            memory = Memory.make()
            try:
                sockets.send_fds(socket, [zmtp.MEMORY], [memory.descriptor], _FLAGS)
                self._memory, self._ends = memory, (socket.fileno(), memory.map, memory.lengths)
            finally:
                memory.close()

    def _lost(self, _now: float = 0.0) -> None:
        """Connects to the reader anew; not at once if the reader has just hung up, or both would do nothing else."""
        lasted = boot_time() - self._since >= RECONNECT_MAX
        hung_up = self._socket is not None
        self._disconnect()
        if hung_up and not lasted:
            self._wait()
            return
        if hung_up:
            self._pause, self._absent_since = RECONNECT, None
        self._connect()

    def _wait(self) -> None:
        now = boot_time()
        if self._absent_since is None:
            self._absent_since = now
        self._retry.set(now + self._pause)
        longest = max(RECONNECT_MAX, min(ABSENT_MAX, ABSENT_PART * (now - self._absent_since)))
        self._pause = min(2 * self._pause, longest)

    def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        self._rest, self._memory, self._ends = memoryview(b""), None, _NO_ENDS
        if socket is not None:
            self._loop.remove(socket.fileno())
            socket.close()

    def _on_room(self, now: float) -> None:
        if self._rest and not self._send_rest():
            return
        if self._waiter is not None:
            self._waiter(now)
        elif self._socket is not None:
            self._loop.when_writable(self._socket.fileno(), None)

    def _send_rest(self) -> bool:
        assert self._socket is not None  # noqa: S101 - it was just writable
        try:
            self._rest = self._rest[self._socket.send(self._rest, _FLAGS) :]
        except BlockingIOError:
            return False
        except OSError:
            self._lost()
            return False
        return not self._rest
