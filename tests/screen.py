"""Prints a run's progress: a live picture on a terminal, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live

EVERY: Final = 0.2
"""s between two pictures, which take CPU from what is watched."""


class Screen:
    """Holds the terminal, or the pipe in its place."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
        self.moves = self.console.is_terminal and not self.console.is_dumb_terminal
        self.live: Live | None = None
        self._due = 0.0

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Makes room for pictures while the context lasts, on a terminal."""
        try:
            if self.moves:
                with Live(console=self.console, auto_refresh=False, screen=True) as self.live:
                    yield
            else:
                yield
        finally:
            self.live = None

    def is_due(self) -> bool:
        """Tells, at most every EVERY, that it is time for a picture or for lines."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + EVERY
        return True

    def draw(self, picture: RenderableType) -> None:
        """Shows a picture in place of the one before."""
        if self.live is not None:
            self.live.update(picture, refresh=True)
