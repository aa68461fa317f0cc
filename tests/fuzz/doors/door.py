"""Registers each door for foreign bytes once, for hypothesis, for atheris and for the test that no door is missing.

A door's function takes bytes and returns. It catches the one exception that the door's documentation names. Any other
exception fails, as does too much time or memory, or a result that an independent implementation contradicts.
"""

import resource
import time
import tracemalloc
from ast import literal_eval
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

HERE: Final = Path(__file__).parents[1]
CORPUS: Final = HERE / "corpus"
"""Inputs that together reach what fuzzing has reached, a file for each door."""
CRASHERS: Final = HERE / "crashers"
"""Inputs that once failed, a file for each door."""
MEGABYTES: Final = 32
"""Memory that one input may take."""
TRIES: Final = 4
"""Runs of an input that seems too slow: the quickest counts, because other processes disturb the rest."""
_SLOWER: Final = 3
"""How much slower a door runs while coverage is measured or on a busy machine."""


class TooMuch(AssertionError):  # noqa: N818 - a finding
    """Reports an input that takes too much time or memory."""


@dataclass(frozen=True)
class Door:
    """Describes a door. `covers` lists the functions that it leads to."""

    name: str
    take: Callable[[bytes], None]
    covers: tuple[Callable[..., Any], ...]
    seeds: Callable[[], Iterable[bytes]]
    milliseconds: int
    longest: int
    """Bytes of an input."""

    def kept(self) -> list[bytes]:
        """Returns the inputs that are kept in the tree."""
        return [*read(CORPUS / f"{self.name}.txt"), *read(CRASHERS / f"{self.name}.txt")]

    def check(self, data: bytes) -> None:
        """Runs an input. Raises TooMuch beside whatever the door itself raises."""
        before, memory = time.thread_time(), _memory()
        self.take(data)
        if time.thread_time() - before > self.milliseconds / 1000:
            self._judge_time(data)
        if _memory() - memory > MEGABYTES:
            self._judge_memory(data)

    def _judge_time(self, data: bytes) -> None:
        took = []
        for _ in range(TRIES):
            before = time.thread_time()
            self.take(data)
            took.append(time.thread_time() - before)
        if min(took) > _SLOWER * self.milliseconds / 1000:
            raise TooMuch(f"{len(data)} bytes take {min(took) * 1000:.0f} ms")

    def _judge_memory(self, data: bytes) -> None:
        tracemalloc.start()
        try:
            self.take(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        if peak > MEGABYTES << 20:
            raise TooMuch(f"{len(data)} bytes take {peak >> 20} MB")


DOORS: Final[dict[str, Door]] = {}


def door(
    *covers: Callable[..., Any],
    seeds: Callable[[], Iterable[bytes]] = lambda: (),
    milliseconds: int = 20,
    longest: int = 2048,
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Registers the decorated function, by its name, as a door that leads to `covers`."""

    def register(take: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = take.__name__
        assert name not in DOORS, name
        DOORS[name] = Door(name, take, covers, seeds, milliseconds, longest)
        return take

    return register


def only(
    error: type[Exception] | tuple[type[Exception], ...], called: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | None:
    """Returns what a function returns; None if it raises its one exception."""
    try:
        return called(*args, **kwargs)
    except error:
        return None


class Given:
    """Cuts an input into the numbers and pieces that a door needs. Gives zeros and nothing at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes, with zeros after the last."""
        found = self._data[self._at : self._at + count]
        self._at = min(len(self._data), self._at + count)
        return found.ljust(count, b"\0")

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def choice(self, among: Sequence[T]) -> T:
        return among[self.number() % len(among)]

    def piece(self) -> bytes:
        """Returns bytes of a length that two bytes before them tell."""
        length = min(self.number(2), self.left)
        return self.take(length)

    def rest(self) -> bytes:
        return self.take(self.left)


def piece(data: bytes) -> bytes:
    """Lays bytes out as `Given.piece` reads them."""
    return len(data).to_bytes(2, "little") + data


def read(path: Path) -> list[bytes]:
    """Reads inputs, which are bytes literals, a line each."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [literal_eval(line) for line in lines if line.startswith("b")]


def write(path: Path, inputs: Iterable[bytes]) -> None:
    """Writes inputs as `read` reads them."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{each!r}\n" for each in inputs))


def _memory() -> float:
    """Returns the most memory (MB) that the process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_descriptors() -> int:
    """Counts this process's open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))
