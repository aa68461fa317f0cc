"""Runs `stagewire` for tests of what a command does with files. `test_stagewire_cli` starts the program itself."""

import os
import subprocess
from pathlib import Path

from lab import loaded
from lab.stagewire import executable

LONG = 300
"""s that a command may take: these tests give way to those that measure."""


def stagewire(
    *arguments: str | Path,
    input: str = "",  # noqa: A002 - as in subprocess.run
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **(env or {})}
    assert loaded.suits(variables)
    return loaded.run((executable("stagewire"), *arguments), variables, LONG, given=input)


def folders(folder: Path) -> dict[str, str]:
    return {f"STAGEWIRE_{kind.upper()}_DIR": str(folder / kind) for kind in ("run", "state", "log")}
