"""Drives the faults, one after the other: watches each until the gateway is whole again, and judges it."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.house import House, Kind, Skipped, Struck
from tests.chaos.network import PEERS
from tests.chaos.processes import Held, Snapshot
from tests.chaos.record import Record
from tests.chaos.replay import down, up
from tests.chaos.schedule import Plan
from tests.chaos.stream import Streams
from tests.chaos.transfer import Transfer

EXPECTED: Final = (AssertionError, RuntimeError, OSError, subprocess.SubprocessError)
"""Errors by which the lab reports a failure. Any other error is a bug of the driver's."""
TURN: Final = 0.02
SLOW_TURN: Final = 0.06
"""s between two turns while each turn looks at the processes, which needs CPU."""
ALIVE_WITHIN: Final = 0.08
WHOLE_WITHIN: Final = 60.0
"""s after which the run goes on even if the gateway is not whole; the fault is blamed for it."""
REPLAYS: Final = 25
LATE: Final = 0.3
"""s that the last packets of a window may need."""
AT_ONCE: Final = 0.05
"""s after a fault; an outage that begins later has another cause."""
RETURNED: Final = 1.5
"""s; a fault is not judged by peers that were silent for this long before it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Tells what one fault did. Times of day are unix s, outages s, losses packets. `own` and `others` are peers."""

    kind: str
    number: int
    at: float
    lasted: float
    note: str
    outage: float
    outage_after: float
    """s from the fault to the beginning of its longest outage; a late one has another cause."""
    takeover: float
    """s of the longest outage that began with the fault, not later, such as with the start of a replacement."""
    outage_others: float
    lost: int
    lost_others: int
    by_peer: dict[int, float]
    slowest: float
    """The longest time from sending to arrival, in s."""
    stall: float
    """The longest pause of the driver's own sender, in s."""
    whole_after: float
    """s until all processes were there and all traffic flowed."""
    measured: dict[str, float]
    broken: list[str]


@dataclass(slots=True)
class Progress:
    """Holds the facts that the views show."""

    begun: float
    ends: float
    planned: int = 0
    current: str = ""
    what: str = ""
    since: float = 0.0
    done: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    marks: list[tuple[float, float, str]] = field(default_factory=list)
    """Begin and end (unix s), kind."""


@dataclass(slots=True)
class _Toll:
    """Adds up the cost of a fault to some peers: the longest outage, in s, and packets."""

    outage: float = 0.0
    began: float = 0.0
    at_once: float = 0.0
    """s of the longest outage that began with the fault."""
    lost: int = 0
    by_peer: dict[int, float] = field(default_factory=dict)

    def add(self, record: Record, peers: set[int], first: int, last: int) -> None:
        """Adds the cost of these ticks to these peers."""
        for peer in sorted(peers):
            outage, began = max(record.gap(flow, first, last)[::-1] for flow in _flows(peer))
            self.by_peer[peer] = max(outage, self.by_peer.get(peer, 0.0))
            soon = float(record.sent[min(first, record.ticks - 1)]) + AT_ONCE
            self.at_once = max(self.at_once, *(record.gap(flow, first, last, soon)[1] for flow in _flows(peer)))
            self.outage, self.began = max((outage, began), (self.outage, self.began))
            self.lost += sum(record.lost(flow, first, last) for flow in _flows(peer))


