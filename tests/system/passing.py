"""Measures what a gateway's limits let pass, at the gateway's own interfaces and by the kernel's times.

So it counts for nothing how late the test looks, or how late a far peer reads.
"""

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from lab.capture import Capture, Frame
from lab.namespaces import Namespace
from lab.wait import NeverHappened, until
from stagewire.proto.shaping import BURST, MIN_BURST

WITHIN: Final = 0.05
"""Share of the rate by which a window may differ."""
WINDOW: Final = 2.0
"""s."""
SNAP: Final = 64
"""Bytes of a frame that hold all headers."""
INNER_MTU: Final = 1420
_DATA: Final = 4
"""Type of WireGuard's message with a packet."""
_OVERHEAD: Final = 32
"""Bytes of WireGuard's header and tag."""
_ETHERNET, _IP, _UDP = 14, 20, 8

Key = int | str
"""A peer's UDP port for packets to it, or its inner IPv4 address for packets from it."""


class Flow:
    """Holds the last WINDOW of one direction of a peer with a rate (bits/s)."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.beyond = 0.0
        """The most bits that a window of any length had beyond its rate."""
        self._kept: deque[tuple[float, int]] = deque()
        self._sum = 0

    def note(self, at: float, size: int) -> None:
        """Takes a packet of so many bytes."""
        kept = self._kept
        kept.append((at, size))
        self._sum += size
        while at - kept[0][0] > WINDOW:
            self._sum -= kept.popleft()[1]
        self.beyond = max(self.beyond, 8 * self._sum - self.rate * (at - kept[0][0]))

    @property
    def share(self) -> float:
        """Returns what a whole window has of the rate; 0 before there is one."""
        seconds = self._kept[-1][0] - self._kept[0][0] if self._kept else 0.0
        if seconds < WINDOW * 0.9:
            return 0.0
        return 8 * (self._sum - self._kept[0][1]) / seconds / self.rate

    def check(self, bursts: int = 1) -> None:
        """Fails if a window had more than its rate and bursts."""
        burst = 8 * max(MIN_BURST, self.rate / 8 * BURST)
        allowed = WITHIN * self.rate * WINDOW + bursts * burst
        assert self.beyond <= allowed, f"{self.beyond:.0f} bits beyond {self.rate} bit/s"

    def __repr__(self) -> str:
        return f"{self.share:.3f}"


class Passing:
    """Shares what passes out among flows."""

    def __init__(self, tunnel: Capture, link: Capture, flows: Mapping[Key, Flow]) -> None:
        self._tunnel, self._link, self._flows = tunnel, link, flows
        self._seen = {tunnel: 0, link: 0}

    def look(self) -> None:
        """Takes what has passed since the last look."""
        for frame in self._new(self._link):
            sent = _message(frame.data)
            if frame.outgoing and sent is not None and sent.destination in self._flows:
                self._flows[sent.destination].note(frame.time, sent.size - _OVERHEAD)
        for frame in self._new(self._tunnel):
            source = ".".join(map(str, frame.data[12:16]))
            if not frame.outgoing and source in self._flows:
                self._flows[source].note(frame.time, _inner(frame.data))

    def _new(self, tap: Capture) -> list[Frame]:
        frames = tap.frames()
        seen, self._seen[tap] = self._seen[tap], len(frames)
        return frames[seen:]

    def least_share(self) -> float:
        """Takes what has passed, and returns the least share of its rate that a flow has had."""
        self.look()
        return min(flow.share for flow in self._flows.values())

    def hold_their_rates(self, bursts: int = 1) -> None:
        """Waits for a moment at which every flow has just had its rate. Fails if any window had more."""

        def near() -> bool:
            self.look()
            return all(abs(flow.share - 1) <= WITHIN for flow in self._flows.values())

        try:
            until(near, 20, "all rates at once")
        except NeverHappened as never:
            raise NeverHappened(f"{never}: {self._flows}") from None
        finally:
            assert not self._tunnel.dropped + self._link.dropped, "the capture missed frames"
            for flow in self._flows.values():
                flow.check(bursts)


@contextmanager
def passing(namespace: Namespace, tunnel: str, link: str, flows: Mapping[Key, Flow]) -> Iterator[Passing]:
    """Measures at these interfaces from here on."""
    with Capture(namespace, tunnel, snap=SNAP) as inside, Capture(namespace, link, snap=SNAP) as outside:
        yield Passing(inside, outside, flows)


def carried(link: Capture, port: int) -> int:
    """Adds up the data that passed to and from a peer's port, as `wg show` counts it."""
    found = filter(None, (_message(frame.data) for frame in link.frames()))
    return sum(each.size for each in found if port in {each.source, each.destination})


class _Message(NamedTuple):
    source: int
    destination: int
    size: int


def _message(data: bytes) -> _Message | None:
    """Reads a data message over IPv4; None for anything else."""
    with suppress(struct.error):
        source, destination, length = struct.unpack_from("!HHH", data, _ETHERNET + _IP)
        if struct.unpack_from("<I", data, _ETHERNET + _IP + _UDP) == (_DATA,):
            return _Message(source, destination, length - _UDP)
    return None


def _inner(data: bytes) -> int:
    """Returns the bytes of an IPv4 packet; of a super-packet of TCP, those of its segments."""
    size: int = struct.unpack_from("!H", data, 2)[0]
    if size <= INNER_MTU:
        return size
    headers = _IP + (data[_IP + 12] >> 4) * 4
    segments = -(-(size - headers) // (INNER_MTU - headers))
    return size + (segments - 1) * headers
