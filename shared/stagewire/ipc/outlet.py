"""The sending end of a pipe: backpressure while its reader is busy, counted loss when it is gone.

A frame that finds the pipe full is held: a little, without holding anybody up whose packets come from the same sources.
Beyond that they are left unread, so that the kernel's queue drops, where a drop costs nothing. A reader that takes
nothing for `patience` is taken for gone or hung: what is held is dropped and counted, and so is all that follows, until it
takes one again.
"""

from collections import Counter, deque
from collections.abc import Sequence

from stagewire.ipc.line import Line
from stagewire.ipc.loop import Loop, Source
from stagewire.ipc.trains import Part

MAX_HELD = 128
"""Frames; beyond what its sources bring, an outlet may be offered a keepalive or a staged train while it is full."""
A_LITTLE = 64 * 1024
"""Bytes, in no more than half of MAX_HELD frames: one super-packet, or 64 small trains."""


class Outlet:
    """Sends frames to one reader. `sources` are paused while much is held; `patience` is in s, None for endless."""

    def __init__(
        self,
        loop: Loop,
        line: Line,
        drops: Counter[str],
        reason: str,
        sources: Sequence[Source] = (),
        patience: float | None = None,
        *,
        expected: bool = True,
    ) -> None:
        """`expected` false: the reader isn't there yet, and nobody has to be held up for it."""
        self._loop = loop
        self._line = line
        self._drops = drops
        self._reason = reason
        self._sources = sources
        self._patience = patience
        self._held: deque[tuple[bytes, int]] = deque()
        self._size = 0
        """Bytes held."""
        self._paused = False
        self._gone = not expected
        self._deadline: float | None = None
        loop.add_timed(self)

    def offer(self, frame: Part, weight: int, now: float) -> None:
        """Sends a frame with `weight` packets in it, now or when there is room. It is the caller's again at once."""
        self.offer_parts((frame,), weight, now)

    def offer_parts(self, parts: Sequence[Part], weight: int, now: float) -> None:
        """The same, of a frame in several pieces of memory."""
        if not self._held:
            if self._line.send(*parts):
                self._gone = False
                return
            if self._gone:
                self._drops[self._reason] += weight
                return
            self._line.when_room(self._on_room)
            self._deadline = None if self._patience is None else now + self._patience
        if len(self._held) < MAX_HELD:
            frame = b"".join(parts)
            self._held.append((frame, weight))
            self._size += len(frame)
        else:
            self._drops[self._reason] += weight
        if not self._paused and (self._size > A_LITTLE or len(self._held) > MAX_HELD // 2):
            self._paused = True
            for source in self._sources:
                self._loop.pause(source)

    def close(self) -> None:
        """Lets go of the pipe and of the sources."""
        if self._held:
            self._release()
        self._loop.remove_timed(self)
        self._line.close()

    def throttle(self, sources: Sequence[Source]) -> None:
        """Holds other sources back from now on."""
        if self._paused:
            for source in self._sources:
                self._loop.resume(source)
            for source in sources:
                self._loop.pause(source)
        self._sources = sources

    def next_deadline(self) -> float | None:
        """When patience ends."""
        return self._deadline

    def act(self, _now: float) -> None:
        """Patience has ended."""
        self._gone = True
        self._drops[self._reason] += sum(weight for _, weight in self._held)
        self._release()

    def _on_room(self, now: float) -> None:
        while self._held:
            if not self._line.send(self._held[0][0]):
                self._deadline = None if self._patience is None else now + self._patience
                return
            self._size -= len(self._held.popleft()[0])
        self._release()

    def _release(self) -> None:
        self._held.clear()
        self._size = 0
        self._deadline = None
        self._line.when_room(None)
        if self._paused:
            self._paused = False
            for source in self._sources:
                self._loop.resume(source)
