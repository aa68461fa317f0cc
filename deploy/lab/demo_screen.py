"""Prints numbered steps, checked claims and a summary for the demo's viewer."""

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
    """Writes one show. In a pipe, or with NO_COLOR, it writes plain text: no colours, no moving parts."""

    def __init__(self) -> None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # for terminals without UTF-8
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
        """Prints an empty line unless the last line is one."""
        if not self._gap:
            self.console.print()
        self._gap = True

    def _print(self, what: RenderableType, *, exactly: bool = False) -> None:
        self.console.print(what, soft_wrap=exactly, highlight=False)
        self._gap = False

    def title(self, name: str, what: str) -> None:
        self.gap()
        self._print(f"[bold]{name}[/]  [dim]{what}[/]")

    def heading(self, text: str) -> None:
        """Prints a rule with a text in it."""
        self.gap()
        self._print(Rule(text, align="left", style="dim"))

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    def say(self, text: str = "", style: str = "") -> None:
        """Prints a paragraph, in markup."""
        self._print(Padding(Text.from_markup(text, style=style), (0, 0, 0, INDENT), expand=False))

    def say_exactly(self, text: str | Text, indent: int = INDENT) -> None:
        """Prints lines and never breaks them, whatever the width."""
        for line in text.split() if isinstance(text, Text) else map(Text, text.splitlines()):
            self._print(Text(" " * indent) + line, exactly=True)

    def table(self, table: Table) -> None:
        """Prints a table between empty lines."""
        self.gap()
        self._print(Padding(table, (0, 0, 0, INDENT), expand=False))
        self.gap()

    @contextmanager
    def step(self, title: str, why: str) -> Iterator[None]:
        """Prints a numbered heading with what the step shows and why that matters."""
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
        """Prints a line or a spinner while the context lasts."""
        if self.moves:
            with self.console.status(Text(what, style="dim"), spinner="dots", spinner_style="cyan"):
                yield
        else:
            self.say(f"{what} ...")
            yield

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Reports the removal at the end of the show, and its time."""
        self.gap()
        begun = time.monotonic()
        with self.waiting("removing namespaces, processes and files"):
            yield
        self.say(f"removed namespaces, processes and files ({time.monotonic() - begun:.1f} s)", style="dim")

    def conclude(self, shown: str) -> None:
        """Sets the summary's words for this step."""
        self._steps[-1] = (self._title, shown, self._steps[-1][2])

    def check(self, holds: bool, claim: str) -> None:
        """States a claim as kept, or in red as broken. A broken one makes the show fail."""
        if holds:
            self.say(f"[green]✓[/] {claim}")
        else:
            self.fail(f"not so: {claim}")

    def fail(self, what: str) -> None:
        """Prints one red line. The show will exit with 1."""
        self.failures.append(what)
        self.say(f"✗ {what}", style="bold red")

    def summary(self) -> None:
        """Prints all steps in a table, and the verdict."""
        table = Table("", "step", "shown", box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for number, (title, shown, kept) in enumerate(self._steps, 1):
            mark = "[green]✓[/]" if kept else "[bold red]✗[/]"
            table.add_row(f"{mark} {number}", title, shown if kept else f"[red]{shown}[/]")
        self.heading("[bold]Summary[/]")
        self.table(table)
        if self.failures:
            self.say(f"{_counted(len(self.failures), 'check')} failed  ({self.elapsed:.0f} s)", style="bold red")
        else:
            self.say(f"[bold green]Every claim was checked and held[/]  ({self.elapsed:.0f} s)")


def grid(*headings: str, right: tuple[int, ...] = ()) -> Table:
    """Makes an empty table in the demo's look. The columns numbered in `right` hold figures."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number in right else "left", no_wrap=True)
    return table


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
