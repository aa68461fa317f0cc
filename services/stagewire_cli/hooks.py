"""Runs the hooks of a configuration file (PreUp, PostUp, PreDown, PostDown) as wg-quick(8) does."""

import shutil
import subprocess
from collections.abc import Callable, Iterable
from typing import Final

from stagewire_cli import interruption

_SHOWN: Final = 200
"""Characters of a command in an error."""


def run_until_one_fails(kind: str, commands: Iterable[str], interface: str) -> str:
    """Runs the commands in order until one fails; returns which and how, or an empty text."""
    for command in commands:
        if how := _run(command, interface):
            return _failure(kind, command, how)
    return ""


def run_all(kind: str, commands: Iterable[str], interface: str, complain: Callable[[str], None]) -> None:
    """Runs all commands in order; complains of each that fails."""
    for command in commands:
        if how := _run(command, interface):
            complain(_failure(kind, command, how))


def _run(command: str, interface: str) -> str:
    """Runs a command to its end; returns how it failed, or an empty text."""
    shell = shutil.which("bash") or "/bin/sh"
    # The shell gets the file's own bytes, in any locale.
    line = command.replace("%i", interface).encode("utf-8", "surrogateescape")
    process = None
    try:
        with interruption.held():
            process = subprocess.Popen([shell.encode(), b"-c", line])
        status = process.wait()
    except OSError as error:  # such as a line that is longer than Linux takes
        return f"did not start ({error.strerror})"
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        raise
    if status < 0:
        return f"was killed by signal {-status}"
    return f"ended with status {status}" if status else ""


def _failure(kind: str, command: str, how: str) -> str:
    shown = command if len(command) <= _SHOWN else f"{command[:_SHOWN]}…"
    return f"{kind} {how}: {shown}"
