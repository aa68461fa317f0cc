"""What a run comes to: a table, JSON and a picture."""

from dataclasses import dataclass
from pathlib import Path

from chaos.drive import Drive, Progress
from chaos.processes import Held
from chaos.record import SHARED, Record
from chaos.scene import Scene
from chaos.view import View


@dataclass(slots=True)
class Run:
    """All that is known at the end."""

    seed: int
    record: Record
    progress: Progress
    violations: list[str]
    held: tuple[Held, Held]
    numbers: dict[str, int]

    @classmethod
    def of(cls, scene: Scene, drive: Drive, held: tuple[Held, Held], seed: int) -> "Run":
        """While the scene still stands."""
        numbers = {name: scene.record.get(name) for name in SHARED}
        return cls(seed, scene.record, drive.progress, scene.watch.violations(), held, numbers)


def conclude(run: Run, view: View, *, strict: bool) -> int:
    """Says it; returns the exit status."""
    view.say(str(run.numbers))
    view.say(str(run.held))
    view.say(str(run.violations))
    return 0


def plot_and_write(run: Run, out: Path, view: View) -> None:
    pass
