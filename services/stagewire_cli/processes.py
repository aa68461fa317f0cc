"""The processes of an interface, found without anything that its run folder should hold: that may have been wiped.

A supervisord is known by its command line, which names the interface's `supervisord.conf`; a service by the slot that it
has open, or, while it is still starting, by its program's name and its environment.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.environment import Environment, EnvironmentMistake
from stagewire.ipc import slots

_PROGRAMS: Final = frozenset(f"{stage}-service" for stage in ("tun", "device", "conn", "key", "status"))
_SUPERVISORD: Final = "supervisord"
_OPTIONS: Final = ("--configuration=", "-c")


def supervisords(configuration: Path) -> list[int]:
    """The pids of those that were started with this configuration file; a zombie is none."""
    return [pid for pid in all_pids() if is_supervisord(pid, configuration) and _counts(pid)]


def is_supervisord(pid: int, configuration: Path | None = None) -> bool:
    """Whether a process is a supervisord (with this configuration)."""
    words = _command(pid)
    if not any(Path(word).name == _SUPERVISORD for word in words[:3]):
        return False
    if configuration is None:
        return True
    with suppress(OSError):
        here = Path(f"/proc/{pid}/cwd").readlink()
        return str(configuration) in {os.path.normpath(here / _without_option(word)) for word in words}
    return False


def _without_option(word: str) -> str:
    found = next((option for option in _OPTIONS if word.startswith(option)), "")
    return word.removeprefix(found)


def services(environment: Environment) -> list[int]:
    """The pids of all that are at work, wait, or have been started and will."""
    starting = {pid for pid in all_pids() if _is_program(pid) and _counts(pid) and _belongs(pid, environment)}
    return sorted(starting | {*slots.contenders(environment.run)})


def _is_program(pid: int) -> bool:
    return any(Path(word).name in _PROGRAMS for word in _command(pid)[:3])


def _belongs(pid: int, environment: Environment) -> bool:
    try:
        return Environment.read(variables(pid)).run == environment.run
    except EnvironmentMistake:
        return False


def variables(pid: int) -> dict[str, str]:
    """The environment that a process was started with; nothing when it is gone or may not be looked at."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
        return {name: value for name, _, value in (word.partition("=") for word in text.split("\0")) if name}
    return {}


def parent(pid: int) -> int:
    """The pid of a process's parent; 0 when it is gone."""
    return int((_stat(pid) or ["", "0"])[1])


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    # A zombie of a parent that doesn't wait has ended all the same.
    return (_stat(pid) or ["Z"])[0] != "Z"


def _stat(pid: int) -> list[str]:
    """/proc/<pid>/stat from its third field, the state, on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return []


def all_pids() -> Iterator[int]:
    """Of every process there is."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _counts(pid: int) -> bool:
    """Whether it lives, and on this machine or in this container, not in one that we only look into."""
    return lives(pid) and _pid_namespace(pid) == _pid_namespace(os.getpid())


def _pid_namespace(pid: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    return ""
