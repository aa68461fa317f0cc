"""Runs the demo's long transfer, and kills or stops one process after another while it lasts."""

import signal
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from lab.demo_network import Side
from lab.demo_screen import Screen, grid
from lab.stagewire import Gateway
from lab.traffic import FetchReport, tcp_fetch
from lab.wait import until

MIB = 1 << 20
STRIDE = 8 * MIB
"""Bytes that flow before the first fault, and again after each."""
NOTABLE_STALL = 0.005
PATIENCE = 60.0
WINDOW = 1.0
REPORT_EVERY = 0.25
"""Share of the file between two lines, where nothing can move on the screen."""


@dataclass(frozen=True, slots=True)
class Target:
    """Names the process at work as `stage`, and the signal that it gets."""

    side: Side
    stage: str
    number: int = 0
    fault: signal.Signals = signal.SIGKILL

    @property
    def name(self) -> str:
        """Names the process as the table of stages does."""
        return f"{self.stage}-service" + (f" {self.number}" if self.stage == "device" else "")


@dataclass(slots=True)
class Fault:
    """Tells how a gateway took a fault. Times are in seconds since the transfer began."""

    target: Target
    old_pid: int
    new_pid: int
    at: float
    took: float
    """s from the signal until another process had the place."""
    bytes_then: int
    stall: float = 0.0
    """The longest time without a byte from the fault until the next one."""


class Fetch:
    """Downloads a file by A from B. After `run`, `report` and `faults` tell how it went."""

    def __init__(self, screen: Screen, client: Side, server: Side, size: int, seed: int) -> None:
        self._screen, self._client, self._server = screen, client, server
        self._size, self._seed = size, seed
        self.received = 0
        self.faults: list[Fault] = []
        self.report: FetchReport
        self._stalls: list[tuple[float, float]] = []
        self._begun = self._last = 0.0
        self._over = False
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)])
        self._announced = 0.0

    def run(self, targets: Sequence[Target]) -> None:
        """Downloads while the faults happen. Raises AssertionError if a byte is wrong or missing."""
        columns = (
            TextColumn("   fetching"),
            BarColumn(bar_width=32, complete_style="cyan", finished_style="green"),
            TaskProgressColumn(),
            _Amount(),
            _Rate(self),
        )
        screen = self._screen
        with Progress(*columns, console=screen.console, disable=not screen.moves) as self._progress:
            self._task = self._progress.add_task("", total=self._size)
            with ThreadPoolExecutor(max_workers=1) as one_thread:
                try:
                    harming = one_thread.submit(self._harm, targets)
                    self._download()
                finally:
                    self._over = True
                harming.result()
            self._progress.update(self._task, completed=self._size)
        for fault, following in zip(self.faults, [*self.faults[1:], None], strict=True):
            end = following.at if following else self._now()
            fault.stall = max((long for at, long in self._stalls if fault.at - long < at < end), default=0.0)

    def rate(self) -> float | None:
        """Returns the bits/s of the last second, or None if no byte came in it."""
        now, recent = self._now(), self._recent
        at, then = next(((at, then) for at, then in list(recent) if at >= now - WINDOW), (now, self.received))
        return (self.received - then) * 8 / (now - at) if self.received > then else None

    def _now(self) -> float:
        return time.monotonic() - self._begun

    def _download(self) -> None:
        self._begun = time.monotonic()
        spaces = (self._server.namespace, self._client.namespace)
        self.report = tcp_fetch(*spaces, self._server.inner4, self._size, self._seed, self._note, PATIENCE)

    def _note(self, received: int) -> None:
        now = self._now()
        if self.received == 0:  # the time before the first byte went into making the file
            self._begun += now
            now = 0.0
        elif now - self._last >= NOTABLE_STALL:
            self._stalls.append((self._last, now - self._last))
        self.received, self._last = received, now
        if now - self._recent[-1][0] < 0.05:
            return
        self._recent.append((now, received))
        while self._recent[0][0] < now - WINDOW:
            self._recent.popleft()
        self._progress.update(self._task, completed=received)
        if not self._screen.moves and received >= (self._announced + REPORT_EVERY) * self._size:
            self._announced += REPORT_EVERY
            self._tell(f"{self._announced:.0%} of the file has arrived")

    def _harm(self, targets: Sequence[Target]) -> None:
        for target in targets:
            goal = self.received + STRIDE
            until(partial(self._reached, goal), PATIENCE, "the transfer to go on")
            if self._over:
                return
            gateway, place = target.side.gateway, (target.stage, target.number)
            at, then = self._now(), self.received
            old_pid = gateway.kill(target.stage, target.fault, target.number)
            new_pid = until(partial(_another, gateway, place, old_pid), PATIENCE, f"another {target.name}")
            took = self._now() - at
            self._tell(
                f"{target.fault.name} to {target.name} of {target.side.label}: "
                f"{old_pid} → {new_pid} after {took * 1000:.0f} ms"
            )
            self.faults.append(Fault(target, old_pid, new_pid, at, took, then))

    def _reached(self, goal: int) -> bool:
        return self.received >= goal or self._over

    def _tell(self, what: str) -> None:
        self._screen.say(f"[dim]{self._now():5.1f} s[/]  {what}")


def _another(gateway: Gateway, place: tuple[str, int], old_pid: int) -> int:
    """Returns the process that has the place, or 0 while it is still the old one."""
    pid = gateway.held().get(place, old_pid)
    return 0 if pid == old_pid else pid


def table_of(faults: Sequence[Fault]) -> Table:
    """Makes a table of the faults and their pauses."""
    table = grid("at", "signal", "to", "of", "pid", "pid now", "after", "pause", right=(0, 4, 5, 6, 7))
    for each in faults:
        table.add_row(
            f"{each.at:.1f} s",
            each.target.fault.name,
            each.target.name.replace("-service", ""),
            each.target.side.label,
            str(each.old_pid),
            str(each.new_pid),
            f"{each.took * 1000:.0f} ms",
            f"{each.stall:.2f} s",
        )
    return table


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / MIB:.0f} of {(task.total or 0) / MIB:.0f} MiB", style="dim")


class _Rate(ProgressColumn):
    """Shows the current rate, also when no bytes come."""

    def __init__(self, fetch: Fetch) -> None:
        super().__init__()
        self._fetch = fetch

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text("")
        if not self._fetch.received:
            return Text("making the file", style="dim")
        rate = self._fetch.rate()
        return Text("waiting", style="yellow") if rate is None else Text(f"{rate / 1e6:.0f} Mbit/s", style="cyan")
