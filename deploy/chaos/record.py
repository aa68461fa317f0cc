"""What the streams write down, in memory shared by all of the driver's processes, and what follows from it.

Every packet has a place of its own: when it was sent, and how much later it arrived first (0: not yet). So loss, gaps,
delays and rates of any stretch of the run can be worked out afterwards, and a packet that comes twice is seen even when
it comes an hour later. An hour at 5,000 packets/s takes 100 MB.
"""

import math
import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PERIOD: Final = 0.0016
"""s between packets of one flow, on average."""
TOGETHER: Final = 2
"""Packets of each flow that leave at once. One by one they keep two cores so busy that figures tell of nothing else."""
BETWEEN: Final = TOGETHER * PERIOD
"""s between those."""
SLOT: Final = 0.1
"""s; the grain of the traffic's history."""
LOOK_BACK: Final = 64
"""Ticks before a fault among which the last arrival before it is looked for."""
MOMENT: Final = 0.3
"""s; a packet that isn't here by then is late, whatever happened."""

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
    """Zeros, inherited by every process forked later; memory is taken only where something is written."""
    size = np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, count * size)), dtype=kind, count=count)


class Record:
    """`flows` streams, each numbered by the same ticks of one sender. Make it before the processes."""

    def __init__(self, flows: int, seconds: float) -> None:
        """`seconds` is the longest that the run may take."""
        self.flows = flows
        self.capacity = int(seconds / PERIOD)
        self.sent = _shared(self.capacity, "f8")
        """Unix s, by tick; one packet of each flow left then."""
        self.late = _shared(flows * self.capacity, "i4").reshape(flows, self.capacity)
        """us from sending to arrival, by flow and tick."""
        self._numbers = _shared(len(SHARED), "i8")
        self._homes = _shared(256, "i4")
        self._at = {name: place for place, name in enumerate(SHARED)}
        self.cells: memoryview = memoryview(self._numbers.data)
        """The shared numbers for who writes them often; see `place`."""

    def place(self, name: str) -> int:
        """Where a shared number is in `cells`."""
        return self._at[name]

    def get(self, name: str) -> int:
        """A shared number as it is now."""
        return int(self._numbers[self._at[name]])

    def add(self, name: str, value: int = 1) -> None:
        """To be called by the one process that writes this number."""
        self._numbers[self._at[name]] += value

    def put(self, name: str, value: int) -> None:
        """To be called by the one process that writes this number."""
        self._numbers[self._at[name]] = value

    def set_home(self, peer: int, worker: int) -> None:
        """What a peer's newest datagrams say of which worker owns its session."""
        self._homes[peer] = worker + 1

    def home(self, peer: int) -> int | None:
        """The worker that owns a peer's session; None before there is one."""
        worker = int(self._homes[peer])
        return worker - 1 if worker else None

    @property
    def ticks(self) -> int:
        """How many have been; the number of the next."""
        return self.get("ticks")

    def tick_at(self, time: float) -> int:
        """The first tick at or after a unix time in s."""
        return int(np.searchsorted(self.sent[: self.ticks], time))

    def lost(self, flow: int, first: int, last: int) -> int:
        """Of the packets of these ticks (`last` excluded), those that haven't arrived."""
        return int(np.count_nonzero(self.late[flow, first:last] == 0))

    def clean(self, flow: int, start: float, end: float) -> bool:
        """Whether all that left between two unix times arrived."""
        first, last = self.tick_at(start), self.tick_at(end)
        return last > first and self.lost(flow, first, last) == 0

    def outage(self, flow: int, first: int, last: int) -> float:
        """How long the longest gap was, in s."""
        return self.gap(flow, first, last)[1]

    def gap(self, flow: int, first: int, last: int, begun_by: float = math.inf) -> tuple[float, float]:
        """When the longest gap began (unix s), and how long it was (s); of those that began by a unix time.

        That is the longest time without an arrival among packets of these ticks, the last tick's sending included, less
        what is normal between two, and less what the sender itself stood still meanwhile.
        """
        begin = max(0, first - LOOK_BACK)
        late, sent = self.late[flow, begin:last].copy(), self.sent[begin:last].copy()
        got = np.flatnonzero(late)
        if last - first < 2:
            return 0.0, 0.0
        stood = np.cumsum(np.maximum(0.0, np.diff(sent, prepend=sent[0]) - BETWEEN))
        arrivals, numbers = sent[got] + late[got] / 1e6, got
        if not np.any(got < first - begin):  # silent already when it began
            arrivals, numbers = np.append(arrivals, sent[first - begin]), np.append(numbers, first - begin)
        if not len(got) or got[-1] < len(sent) - MOMENT / PERIOD:  # and still silent
            arrivals, numbers = np.append(arrivals, sent[-1]), np.append(numbers, len(sent) - 1)
        order = np.argsort(arrivals, kind="stable")
        gaps = np.diff(arrivals[order]) - np.maximum(0.0, np.diff(stood[numbers[order]]))
        gaps = np.where(arrivals[order][:-1] <= begun_by, gaps, 0.0)
        longest = int(np.argmax(gaps))
        return float(arrivals[order][longest]), max(0.0, float(gaps[longest]) - BETWEEN)

    def stalls(self, first: int, last: int) -> float:
        """The longest that the sender stood still, in s."""
        sent = self.sent[max(0, first - 1) : last]
        return max(0.0, float(np.diff(sent).max()) - BETWEEN) if len(sent) > 1 else 0.0

    def delays(self, first: int, last: int) -> NDArray[Any]:
        """From sending to arrival, in s, of all that arrived of these ticks."""
        late = self.late[:, first:last].copy()
        return late[late > 0] / 1e6

    def alive(self, flow: int, within: float, now: float) -> bool:
        """Whether a packet of the flow arrived in the last `within` s."""
        last = self.ticks
        first = max(0, last - int((within + 1.0) / PERIOD))
        late = self.late[flow, first:last].copy()
        got = np.flatnonzero(late)[-8:]
        return bool(len(got)) and bool(np.max(self.sent[first + got] + late[got] / 1e6) >= now - within)

    def history(self, start: float, end: float) -> NDArray[Any]:
        """Packets that arrived, by flow and slot of SLOT s between two unix times."""
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
