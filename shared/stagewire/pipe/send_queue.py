"""Queues a few trains before any transport's Sender: backpressure while the reader is busy, counted loss when it is gone.

A train that finds the pipe full is held. While little is held, the sources go on, for other readers get packets of them too.
Beyond that the sources are left unread, so that the kernel's queue drops, where a drop costs nothing. A reader that takes
nothing for `patience` counts as gone: what is held is dropped and counted, and so is all that follows, until it takes a
train again.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence

from stagewire.deadlines import Alarm
from stagewire.loop import Loop, Source
from stagewire.pipe.contract import Sender
from stagewire.pipe.trains import Part

MAX_HELD = 128
"""Trains; a full queue is still offered what comes from no source, as a keepalive or a staged train."""
A_LITTLE = 64 * 1024
"""Bytes, in no more than half of MAX_HELD trains: one super-packet, or 64 small trains."""


class SendQueue:
    """Sends trains to one reader. `sources` are paused while much is held; `patience` is in s, None for endless."""

    def __init__(
        self,
        loop: Loop,
        sender: Sender,
        drops: Counter[str],
        reason: str,
        sources: Sequence[Source] = (),
        patience: float | None = None,
        *,
        expected: bool = True,
        count: Callable[[str, bytes, int], object] | None = None,
    ) -> None:
        """Begins empty. `expected` false: the reader isn't there yet, and no source is paused for it.

        `count` counts a train that is dropped, by (reason, train, weight), if more is to be told than its weight.
        """
        self._loop = loop
        self._sender = sender
        self._drops = drops
        self._reason = reason
        self._count = count
        self._sources = sources
        self._patience = patience
        self._held: deque[tuple[bytes, int]] = deque()
        self._size = 0
        """Bytes held."""
        self._paused = False
        self._gone = not expected
        self._patience_ends = Alarm(loop, self._give_up)

    def offer(self, train: Part, weight: int, now: float) -> None:
        """Sends a train of `weight` packets, now or when there is room. It is the caller's again at once."""
        self.offer_parts((train,), weight, now)

    def offer_parts(self, parts: Sequence[Part], weight: int, now: float) -> None:
        """Sends a train that lies in several pieces of memory."""
        if not self._held:
            if self._sender.send(*parts):
                self._gone = False
                return
            if self._gone:
                self._drop(b"".join(parts), weight)
                return
            self._sender.when_room(self._on_room)
            self._wait_on(now)
        if len(self._held) < MAX_HELD:
            train = b"".join(parts)
            self._held.append((train, weight))
            self._size += len(train)
            self._sender.most_held = max(self._sender.most_held, self._size)
        else:
            self._drop(b"".join(parts), weight)
        if not self._paused and (self._size > A_LITTLE or len(self._held) > MAX_HELD // 2):
            self._paused = True
            for source in self._sources:
                self._loop.pause(source)

    def offer_each(self, trains: Sequence[bytes], now: float) -> None:
        """Sends several short trains of one packet each; the reader then wakes once."""
        taken = 0 if self._held or len(trains) == 1 else self._sender.send_each(trains)
        if taken:
            self._gone = False
        for train in trains[taken:]:
            self.offer(train, 1, now)

    def close(self) -> None:
        """Closes the sender, and resumes the sources."""
        if self._held:
            self._release()
        self._sender.close()

    def throttle(self, sources: Sequence[Source]) -> None:
        """Pauses other sources from now on."""
        if self._paused:
            for source in self._sources:
                self._loop.resume(source)
            for source in sources:
                self._loop.pause(source)
        self._sources = sources

    def _wait_on(self, now: float) -> None:
        if self._patience is not None:
            self._patience_ends.set(now + self._patience)

    def _give_up(self, _now: float) -> None:
        """Drops what is held."""
        self._gone = True
        for train, weight in self._held:
            self._drop(train, weight)
        self._release()

    def _drop(self, train: bytes, weight: int) -> None:
        if self._count is None:
            self._drops[self._reason] += weight
        else:
            self._count(self._reason, train, weight)

    def _on_room(self, now: float) -> None:
        while self._held:
            if not self._sender.send(self._held[0][0]):
                self._wait_on(now)
                return
            self._size -= len(self._held.popleft()[0])
        self._release()

    def _release(self) -> None:
        self._held.clear()
        self._size = 0
        self._patience_ends.set(None)
        self._sender.when_room(None)
        if self._paused:
            self._paused = False
            for source in self._sources:
                self._loop.resume(source)
