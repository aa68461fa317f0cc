"""Gives a fault its tools, and takes its result."""

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.children import Child
from tests.chaos.network import SPARES, WORKERS, Network
from tests.chaos.processes import Processes, Snapshot
from tests.chaos.record import Record
from tests.chaos.supervisor import Supervisor
from tests.chaos.watch import Watch


@dataclass(slots=True)
class Struck:
    """Describes a fault that was carried out."""

    dead: set[int] = field(default_factory=set)
    """Processes that must be gone."""
    may_die: set[int] = field(default_factory=set)
    """Processes that may be gone."""
    peers: set[int] | None = None
    """Peers whose traffic it concerns; None for all."""
    note: str = ""
    since: float | None = None
    """Unix s from which the outage counts, if not from the beginning."""
    until: float | None = None
    """Unix s until which the outage counts, if the driver only clears up after that."""
    measured: dict[str, float] = field(default_factory=dict)
    """Other figures, with their unit in the name."""
    steps: list[tuple[int, int, set[int]]] = field(default_factory=list)
    """First and last tick of each step and the peers that it concerned, where these change between steps."""
    broken: list[str] = field(default_factory=list)
    """Broken invariants that the fault saw."""


class Skipped(Exception):  # noqa: N818 - no error
    """Says why this fault cannot be tried here."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sets the figures to reach: outages in ms, losses in packets, of one fault. None sets no limit."""

    median_ms: float | None = None
    worst_ms: float | None = None
    median_lost: float | None = None
    worst_lost: float | None = None
    others_lost: float | None = None
    """Of peers that the fault does not concern."""
    measured: dict[str, float] = field(default_factory=dict)
    """Upper limits of further figures, by their names."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Describes a kind of fault. Reports and the command line call it by `name`."""

    name: str
    what: str
    strike: Callable[["House"], Struck]
    limits: Limits = field(default_factory=Limits)
    window: float = 0.7
    """s for which the driver watches after it, at least."""
    tidy: Callable[["House"], None] | None = None
    """Clears up after the measurement."""
    dark: bool = False
    """All traffic stops for a while by nature, so a soak, which counts dark moments, leaves it out."""
    short: bool = False
    """Even a short run tries it twice."""
    lasting: bool = False
    """Needs a quarter of a minute, so a soak has it less often."""
    like: str | None = None
    """The comparable fault of wireguard-go: kill or hang."""


class House:
    """Holds the gateway and its surroundings."""

    def __init__(self, network: Network, record: Record, watch: Watch, flood: Child, luck: random.Random) -> None:
        self.network, self.record, self.watch, self.random = network, record, watch, luck
        self.flood = flood
        self.hub, self.gateway = network.hub, network.hub.gateway
        self.run = self.gateway.run_directory / self.gateway.name
        self.processes = Processes(network.gateway, self.run)
        self.supervisor = Supervisor(self.gateway, WORKERS, SPARES)
        self.turns: dict[str, int] = {}

    def now(self) -> Snapshot:
        """Returns the current processes."""
        return self.processes.snapshot()

    def at_home(self, worker: int) -> set[int]:
        """Returns the peers whose home is this worker, as the outer link shows."""
        return {peer for peer in self.network.hosts if self.record.home(peer) == worker}

    def active(self, stage: str, number: int = 0) -> int:
        """Waits for the holder of a slot. Returns its pid."""
        deadline = time.monotonic() + 10
        while (pid := self.now().active(stage, number)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no process holds slot {stage} {number} after 10 s")
            time.sleep(0.01)
        return pid

    def worker(self) -> int:
        """Draws a worker that is home to peers."""
        homes = {home for peer in self.network.hosts if (home := self.record.home(peer)) is not None}
        return self.random.choice(sorted(homes) or [0])

    def turn(self, name: str, count: int) -> int:
        """Counts 0, 1, 2 … below `count`, then again, so that each item has its turn."""
        self.turns[name] = self.turns.get(name, -1) + 1
        return self.turns[name] % count

    def time(self) -> float:
        return time.time()

    def pace(self, seconds: float) -> None:
        """Waits as a fault's schedule says."""
        time.sleep(seconds)

    def new_handshake(self, within: float = 5.0) -> float:
        """Returns the s until a new handshake is served, or `within` if it is not."""
        return self.network.prober.served(within) or within

    def outages(self, since: float) -> dict[int, float]:
        """Returns each peer's longest outage since then, in s."""
        first, last = self.record.tick_at(since), self.record.ticks
        return {
            peer: max(self.record.outage(2 * (peer - 1) + way, first, last) for way in (0, 1))
            for peer in self.network.hosts
        }


def kill(pids: set[int], number: int = signal.SIGKILL) -> None:
    """Signals all processes that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def ended(pid: int, within: float) -> bool:
    """Waits for a process that is no child of the driver's to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)
