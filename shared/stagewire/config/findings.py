"""Collects a file's mistakes, which keep it from use, and warnings, which don't."""

from typing import Final

from stagewire.config.mistakes import Mistake

MAX_MISTAKES: Final = 1000
"""Reading stops here: a large file that is no configuration must cost neither time nor memory."""
MAX_WARNINGS: Final = 1000


class TooManyMistakes(Exception):  # noqa: N818 - `parse` catches it
    """Ends a reading."""


class Findings:
    """Collects the findings of one file. `strict` turns every finding into a mistake."""

    def __init__(self, path: str, *, strict: bool) -> None:
        self.path, self.strict = path, strict
        self._mistakes: list[Mistake] = []
        self._warnings: list[Mistake] = []
        self._unlisted = 0

    def mistake(self, line: int | None, message: str) -> None:
        """Adds a mistake. Raises TooManyMistakes."""
        self._mistakes.append(Mistake(self.path, line, message))
        if len(self._mistakes) == MAX_MISTAKES:
            self._mistakes.append(Mistake(self.path, line, "too many mistakes, nothing more was checked"))
            raise TooManyMistakes

    def warning(self, line: int | None, message: str) -> None:
        """Adds a warning for the file's author about a line that `wg` or wg-quick takes."""
        if self.strict:
            self.mistake(line, message)
        elif len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(Mistake(self.path, line, message))
        else:
            self._unlisted += 1

    def untidy(self, line: int | None, message: str) -> None:
        """Adds a mistake when strict, and nothing otherwise."""
        if self.strict:
            self.mistake(line, message)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Returns all mistakes in the file's order."""
        return tuple(sorted(self._mistakes, key=_line))

    @property
    def warnings(self) -> tuple[Mistake, ...]:
        """Returns the warnings in the file's order, at most MAX_WARNINGS and a count of the others."""
        more = Mistake(self.path, None, f"{self._unlisted} more warnings are not listed")
        return (*sorted(self._warnings, key=_line), *([more] if self._unlisted else []))


def _line(mistake: Mistake) -> int:
    return mistake.line or 0
