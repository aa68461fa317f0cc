"""Keeps the wanted number of workers in key-service's folder, as long as the run folder exists."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.limits import MAX_WORKERS

_MOST: Final = 256
"""Bytes."""


def wanted(run: Path, configured: int) -> int:
    """Returns the number that key-service was told last; `configured` if that has changed since."""
    return _told(run, configured)[0]


def earlier(run: Path, configured: int) -> tuple[int, ...]:
    """Returns the numbers before, by which peers may still be at home."""
    return _told(run, configured)[1]


def remember(run: Path, count: int, configured: int, before: Iterable[int] = ()) -> None:
    """Stores the number that key-service was told, the configured number of that time, and those before. Raises OSError."""
    fresh = _file(run).with_suffix(".new")
    files.clear(fresh)
    fresh.write_text(f"{count} {configured}\n{' '.join(map(str, before))}\n")
    files.put(fresh, _file(run))


def _told(run: Path, configured: int) -> tuple[int, tuple[int, ...]]:
    try:
        told, _, rest = files.read(_file(run), _MOST).partition(b"\n")
        count, told_upon = map(int, told.split())
        before = tuple(map(int, rest.split()))
    except (OSError, ValueError):
        return configured, ()
    if told_upon != configured or not all(1 <= each <= MAX_WORKERS for each in (count, *before)):
        return configured, ()
    return count, before


def _file(run: Path) -> Path:
    return run / "key" / "workers"
