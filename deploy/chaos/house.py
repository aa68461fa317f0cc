"""What a fault may use, and what it says of itself."""

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.children import Child
from chaos.network import SPARES, WORKERS, Network
from chaos.processes import Processes, Snapshot
from chaos.record import Record
from chaos.supervisor import Supervisor
from chaos.watch import Watch


@dataclass(slots=True)
class Struck:
    """A fault that has been done."""

    dead: set[int] = field(default_factory=set)
    """Processes that must be gone."""
    may_die: set[int] = field(default_factory=set)
    """Processes that may be gone too."""
    peers: set[int] | None = None
    """Those whose traffic it concerns; None for all."""
    note: str = ""
    since: float | None = None
    """Unix s from which the outage counts, when that isn't the beginning."""
    until: float | None = None
    """Unix s to which it counts, when what follows is only the driver's clearing up."""
    measured: dict[str, float] = field(default_factory=dict)
    """Other figures, with their unit in the name."""
    steps: list[tuple[int, int, set[int]]] = field(default_factory=list)
    """First and last tick of each step, and the peers that it concerned, where that changes from step to step."""
    broken: list[str] = field(default_factory=list)
    """What must not be and was seen."""


class Skipped(Exception):  # noqa: N818 - no error
    """This fault can't be tried here; the text says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Figures to reach: outages in ms, losses in packets, of one fault; None where there is none."""

    median_ms: float | None = None
    worst_ms: float | None = None
    median_lost: float | None = None
    worst_lost: float | None = None
    others_lost: float | None = None
    """Of peers that it doesn't concern."""
    measured: dict[str, float] = field(default_factory=dict)
    """Upper limits of further figures, by their names."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `name` is what reports and the command line call it."""

    name: str
    what: str
    strike: Callable[["House"], Struck]
    limits: Limits = field(default_factory=Limits)
    window: float = 0.7
    """s that are watched after it, at least."""
    tidy: Callable[["House"], None] | None = None
    """Clears up when all has been measured."""
    dark: bool = False
    """All traffic stops for a while by nature, so it has no place in a soak that counts dark moments."""
    short: bool = False
    """Tried twice even in a short run."""
    lasting: bool = False
    """Takes a quarter of a minute, so that a soak has it less often."""
    like: str | None = None
    """What is done to wireguard-go for comparison: kill or hang."""


class House:
    """The gateway and all that is around it."""

    def __init__(self, network: Network, record: Record, watch: Watch, flood: Child, luck: random.Random) -> None:
        self.network, self.record, self.watch, self.random = network, record, watch, luck
        self.flood = flood
        self.hub, self.gateway = network.hub, network.hub.gateway
        self.run = self.gateway.run_directory / self.gateway.name
        self.processes = Processes(network.gateway, self.run)
        self.supervisor = Supervisor(self.gateway, WORKERS, SPARES)
        self.turns: dict[str, int] = {}

    def now(self) -> Snapshot:
        """The processes."""
        return self.processes.snapshot()

    def at_home(self, worker: int) -> set[int]:
        """The peers whose sessions a worker owns, by what is seen on the outer link."""
        return {peer for peer in self.network.hosts if self.record.home(peer) == worker}

    def active(self, stage: str, number: int = 0) -> int:
        """The process at work in a place; waits for one."""
        deadline = time.monotonic() + 10
        while (pid := self.now().active(stage, number)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody at work as {stage} {number}")
            time.sleep(0.01)
        return pid

    def worker(self) -> int:
        """The number of one that has peers."""
        homes = {home for peer in self.network.hosts if (home := self.record.home(peer)) is not None}
        return self.random.choice(sorted(homes) or [0])

    def turn(self, name: str, count: int) -> int:
        """0, 1, 2 … below `count`, then again: for what is to have its turn each time."""
        self.turns[name] = self.turns.get(name, -1) + 1
        return self.turns[name] % count

    def time(self) -> float:
        """Unix s."""
        return time.time()

    def pace(self, seconds: float) -> None:
        """The schedule of a fault."""
        time.sleep(seconds)

    def new_handshake(self, within: float = 5.0) -> float:
        """s until a handshake that nobody has begun before is served; `within` when it isn't."""
        return self.network.prober.served(within) or within

    def outages(self, since: float) -> dict[int, float]:
        """By peer, in s, until now."""
        first, last = self.record.tick_at(since), self.record.ticks
        return {
            peer: max(self.record.outage(2 * (peer - 1) + way, first, last) for way in (0, 1))
            for peer in self.network.hosts
        }


def kill(pids: set[int], number: int = signal.SIGKILL) -> None:
    """Signals all that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def ended(pid: int, within: float) -> bool:
    """Waits for a process that is nobody's child of ours to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)
