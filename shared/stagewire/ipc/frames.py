"""Trains that are made where their packets are read: what a device or a socket gives isn't copied until it is sent on."""

from typing import Final

from stagewire.ipc.trains import CIPHER, HEADER, LENGTH, MAX_ITEM, MAX_PACKETS, MAX_RUN, PLAIN, RUN, VERSION

MAX_READ: Final = 64 * 1024
"""Bytes after which a visit to the TUN device or a UDP socket ends: with one more super-packet or run they are two of the
longest, which is two UDP GSO sends."""
ONE_RUN: Final = 60_000
"""Bytes of items that make one run when they are sealed."""


def _filled(size: int) -> float:
    """What part is filled of the runs that so many bytes make."""
    return size / (-(-size // ONE_RUN) * ONE_RUN)


class PlainFrame:
    """A plain train that is made where its packets are read: up to MAX_READ bytes of them, and one more."""

    def __init__(self) -> None:
        self._buffer = bytearray(HEADER.size + MAX_READ + LENGTH.size + MAX_ITEM)
        self._view = memoryview(self._buffer)
        self.count = 0
        """Of packets that its items stand for."""
        self._last = 0
        """Bytes of the last item, its length included."""
        self._end = HEADER.size

    @property
    def full(self) -> bool:
        """Whether it should be sent before another packet is read.

        So it should if one more like the last would begin another run and leave much of it empty: what is sealed, sent and
        opened costs by the run.
        """
        size = self._end - HEADER.size
        more = size + self._last
        return size >= MAX_READ or (more > ONE_RUN and _filled(size) > _filled(more))

    def room(self) -> memoryview:
        """Where the next item can be read to, its virtio_net_hdr first."""
        start = self._end + LENGTH.size
        return self._view[start : start + MAX_ITEM]

    def add(self, length: int, packets: int) -> None:
        """Takes what was read to `room`: so many bytes, for so many packets."""
        LENGTH.pack_into(self._buffer, self._end, length)
        self._last = LENGTH.size + length
        self._end += self._last
        self.count += packets

    def finish(self, now: float, takes: int) -> memoryview:
        """The train; a new one begins in the same place."""
        HEADER.pack_into(self._buffer, 0, VERSION, PLAIN, takes, self.count, now)
        frame = self._view[: self._end]
        self.count, self._last, self._end = 0, 0, HEADER.size
        return frame


class CipherFrame:
    """A cipher train that is made where its datagrams are received: up to MAX_READ bytes of them, and one more run."""

    def __init__(self) -> None:
        self._buffer = bytearray(HEADER.size + MAX_READ + MAX_PACKETS * RUN.size + MAX_ITEM)
        self._view = memoryview(self._buffer)
        self.count = 0
        """Of datagrams."""
        self._end = HEADER.size
        self._runs = 0
        self._run = (b"", 0, 0)
        """(endpoint, size, bytes) of the run that may go on."""

    @property
    def full(self) -> bool:
        """Whether it should be sent before anything more is received."""
        return self._end - HEADER.size >= MAX_READ

    def room(self) -> memoryview:
        """Where the next datagrams can be received."""
        start = self._end + RUN.size
        return self._view[start : start + MAX_ITEM]

    def add(self, endpoint: bytes, size: int, length: int) -> None:
        """Takes what was received to `room`: `length` bytes, in datagrams of `size` bytes but for the last.

        What goes on the run before it moves up to it: a run, and not each datagram, is what costs later.
        """
        start, end = self._end + RUN.size, self._end
        self.count += (length + size - 1) // size
        before, before_size, so_far = self._run
        total = so_far + length
        if (
            endpoint == before
            and size <= before_size
            and so_far % before_size == 0
            and (size == before_size or length == size)
            and total <= min(MAX_RUN, before_size * MAX_PACKETS)
        ):
            self._view[end : end + length] = self._view[start : start + length]
            self._run = (endpoint, before_size, total)
            self._end = end + length
            RUN.pack_into(self._buffer, self._end - total - RUN.size, *self._run)
            return
        self._run = (endpoint, size, length)
        RUN.pack_into(self._buffer, end, *self._run)
        self._end = start + length
        self._runs += 1

    def finish(self, now: float) -> memoryview:
        """The train; a new one begins in the same place."""
        HEADER.pack_into(self._buffer, 0, VERSION, CIPHER, 0, self._runs, now)
        frame = self._view[: self._end]
        self.count, self._end, self._runs, self._run = 0, HEADER.size, 0, (b"", 0, 0)
        return frame