class Drive:
    """Carries out faults. It calls `shown` many times a second."""

    def __init__(self, house: House, streams: Streams, transfer: Transfer, shown: Callable[[], None]) -> None:
        self._house, self._streams, self._transfer, self._shown = house, streams, transfer, shown
        self._hands = ThreadPoolExecutor(1, "strike")
        self._next_replay = 0.0
        # A generator of its own: its draws depend on time, and a fault's draws must depend on the seed alone.
        self._moments = random.Random()
        self._usual: Counter[str] = Counter()
        self._since = 0.0
        self._pressure: tuple[int | None, float] = (None, 0.0)
        self._before: Held | None = None
        now = time.time()
        self.progress = Progress(now, now)

    def settle(self) -> None:
        """Waits until everything flows, and notes the usual number of processes."""
        self._wait(self._flowing, WHOLE_WITHIN, "traffic in every flow")
        self._wait(self._has_spares, WHOLE_WITHIN, "a spare of every stage")
        self._wait(lambda: self._steady(2.0), WHOLE_WITHIN, "as many processes as before")
        self._usual = self._house.now().counts()
        self._before = self._house.processes.resources()
        self.progress.begun = time.time()
        self._pressure = _pressure(), time.monotonic()

    def waited(self) -> float | None:
        """Returns the share of the time since `settle` in which a process waited for a processor."""
        before, then = self._pressure
        now = _pressure()
        return None if now is None or before is None else (now - before) / 1e6 / (time.monotonic() - then)

    def _has_spares(self) -> bool:
        """Tells whether each stage has more processes than slots: spares start when all else is at work."""
        now = self._house.now()
        places = Counter(stage for stage, _ in now.held)
        return all(now.counts()[stage] > count for stage, count in places.items())

    def _steady(self, seconds: float) -> bool:
        """Tells whether the processes have been the same for a while: spares need a moment to appear."""
        now, counts = time.monotonic(), self._house.now().counts()
        if counts != self._usual:
            self._usual, self._since = counts, now
        return now - self._since >= seconds

    def run(self, plan: Plan) -> None:
        """Carries out each fault of the plan, after its pause."""
        for kind, pause in plan:
            rest = time.monotonic() + pause
            self._wait(lambda rest=rest: time.monotonic() >= rest, pause + 1, "")  # type: ignore[misc]
            if kind.name not in self.progress.skipped:
                self._one(kind)

    def _one(self, kind: Kind) -> None:
        house, record, progress = self._house, self._house.record, self.progress
        before, begun, first = house.now(), time.time(), record.ticks
        flowing = {peer for peer in house.network.hosts if self._peer_alive(peer, RETURNED)}
        progress.current, progress.what, progress.since = kind.name, kind.what, begun
        work = self._hands.submit(kind.strike, house)
        struck = self._finish(kind, work)
        if struck is None:
            progress.current = ""
            return
        if struck.until is None:
            watched = time.time() + kind.window
            self._wait(lambda: time.time() >= watched, kind.window + 1, "")
        end = struck.until or time.time()
        whole = self._until_whole(kind, struck)
        last = record.tick_at(end) if struck.until else record.ticks
        self._tidy(kind, struck)
        settled = time.time() + LATE
        self._wait(lambda: time.time() >= settled, LATE + 1, "")
        if kind.tidy:
            flows = [flow for peer in sorted(flowing) for flow in _flows(peer) if peer != PEERS]
            struck.measured["cleared_ms"] = max(record.outage(flow, last, record.ticks) for flow in flows) * 1000
        first = record.tick_at(struck.since) if struck.since else first
        self._judge(kind, struck, (begun, before, first, last), flowing, whole)
        progress.current = ""

    def _finish(self, kind: Kind, work: Future[Struck]) -> Struck | None:
        try:
            self._wait(work.done, 120, f"{kind.name} to be done")
            return work.result()
        except Skipped as reason:
            self.progress.skipped[kind.name] = str(reason)
        except EXPECTED as error:
            services = self._house.now().services()
            return Struck(may_die=services, broken=[f"the driver could not do it: {type(error).__name__}: {error}"])
        return None

    def _until_whole(self, kind: Kind, struck: Struck) -> float:
        begun = time.time()
        try:
            self._wait(
                lambda: self._flowing() and self._complete(struck, kind), WHOLE_WITHIN, "all to be whole", SLOW_TURN
            )
        except AssertionError:
            struck.broken.append(f"the gateway is not whole {WHOLE_WITHIN:.0f} s later: {self._missing()}")
        return time.time() - begun

    def _tidy(self, kind: Kind, struck: Struck) -> None:
        if kind.tidy is None:
            return
        work = self._hands.submit(kind.tidy, self._house)
        self._wait(work.done, 60, f"{kind.name} to be cleared up")
        work.result()
        try:
            self._wait(
                lambda: self._flowing() and self._complete(struck, None), WHOLE_WITHIN, "all to be whole", SLOW_TURN
            )
        except AssertionError:
            struck.broken.append(f"the gateway is not whole after the driver cleared up: {self._missing()}")

    def _judge(
        self, kind: Kind, struck: Struck, span: tuple[float, Snapshot, int, int], flowing: set[int], whole: float
    ) -> None:
        house, record = self._house, self._house.record
        begun, before, first, last = span
        gone = set(before.roles) - set(house.now().roles)
        for pid in sorted(gone - struck.dead - struck.may_die):
            if kind.tidy is None:
                struck.broken.append(f"{before.roles[pid]} {pid} died, but the fault did not kill it")
        struck.broken += [
            f"{before.roles.get(pid)} {pid} still lives, but the fault killed it" for pid in sorted(struck.dead - gone)
        ]
        own, others = _Toll(), _Toll()
        for start, end, concerned in struck.steps or [(first, last, flowing if struck.peers is None else struck.peers)]:
            # A fault that should concern no peer counts as every peer's own.
            mine = flowing & concerned or (set() if struck.steps else flowing)
            own.add(record, _steady_of(mine), start, end)
            others.add(record, flowing - mine, start, end)
        delays = record.delays(first, last)
        number = sum(outcome.kind == kind.name for outcome in self.progress.done) + 1
        outcome = Outcome(
            kind.name, number, begun, time.time() - begun, struck.note,
            own.outage, own.began - (struck.since or begun), own.at_once,
            others.outage, own.lost, others.lost, {**others.by_peer, **own.by_peer},
            float(delays.max()) if len(delays) else 0.0, record.stalls(first, last),
            whole, struck.measured, struck.broken,
        )  # fmt: skip
        self.progress.done.append(outcome)
        self.progress.broken += [f"{kind.name} {number}: {text}" for text in struck.broken]
        self.progress.marks.append((begun, time.time(), kind.name))

    def _peer_alive(self, peer: int, within: float) -> bool:
        now = time.time()
        return all(self._house.record.alive(flow, within, now) for flow in _flows(peer))

    def _flowing(self) -> bool:
        """Tells whether traffic flows to and from each peer, except the last, whose endpoint the gateway must learn."""
        return all(self._peer_alive(peer, ALIVE_WITHIN) for peer in range(1, PEERS))

    def _complete(self, struck: Struck, kind: Kind | None) -> bool:
        """Tells whether every dead process has a replacement. Until the fault is cleared up there may be more."""
        now = self._house.now()
        if struck.dead & set(now.roles) or any((stage, 0) not in now.held for stage in ("tun", "conn", "key")):
            return False
        if kind is not None and kind.tidy is not None:
            return True
        return now.counts() == self._usual

    def _missing(self) -> str:
        counts = self._house.now().counts()
        silent = [str(peer) for peer in self._house.network.hosts if not self._peer_alive(peer, ALIVE_WITHIN)]
        here = ", ".join(f"{count} {role}" for role, count in sorted(counts.items()))
        return f"processes {here}; silent peers: {', '.join(silent) or 'none'}"

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str, turn: float = TURN) -> None:
        """Waits until the condition holds, while the views go on and the watch replays datagrams now and then."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:.0f} s for {what}")
            if time.monotonic() > self._next_replay:
                self._house.watch.replay(REPLAYS)
                self._next_replay = time.monotonic() + self._moments.uniform(0.1, 0.7)
                self._streams.check()
                self._transfer.check()
            self._shown()
            time.sleep(turn)

    def finish(self) -> tuple[Held, Held]:
        """Waits for the usual processes. Returns the resources at the beginning and now."""
        if self._before is None:
            raise RuntimeError("finish() needs settle() first")
        try:
            self._wait(lambda: self._house.now().counts() == self._usual, WHOLE_WITHIN, "the processes", SLOW_TURN)
        except AssertionError:
            self.progress.broken.append(f"the processes differ from those at the beginning: {self._missing()}")
        rest = time.monotonic() + 1
        self._wait(lambda: time.monotonic() >= rest, 2, "")
        return self._before, self._house.processes.resources()

    def close(self) -> None:
        """Waits for the current fault to end."""
        self._hands.shutdown(wait=True, cancel_futures=True)


def _flows(peer: int) -> tuple[int, int]:
    return down(peer), up(peer)


def _pressure() -> int | None:
    """Returns the us since the machine started in which a process waited for a processor."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split()[4].removeprefix("total="))
    except (OSError, ValueError):
        return None


def _steady_of(peers: set[int]) -> set[int]:
    """Returns the peers without the one whose endpoint the gateway must learn, unless it is the only one."""
    return peers - {PEERS} or peers
