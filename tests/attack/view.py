"""Shows the attack suite while it goes on."""

import time
from typing import Final

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from tests.attack.lines import LINES
from tests.attack.suite import Shown, State, Suite
from tests.screen import Screen

MARKS: Final[dict[State, tuple[str, str]]] = {
    "waits": ("·", "dim"), "held": ("✓", "green"), "broke": ("✗", "bold red"), "skipped": ("o", "yellow"),
}  # fmt: skip
LAST: Final = 12
ACROSS: Final = 4
"""Lines beside one another."""


class View(Screen):
    """Shows one run of the suite."""

    def __init__(self, suite: Suite, seed: int) -> None:
        super().__init__()
        self._suite = suite
        self._seed = seed
        self._told = 0

    def turn(self, *, last: bool = False) -> None:
        """Shows progress when it is due. Call it often."""
        if not (self.is_due() or last):
            return
        if self.live is not None:
            self.draw(self._picture())
            return
        for shown in self._suite.shown[self._told :]:
            self.say(line(shown))
        self._told = len(self._suite.shown)

    def _picture(self) -> Group:
        suite = self._suite
        elapsed = time.time() - suite.begun
        title = Text("Stagewire attack", style="bold cyan").append(
            f"   seed {self._seed}   {elapsed / 60:.0f}:{elapsed % 60:02.0f}   {len(suite.shown)} of {suite.planned} tests",
            "dim",
        )
        now = time.monotonic()
        running = Text(overflow="ellipsis", no_wrap=True)
        for test, since in sorted(suite.running.items(), key=lambda entry: entry[1]):
            running.append(f" ⚔ {test.removeprefix('tests/')}", "bold yellow").append(
                f"  {now - since:.1f} s\n", "yellow"
            )
        return Group(
            title,
            running,
            Panel(self._lines(), title="lines", border_style="green" if suite.sound else "bold red"),
            Panel(_last(suite.shown[-LAST:]), title="last tests", border_style="dim"),
        )

    def _lines(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(ACROSS):
            table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
        cells = []
        for name, each in LINES.items():
            mark, style = MARKS[self._suite.state(name)]
            cells.append(Text.assemble((f"{mark} {name} ", style), (each.what, "dim")))
        height = -(-len(cells) // ACROSS)
        for row in range(height):
            table.add_row(*cells[row::height])
        return table


def _last(shown: list[Shown]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True)
    for each in reversed(shown):
        mark, style = MARKS[each.outcome]
        said = each.why or "; ".join(each.figures)
        table.add_row(Text(f"{mark} {' '.join(each.lines)}", style), f"{each.seconds:.1f} s", each.test, said)
    for _ in range(LAST - len(shown)):  # keeps the picture's height
        table.add_row("")
    return table


def line(shown: Shown) -> str:
    """Describes a test in one line."""
    said = shown.why or "; ".join(shown.figures)
    return f"{MARKS[shown.outcome][0]} {' '.join(shown.lines):8} {shown.seconds:6.1f} s  {shown.test}" + (
        f"  {said}" if said else ""
    )
