"""Describes one line of the attack suite."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """Describes one attack. `tests` names functions, each as `file::function` below tests/."""

    what: str
    must: str
    tests: tuple[str, ...] = ()
