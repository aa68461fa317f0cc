"""What is seen of a run while it goes on: a live picture on a terminal, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console

from chaos.drive import Drive, Outcome
from chaos.scene import Scene


class View:
    """One per run."""

    def __init__(self, seed: int) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.seed = seed
        self._said = 0
        self._drive: Drive | None = None

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def showing(self, scene: Scene, drive: Drive) -> Iterator[None]:
        """While the context lasts, `turn` shows what happens."""
        self._scene, self._drive = scene, drive
        yield
        self.turn()

    def turn(self) -> None:
        """To be called often."""
        if self._drive is None:
            return
        done = self._drive.progress.done
        for outcome in done[self._said :]:
            self.say(line(outcome))
        self._said = len(done)


def line(outcome: Outcome) -> str:
    """A fault in one line."""
    at = time.strftime("%H:%M:%S", time.localtime(outcome.at))
    figures = f"{outcome.outage * 1000:7.1f} ms {outcome.lost:6d} lost"
    others = f"others {outcome.outage_others * 1000:6.1f} ms {outcome.lost_others:5d}"
    rest = "  ".join(f"{name} {value:.0f}" for name, value in outcome.measured.items())
    bad = "".join(f"\n    !! {text}" for text in outcome.broken)
    return f"{at} {outcome.kind:17} {figures}  {others}  whole {outcome.whole_after:4.1f} s  {outcome.note} {rest}{bad}"
