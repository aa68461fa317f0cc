"""Shows a run of faults while it goes on."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

import numpy as np
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from tests.chaos.drive import Drive, Outcome, Progress
from tests.chaos.invariants import Check, checks
from tests.chaos.processes import SUPERVISORD, Snapshot
from tests.chaos.record import PERIOD, SLOT
from tests.chaos.replay import down, up
from tests.chaos.scene import Scene
from tests.screen import Screen

from stagewire.stages import STAGES

LOOK: Final = 0.5
"""s between two looks at the processes."""
WIDTH: Final = 62
"""Slots of traffic shown."""
BARS: Final = "▁▂▃▄▅▆▇█"
FULL: Final = SLOT / PERIOD
NEW: Final = 3.0
"""s for which a process is shown as new."""
LAST: Final = 9


class View(Screen):
    """Shows one run."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self._said = 0
        self._look = 0.0
        self._drive: Drive | None = None
        self._snapshot = Snapshot({}, {})
        self._born: dict[int, float] = {}

    @contextlib.contextmanager
    def showing(self, scene: Scene, drive: Drive) -> Iterator[None]:
        """Lets `turn` show the scene while the context lasts."""
        self._scene, self._drive = scene, drive
        try:
            with self.moving():
                yield
        finally:
            self._drive = None

    def turn(self) -> None:
        """Shows progress when it is due. Call it often."""
        if self._drive is None or not self.is_due():
            return
        if self.live is not None:
            now = time.monotonic()
            if now >= self._look:
                self._look = now + LOOK
                self._see(now)
            self.draw(self._picture(self._drive.progress))
            return
        done = self._drive.progress.done
        for outcome in done[self._said :]:
            self.say(line(outcome))
        self._said = len(done)

    def _see(self, now: float) -> None:
        known = bool(self._born)
        self._snapshot = self._scene.house.now()
        for pid in self._snapshot.roles:
            self._born.setdefault(pid, now if known else 0.0)

    def _picture(self, progress: Progress) -> Group:
        upper = Table.grid(padding=(0, 1))
        upper.add_row(
            Panel(self._processes(), title="processes", border_style="dim"),
            Panel(self._traffic(progress), title="packets delivered, 0.1 s each", border_style="dim"),
        )
        found = checks(self._scene.record, progress.broken)
        return Group(
            self._title(progress),
            self._current(progress),
            upper,
            Panel(_last(progress.done[-LAST:]), title="last faults", border_style="dim"),
            Panel(
                _shown(found), title="at all times", border_style="green" if all(c.holds for c in found) else "bold red"
            ),
        )

    def _title(self, progress: Progress) -> Text:
        elapsed = time.time() - progress.begun
        of = f" of {progress.planned}" if progress.planned else ""
        text = Text("Stagewire chaos", style="bold cyan")
        return text.append(
            f"   seed {self.seed}   {elapsed / 60:.0f}:{elapsed % 60:02.0f}   {len(progress.done)}{of} faults", "dim"
        )

    def _current(self, progress: Progress) -> Text:
        if not progress.current:
            return Text("   all quiet", style="dim green")
        seconds = time.time() - progress.since
        return Text(f" ⚡ {progress.what}", style="bold yellow").append(f"  {seconds:.1f} s", style="yellow")

    def _processes(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        for heading in ("stage", "at work", "waiting"):
            table.add_column(heading, no_wrap=True)
        table.add_row(SUPERVISORD, self._pids(self._snapshot.of(SUPERVISORD)), "")
        at_work = set(self._snapshot.held.values())
        for role in STAGES:
            numbers = sorted(number for stage, number in self._snapshot.held if stage == role) or [0]
            for place, number in enumerate(numbers):
                holder = self._snapshot.held.get((role, number))
                waiting = self._pids(self._snapshot.of(role) - at_work) if place == 0 else Text()
                name = f"worker {number}" if role == "device" else f"{role}-service"
                table.add_row(name, self._pids({holder} if holder else set()), waiting)
        return table

    def _pids(self, pids: set[int]) -> Text:
        now, text = time.monotonic(), Text()
        for pid in sorted(pids)[:3]:
            text.append(f"{pid} ", style="bold yellow" if now - self._born.get(pid, now) < NEW else "")
        return text if pids else Text("none", style="bold red")

    def _traffic(self, progress: Progress) -> Table:
        now = time.time() - 2 * SLOT
        history = self._scene.record.history(now - WIDTH * SLOT, now)
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
        for peer in self._scene.network.hosts:
            home = self._scene.record.home(peer)
            table.add_row(f"to {peer}", bars(history[down(peer)]), Text(f"worker {home}", style="dim"))
            table.add_row(f"from {peer}", bars(history[up(peer)]), "")
        marks = [" "] * WIDTH
        for begun, _, _ in progress.marks:
            if 0 <= (place := int((begun - now) / SLOT + WIDTH)) < WIDTH:
                marks[place] = "▲"
        if progress.current and 0 <= (place := int((progress.since - now) / SLOT + WIDTH)) < WIDTH:
            marks[place] = "▲"
        table.add_row("faults", Text("".join(marks), style="yellow"), "")
        return table


def bars(counts: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> Text:
    """Draws one bar a slot, or a red dot for a slot without arrivals."""
    text = Text()
    for count in counts.tolist():
        level = min(len(BARS) - 1, int(count / FULL * (len(BARS) - 1) + 0.5))
        text.append(
            BARS[level] if count else "·", style="green" if level >= len(BARS) - 2 else "yellow" if count else "red"
        )
    return text


def _last(outcomes: list[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("at", "fault", "outage", "lost", "others", "lost"):
        table.add_column(heading, justify="left" if heading in {"at", "fault"} else "right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for outcome in reversed(outcomes):
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(outcome.at)), outcome.kind,
            f"{outcome.outage * 1000:.0f} ms", str(outcome.lost), f"{outcome.outage_others * 1000:.0f} ms",
            str(outcome.lost_others), "; ".join(outcome.broken) or outcome.note,
            style="bold red" if outcome.broken else "",
        )  # fmt: skip
    for _ in range(LAST - len(outcomes)):  # keeps the picture's height
        table.add_row("")
    return table


def _shown(found: list[Check]) -> Table:
    table = Table.grid(padding=(0, 3))
    cells = [
        Text.assemble(("✓ ", "green") if check.holds else ("✗ ", "bold red"), check.claim, (f"  {check.seen}", "dim"))
        for check in found
    ]
    for place in range(0, len(cells), 2):
        table.add_row(*cells[place : place + 2])
    return table


def line(outcome: Outcome) -> str:
    """Describes a fault in one line."""
    at = time.strftime("%H:%M:%S", time.localtime(outcome.at))
    outage = f"{outcome.outage * 1000:7.1f} ms at {outcome.outage_after * 1000:+5.0f}"
    figures = f"{outage} (at once {outcome.takeover * 1000:5.1f}) {outcome.lost:6d} lost"
    others = f"others {outcome.outage_others * 1000:6.1f} ms {outcome.lost_others:5d}"
    rest = ", ".join(f"{name} {value:.0f}" for name, value in outcome.measured.items())
    bad = "".join(f"\n    !! {text}" for text in outcome.broken)
    return f"{at} {outcome.kind:17} {figures}  {others}  {outcome.note}{'; ' if rest else ''}{rest}{bad}"
