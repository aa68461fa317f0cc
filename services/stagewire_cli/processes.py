"""Finds all processes of an interface, even if its run folder was wiped.

Most are known by their locks on files of that folder (`process.holders`). A process that has only just been started holds
no lock, nor does a supervisord whose folder was wiped. Such a process is known by its program and by the run folder that
it was given, which must be the same folder as ours.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stagewire.environment import Environment, EnvironmentMistake
from stagewire.process import holders, slots
from stagewire.stages import STAGES

_PROGRAMS: Final = frozenset(f"{stage}-service" for stage in STAGES)
_SUPERVISORD: Final = "supervisord"
_KINDS: Final = (*STAGES, holders.SUPERVISORD, holders.KEEPER)
CONFIGURATION: Final = "supervisord.conf"
"""supervisord's configuration file, in the run folder."""
_OPTIONS: Final = ("--configuration=", "-c")


@dataclass(frozen=True, slots=True)
class Found:
    """Carries the pids of all processes of one interface, by their part."""

    supervisords: frozenset[int]
    services: frozenset[int]
    keepers: frozenset[int]

    def __bool__(self) -> bool:
        return bool(self.supervisords or self.services or self.keepers)


def find(environment: Environment) -> Found:
    """Looks for all processes of an interface. Reads all of /proc."""
    run = environment.run
    lost = holders.holding_deleted(run)
    kinds = {kind: {*holders.present(run, kind)} | lost.get(f"{holders.PRESENCE}{kind}", set()) for kind in _KINDS}
    at_work = {*slots.contenders(run)}.union(*(pids for name, pids in lost.items() if name.startswith(slots.PREFIX)))
    supervisords, services = kinds[holders.SUPERVISORD], at_work.union(*(kinds[stage] for stage in STAGES))
    for pid in all_pids():
        if _runs(pid, {_SUPERVISORD}) and _was_given(pid, run / CONFIGURATION):
            supervisords.add(pid)
        elif _runs(pid, _PROGRAMS) and _belongs(pid, environment):
            services.add(pid)
    return Found(*map(frozenset, (supervisords, services, kinds[holders.KEEPER])))


def supervisords(configuration: Path) -> list[int]:
    """Lists the supervisords, without zombies, that run by the configuration file of a run folder."""
    held = holders.present(configuration.parent, holders.SUPERVISORD)
    started = (pid for pid in all_pids() if _runs(pid, {_SUPERVISORD}) and _was_given(pid, configuration))
    return sorted({*held, *started})


def _was_given(pid: int, configuration: Path) -> bool:
    with suppress(OSError):
        here = Path(f"/proc/{pid}/cwd").readlink()
        named = {os.path.normpath(here / _without_option(word)) for word in _command(pid)}
        return str(configuration) in named and holders.sees(pid, configuration)
    return False


def _without_option(word: str) -> str:
    found = next((option for option in _OPTIONS if word.startswith(option)), "")
    return word.removeprefix(found)


def services(environment: Environment) -> list[int]:
    """Lists the services that are at work, wait as spares, or have only just been started."""
    return sorted(find(environment).services)


def _runs(pid: int, programs: "frozenset[str] | set[str]") -> bool:
    """Says whether a process of ours runs one of these programs in the same Python as we."""
    words = _command(pid)
    if len(words) < 2 or Path(words[1]).name not in programs or not holders.is_ours(pid):
        return False
    with suppress(OSError):
        return lives(pid) and Path(f"/proc/{pid}/exe").samefile("/proc/self/exe")
    return False


def _belongs(pid: int, environment: Environment) -> bool:
    try:
        run = Environment.read(variables(pid)).run
    except EnvironmentMistake:
        return False
    return run == environment.run and holders.sees(pid, run)


def variables(pid: int) -> dict[str, str]:
    """Returns the environment that a process was started with; nothing if it is gone or forbidden to us."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
        return {name: value for name, _, value in (word.partition("=") for word in text.split("\0")) if name}
    return {}


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def state(pid: int) -> str:
    """Returns the kernel's letter for a process's state; Z when the process has ended."""
    return holders.status(pid).get("State", "Z")[0]


def lives(pid: int) -> bool:
    """Says whether a process exists and is no zombie."""
    return state(pid) != "Z"


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return []


def all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
