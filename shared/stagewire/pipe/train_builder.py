"""Builds trains where their packets are read: what a device or a socket gives isn't copied until it is sent on."""

from typing import Final

from stagewire.pipe.trains import AGE_AT, CIPHER, HEADER, LENGTH, MAX_ITEM, MAX_PACKETS, MAX_RUN, PLAIN, RUN, VERSION

MAX_READ: Final = 64 * 1024
"""Bytes after which a visit to the TUN device or a UDP socket ends: with one more super-packet or run they are two of the
longest, which is two UDP GSO sends."""
ONE_RUN: Final = 60_000
"""Bytes of items that make one run when they are sealed."""


def _filled(size: int) -> float:
    """Returns how full the runs are that so many bytes make, from 0 to 1."""
    return size / (-(-size // ONE_RUN) * ONE_RUN)


class PlainBuilder:
    """Builds a plain train: up to MAX_READ bytes of packets, and one more packet."""

    def __init__(self, takes: int = 0) -> None:
        """Begins a train. `takes` says which super-packets the device takes that the packets come from."""
        self.takes = takes
        self._buffer = bytearray(HEADER.size + MAX_READ + LENGTH.size + MAX_ITEM)
        self._view = memoryview(self._buffer)
        self.count = 0
        """Packets that its items stand for."""
        self._last = 0
        """Bytes of the last item, its length included."""
        self._end = HEADER.size

    @property
    def full(self) -> bool:
        """Tells whether to send the train before another packet is read.

        That is so if one more packet like the last would begin another run and leave much of it empty: sealing, sending
        and opening cost by the run.
        """
        size = self._end - HEADER.size
        more = size + self._last
        return size >= MAX_READ or (more > ONE_RUN and _filled(size) > _filled(more))

    def room(self) -> memoryview:
        """Returns the place for the next item, its virtio_net_hdr first."""
        start = self._end + LENGTH.size
        return self._view[start : start + MAX_ITEM]

    def add(self, length: int, packets: int) -> None:
        """Takes what was read to `room`: so many bytes, for so many packets."""
        LENGTH.pack_into(self._buffer, self._end, length)
        self._last = LENGTH.size + length
        self._end += self._last
        self.count += packets

    def finish(self, now: float, _age: int = 0) -> memoryview:
        """Returns the train, and begins the next in the same place. A device doesn't say how old a packet is."""
        HEADER.pack_into(self._buffer, 0, VERSION, PLAIN, self.takes, self.count, now)
        frame = self._view[: self._end]
        self.count, self._last, self._end = 0, 0, HEADER.size
        return frame


class CipherBuilder:
    """Builds a cipher train: up to MAX_READ bytes of datagrams, and one more run."""

    def __init__(self) -> None:
        self._buffer = bytearray(HEADER.size + MAX_READ + MAX_PACKETS * RUN.size + MAX_ITEM)
        self._view = memoryview(self._buffer)
        self.count = 0
        """Datagrams in it."""
        self._end = HEADER.size
        self._runs = 0
        self._run = (b"", 0, 0)
        """(endpoint, size, bytes) of the run that may go on."""

    @property
    def full(self) -> bool:
        """Tells whether to send the train before more is received."""
        return self._end - HEADER.size >= MAX_READ

    def room(self) -> memoryview:
        """Returns the place for the next datagrams."""
        start = self._end + RUN.size
        return self._view[start : start + MAX_ITEM]

    def add(self, endpoint: bytes, size: int, length: int) -> None:
        """Takes what was received to `room`: `length` bytes, in datagrams of `size` bytes but for the last.

        Datagrams that continue the run before them move up to it, because each later step costs by the run.
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

    def finish(self, now: float, age: int = 0) -> memoryview:
        """Returns the train, whose oldest datagram is `age` ms old, and begins the next in the same place."""
        HEADER.pack_into(self._buffer, 0, VERSION, CIPHER, 0, self._runs, now - age * 0.001)
        self._buffer[AGE_AT] = age
        frame = self._view[: self._end]
        self.count, self._end, self._runs, self._run = 0, HEADER.size, 0, (b"", 0, 0)
        return frame
