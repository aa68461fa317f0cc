"""Gives programs that start a low priority while others pass packets, and the usual one while a place is empty."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from stagewire.linux import privileges
from stagewire_cli import processes

NICE: Final = "nice -n 10 "
"""Prefix of the commands in our configuration."""
READY_WITHIN: Final = 3.0
"""s from its start until a process counts as one that can take a place at once."""


class Priorities:
    """Sets the commands of supervisord's programs. `wanted` tells how many places a group has."""

    def __init__(self, supervisord: Any, wanted: Callable[[str], int]) -> None:
        self._groups = supervisord.process_groups
        self._wanted = wanted
        self._nice = False
        self.in_haste = False
        """Whether some programs start with the usual priority, because no process can take their places at once."""

    def be_nice(self, nice: bool) -> None:
        """Makes programs that start from now on leave the processors to others, or not."""
        self._nice, self.in_haste = nice, False
        for name in self._groups:
            for process in self._processes(name):
                _set(process, nice=nice)
        if nice:
            privileges.share_processors(privileges.NICE_SESSION)

    def on_exit(self, event: Any) -> None:
        """Hurries as many programs of a group as it has places that no process can take at once."""
        ended = event.process
        others = [each for each in self._processes(ended.group.config.name) if each is not ended]
        late = [ended, *(each for each in others if not _is_ready(each))]
        lacking = self._wanted(ended.group.config.name) - (len(others) + 1 - len(late))
        # A process that starts already comes before the one that has just ended.
        late.sort(key=lambda each: (each is ended or not each.pid, each.config.name))
        for process in late[: max(0, lacking)] if self._nice else ():
            self.in_haste = True
            _set(process, nice=False)
            privileges.share_processors(0)
            if process.pid and process is not ended:
                with suppress(OSError):  # it has ended, and nobody has waited for it yet
                    os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0))

    def _processes(self, group: str) -> list[Any]:
        return list(self._groups[group].processes.values())


def _set(process: Any, *, nice: bool) -> None:
    if privileges.may_raise_priority():
        process.config.command = NICE * nice + process.config.command.removeprefix(NICE)


def _is_ready(process: Any) -> bool:
    return bool(process.pid) and process.laststart < time.time() - READY_WITHIN and processes.lives(process.pid)
