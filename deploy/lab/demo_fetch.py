"""The demo's long transfer, on the way of which one stage after the other is restarted."""

import contextlib
import os
import re
import select
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from lab.demo_network import Side
from lab.demo_screen import Screen
from lab.namespaces import stop
from lab.stagewire import executable
from lab.traffic import FetchReport, tcp_fetch
from lab.wait import NeverHappened, until

MIB = 1 << 20
STRIDE = 8 * MIB
"""So much flows before the first restart, and again after each."""
NOTABLE_STALL = 0.15
PATIENCE = 60.0
WINDOW = 1.0
ANSWERS_WITHIN = 20.0
PROMPT = "supervisor> "
REPORT_EVERY = 0.25
"""Of the file, where nothing can move on the screen."""


@dataclass(frozen=True, slots=True)
class Target:
    """A stage to be restarted: `program` is what supervisorctl takes."""

    side: Side
    program: str

    @property
    def name(self) -> str:
        """Without its group."""
        return self.program.rpartition(":")[2]


@dataclass(slots=True)
class Restart:
    """What became of one. The time is when the old process was gone, in seconds since the transfer began."""

    target: Target
    old_pid: int
    new_pid: int
    at: float
    bytes_then: int
    stall: float = 0.0
    """The longest time without a byte from then until the next restart."""


class Supervisorctl:
    """A supervisorctl that is there already, as an operator's would be: starting one takes a second or two."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._said = ""

    def __enter__(self) -> Self:
        gateway = self._side.gateway
        configuration = gateway.run_directory / gateway.name / "supervisord.conf"
        self._process = self._side.namespace.popen(
            *(executable("supervisorctl"), "-c", configuration),
            env={"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            output=subprocess.PIPE,
        )
        os.set_blocking(self._output(), False)
        self.answer(PROMPT)
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    def ask(self, command: str) -> None:
        """Gives it a command; `answer` waits for what it says."""
        self._said = ""
        if self._process.stdin:
            self._process.stdin.write(f"{command}\n".encode())
            self._process.stdin.flush()

    def answer(self, pattern: str) -> str:
        """Waits until it has said this, and returns the part that matched."""
        sought = re.compile(pattern)
        until(lambda: sought.search(self._hear()), ANSWERS_WITHIN, f"supervisorctl to say {pattern!r}")
        return str(sought.findall(self._said)[0])

    def pid(self, program: str) -> int:
        """The process of a program."""
        self.ask(f"pid {program}")
        return int(self.answer(r"(\d+)\n"))

    def _hear(self) -> str:
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._output(), 1 << 16).decode()
        if "ERROR" in self._said:
            raise RuntimeError(f"supervisorctl: {self._said.strip()}")
        return self._said

    def _output(self) -> int:
        return self._process.stdout.fileno() if self._process.stdout else -1


class _Life:
    """A process whose end is awaited to the moment, not to when supervisord looks."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def end(self) -> None:
        if not select.select([self._descriptor], [], [], ANSWERS_WITHIN)[0]:
            raise NeverHappened(f"waited {ANSWERS_WITHIN:g} s for a process to end")


class Fetch:
    """One download by A from B. After `run`, `report` and `restarts` tell how it went."""

    def __init__(self, screen: Screen, client: Side, server: Side, size: int, seed: int) -> None:
        self._screen, self._client, self._server = screen, client, server
        self._size, self._seed = size, seed
        self.received = 0
        self.restarts: list[Restart] = []
        self.report: FetchReport
        self._stalls: list[tuple[float, float]] = []
        self._begun = self._last = 0.0
        self._over = False
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)])
        self._announced = 0.0

    def run(self, targets: Sequence[Target]) -> None:
        """Fetches and restarts at once; raises when a byte is wrong or missing."""
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
            with ExitStack() as stack:
                waiting = {
                    side.label: stack.enter_context(Supervisorctl(side)) for side in (self._client, self._server)
                }
                one_thread = stack.enter_context(ThreadPoolExecutor(max_workers=1))
                try:
                    restarting = one_thread.submit(self._restart, targets, waiting)
                    self._download()
                finally:
                    self._over = True
                restarting.result()
            self._progress.update(self._task, completed=self._size)
        for restart, following in zip(self.restarts, [*self.restarts[1:], None], strict=True):
            end = following.at if following else self._now()
            restart.stall = max((long for at, long in self._stalls if restart.at - long < at < end), default=0.0)

    @property
    def stalled(self) -> float:
        """Seconds in which nothing came, all stalls together."""
        return sum(long for _, long in self._stalls)

    def rate(self) -> float | None:
        """Bits/s of the last second; None when nothing came in it."""
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
        """Called after each read, which is often."""
        now = self._now()
        if self.received == 0:  # the file was made first
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

    def _restart(self, targets: Sequence[Target], waiting: Mapping[str, Supervisorctl]) -> None:
        for target in targets:
            goal = self.received + STRIDE
            until(partial(self._reached, goal), PATIENCE, "the transfer to go on")
            if self._over:
                return
            supervisorctl, where = waiting[target.side.label], f"{target.name} of gateway {target.side.label}"
            old_pid = supervisorctl.pid(target.program)
            with _Life(old_pid) as life:
                supervisorctl.ask(f"restart {target.program}")
                life.end()
                at, then = self._now(), self.received
                self._tell(f"restarting {where}: process {old_pid} is gone")
                supervisorctl.answer(rf"{target.program}: started\n")
            new_pid = supervisorctl.pid(target.program)
            self._tell(f"process {new_pid} is started")
            self.restarts.append(Restart(target, old_pid, new_pid, at, then))

    def _reached(self, goal: int) -> bool:
        return self.received >= goal or self._over

    def _tell(self, what: str) -> None:
        self._screen.say(f"[dim]{self._now():5.1f} s[/]  {what}")


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / MIB:.0f} of {(task.total or 0) / MIB:.0f} MiB", style="dim")


class _Rate(ProgressColumn):
    """The rate now, also when no bytes come."""

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
