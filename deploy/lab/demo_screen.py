"""What the demo's viewer sees: numbered steps, claims that are checked, and a summary."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

WIDEST = 100
INDENT = 4


class Screen:
    """One per show. In a pipe, or with NO_COLOR, it writes plain text: no colours, no moving parts."""

    def __init__(self) -> None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # for who has no UTF-8
        plain = bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()
        self.console = Console(color_system=None, force_terminal=False) if plain else Console()
        self.console.width = min(self.console.width, WIDEST) if sys.stdout.isatty() else WIDEST
        self.moves = not plain and not self.console.is_dumb_terminal
        self.failures: list[str] = []
        self._steps: list[tuple[str, str, bool]] = []
        self._title = ""
        self._gap = False
        self._begun = time.monotonic()

    def gap(self) -> None:
        """One empty line, not two."""
        if not self._gap:
            self.console.print()
        self._gap = True

    def _print(self, what: RenderableType, *, exactly: bool = False) -> None:
        self.console.print(what, soft_wrap=exactly, highlight=False)
        self._gap = False

    def title(self, name: str, what: str) -> None:
        """The first line."""
        self.gap()
        self._print(f"[bold]{name}[/]  [dim]{what}[/]")

    def heading(self, text: str) -> None:
        """A rule with a text in it."""
        self.gap()
        self._print(Rule(text, align="left", style="dim"))

    @property
    def elapsed(self) -> float:
        """Seconds since the show began."""
        return time.monotonic() - self._begun

    def say(self, text: str = "", style: str = "") -> None:
        """A paragraph, in markup."""
        self._print(Padding(Text.from_markup(text, style=style), (0, 0, 0, INDENT), expand=False))

    def say_exactly(self, text: str | Text, indent: int = INDENT) -> None:
        """Lines that are never broken, whatever the width."""
        for line in text.split() if isinstance(text, Text) else map(Text, text.splitlines()):
            self._print(Text(" " * indent) + line, exactly=True)

    def table(self, table: Table) -> None:
        """A table of ours, with some air around it."""
        self.gap()
        self._print(Padding(table, (0, 0, 0, INDENT), expand=False))
        self.gap()

    @contextmanager
    def step(self, title: str, why: str) -> Iterator[None]:
        """A numbered heading with what is shown and why it matters."""
        self._title = title
        failed_before = len(self.failures)
        number = len(self._steps) + 1
        self.heading(f"[bold cyan]{number}[/]  [bold]{title}[/]")
        self.say(why, style="dim")
        self.gap()
        self._steps.append((title, "not reached its end", False))
        yield
        failed = self.failures[failed_before:]
        self._steps[-1] = (title, failed[0] if failed else self._steps[-1][1], not failed)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Says what goes on, while it does."""
        if self.moves:
            with self.console.status(Text(what, style="dim"), spinner="dots", spinner_style="cyan"):
                yield
        else:
            self.say(f"{what} ...")
            yield

    @contextmanager
    def removing(self) -> Iterator[None]:
        """The end, which takes its seconds too."""
        self.gap()
        begun = time.monotonic()
        with self.waiting("removing namespaces, processes and files"):
            yield
        self.say(f"removed namespaces, processes and files ({time.monotonic() - begun:.1f} s)", style="dim")

    def conclude(self, shown: str) -> None:
        """What the summary says of this step."""
        self._steps[-1] = (self._title, shown, self._steps[-1][2])

    def check(self, holds: bool, claim: str) -> None:
        """States a claim as kept, or in red as broken; a broken one makes the show fail."""
        if holds:
            self.say(f"[green]✓[/] {claim}")
        else:
            self.fail(f"not so: {claim}")

    def fail(self, what: str) -> None:
        """One red line, which the exit status remembers."""
        self.failures.append(what)
        self.say(f"✗ {what}", style="bold red")

    def summary(self) -> None:
        """All steps in a table, and the verdict."""
        table = Table("", "step", "shown", box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for number, (title, shown, kept) in enumerate(self._steps, 1):
            mark = "[green]✓[/]" if kept else "[bold red]✗[/]"
            table.add_row(f"{mark} {number}", title, shown if kept else f"[red]{shown}[/]")
        self.heading("[bold]Summary[/]")
        self.table(table)
        if self.failures:
            self.say(f"{_counted(len(self.failures), 'check')} failed  ({self.elapsed:.0f} s)", style="bold red")
        else:
            self.say(f"[bold green]Everything that was claimed was checked and held[/]  ({self.elapsed:.0f} s)")


def grid(*headings: str, right: tuple[int, ...] = ()) -> Table:
    """An empty table in the demo's look; the columns numbered in `right` hold figures."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number in right else "left", no_wrap=True)
    return table


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
