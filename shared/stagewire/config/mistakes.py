"""Reports every mistake of a configuration at once."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """Describes one mistake. `line` counts from 1; None when the mistake concerns the whole file."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.line is None else f"{self.path}:{self.line}: {self.message}"


class ConfigError(Exception):
    """Refuses a configuration. `mistakes` has every mistake, in the file's order.

    `str()` is one line per mistake. No message holds a key, nor 20 characters of one, so all of it may be logged.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))
