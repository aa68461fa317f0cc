"""Keeps the streams' notes in memory that all of the driver's processes share, and computes figures from them.

Every packet has a place of its own for the time of sending and its delay (0: not arrived yet). So loss, gaps, delays
and rates of any stretch can be computed afterwards. A packet that comes twice is noticed even an hour later.
"""

import math
import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PERIOD: Final = 0.0016
"""s between packets of one flow, on average."""
TOGETHER: Final = 2
"""Packets of each flow that leave at once. Single ones would keep two cores so busy that figures say nothing."""
BETWEEN: Final = TOGETHER * PERIOD
"""s between two such groups."""
SLOT: Final = 0.1
"""s; the grain of the traffic's history."""
LOOK_BACK: Final = 64
"""Ticks before a fault in which the last earlier arrival is looked for."""
MOMENT: Final = 0.3
"""s; a packet that arrives later is late, whatever happened."""

SHARED: Final = (
    *("ticks", "refused", "twice", "foreign", "longest_stall_us"),
    *("tcp_bytes", "tcp_connections", "tcp_broken", "tcp_wrong", "tcp_last_us"),
    *(
        "frames",
        "missed",
        "out",
        "into",
        "counters",
        "counters_again",
        "plain",
        "strange",
        "unexpected",
        "cookies_to_strangers",
    ),
    *("replayed", "initiations_out", "responses_out"),
)
"""Numbers that one process writes and others read."""


def _shared(count: int, kind: str) -> NDArray[Any]:
    """Makes zeros that every later fork inherits. Only written parts take memory."""
    size = np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, count * size)), dtype=kind, count=count)


class Record:
    """Records `flows` streams, each numbered by the same ticks of one sender. Make it before the processes."""

    def __init__(self, flows: int, seconds: float) -> None:
        """Takes `seconds`, the longest possible run."""
        self.flows = flows
        self.capacity = int(seconds / PERIOD)
        self.sent = _shared(self.capacity, "f8")
        """Unix s, by tick; each flow sent a packet then."""
        self.late = _shared(flows * self.capacity, "i4").reshape(flows, self.capacity)
        """us from sending to arrival, by flow and tick."""
        self._numbers = _shared(len(SHARED), "i8")
        self._homes = _shared(256, "i4")
        self._at = {name: place for place, name in enumerate(SHARED)}
        self.cells: memoryview = memoryview(self._numbers.data)
        """The shared numbers, for frequent writers; see `place`."""

    def place(self, name: str) -> int:
        """Returns a shared number's place in `cells`."""
        return self._at[name]

    def get(self, name: str) -> int:
        """Returns a shared number."""
        return int(self._numbers[self._at[name]])

    def add(self, name: str, value: int = 1) -> None:
        """Adds to a shared number. Only the one process that writes it may call this."""
        self._numbers[self._at[name]] += value

    def put(self, name: str, value: int) -> None:
        """Sets a shared number. Only the one process that writes it may call this."""
        self._numbers[self._at[name]] = value

    def set_home(self, peer: int, worker: int) -> None:
        """Notes a peer's home worker, which its newest datagrams tell."""
        self._homes[peer] = worker + 1

    def home(self, peer: int) -> int | None:
        """Returns a peer's home worker, or None before it has a session."""
        worker = int(self._homes[peer])
        return worker - 1 if worker else None

    @property
    def ticks(self) -> int:
        """Counts the ticks so far; the number of the next."""
        return self.get("ticks")

    def tick_at(self, time: float) -> int:
        """Returns the first tick at or after a unix time in s."""
        return int(np.searchsorted(self.sent[: self.ticks], time))

    def lost(self, flow: int, first: int, last: int) -> int:
        """Counts the packets of these ticks (`last` excluded) that have not arrived."""
        return int(np.count_nonzero(self.late[flow, first:last] == 0))

    def clean(self, flow: int, start: float, end: float) -> bool:
        """Tells whether all packets sent between two unix times arrived."""
        first, last = self.tick_at(start), self.tick_at(end)
        return last > first and self.lost(flow, first, last) == 0

    def outage(self, flow: int, first: int, last: int) -> float:
        """Returns the length of the longest gap, in s."""
        return self.gap(flow, first, last)[1]

    def gap(self, flow: int, first: int, last: int, begun_by: float = math.inf) -> tuple[float, float]:
        """Returns the begin (unix s) and length (s) of the longest gap that began by `begun_by`.

        A gap is a time without an arrival among packets of these ticks, up to the last tick's sending. The normal
        time between two packets and the sender's own pauses are subtracted.
        """
        begin = max(0, first - LOOK_BACK)
        late, sent = self.late[flow, begin:last].copy(), self.sent[begin:last].copy()
        got = np.flatnonzero(late)
        if last - first < 2:
            return 0.0, 0.0
        stood = np.cumsum(np.maximum(0.0, np.diff(sent, prepend=sent[0]) - BETWEEN))
        arrivals, numbers = sent[got] + late[got] / 1e6, got
        if not np.any(got < first - begin):  # the flow was silent before the first tick
            arrivals, numbers = np.append(arrivals, sent[first - begin]), np.append(numbers, first - begin)
        if not len(got) or got[-1] < len(sent) - MOMENT / PERIOD:  # the flow is still silent
            arrivals, numbers = np.append(arrivals, sent[-1]), np.append(numbers, len(sent) - 1)
        order = np.argsort(arrivals, kind="stable")
        gaps = np.diff(arrivals[order]) - np.maximum(0.0, np.diff(stood[numbers[order]]))
        gaps = np.where(arrivals[order][:-1] <= begun_by, gaps, 0.0)
        longest = int(np.argmax(gaps))
        return float(arrivals[order][longest]), max(0.0, float(gaps[longest]) - BETWEEN)

    def stalls(self, first: int, last: int) -> float:
        """Returns the sender's longest pause, in s."""
        sent = self.sent[max(0, first - 1) : last]
        return max(0.0, float(np.diff(sent).max()) - BETWEEN) if len(sent) > 1 else 0.0

    def delays(self, first: int, last: int) -> NDArray[Any]:
        """Returns the s from sending to arrival of all packets of these ticks that arrived."""
        late = self.late[:, first:last].copy()
        return late[late > 0] / 1e6

    def alive(self, flow: int, within: float, now: float) -> bool:
        """Tells whether a packet of the flow arrived in the last `within` s."""
        last = self.ticks
        first = max(0, last - int((within + 1.0) / PERIOD))
        late = self.late[flow, first:last].copy()
        got = np.flatnonzero(late)[-8:]
        return bool(len(got)) and bool(np.max(self.sent[first + got] + late[got] / 1e6) >= now - within)

    def history(self, start: float, end: float) -> NDArray[Any]:
        """Counts arrivals by flow and slot of SLOT s between two unix times."""
        slots = max(1, int((end - start) / SLOT))
        first, last = self.tick_at(start - 5.0), self.ticks
        history = np.zeros((self.flows, slots), dtype=np.int64)
        for flow in range(self.flows):
            late = self.late[flow, first:last].copy()
            got = np.flatnonzero(late)
            places = ((self.sent[first:last][got] + late[got] / 1e6 - start) / SLOT).astype(np.int64)
            places = places[(places >= 0) & (places < slots) & (self.sent[first:last][got] + late[got] / 1e6 >= start)]
            history[flow] = np.bincount(places, minlength=slots)[:slots]
        return history
