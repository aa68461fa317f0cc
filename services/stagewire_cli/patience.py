"""Who starts only to wait gives way to those that carry packets.

To load a program takes a tenth to a quarter of a second of a processor. Niceness gives it less of that in the long run, but
whoever is nice still keeps a packet's process waiting for 3 ms at a time; at idle priority it never does (sched(7)). On a
machine that is never idle it would never be done, though. So it is lent that priority by supervisord, which takes it back
after PATIENCE, and at once when another process of its group ends, as that may have been who was at work.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from stagewire.environment import Environment
from stagewire.ipc import slots

PATIENCE: Final = 1.0
"""s; supervisord looks once a second."""


class Patience:
    """Starts the spares of one interface."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._starting: dict[int, tuple[str, float]] = {}
        """The group of those that were made to wait, and since when, by pid."""

    def teach(self, groups: Mapping[str, Any]) -> None:
        """Has the processes of these groups of supervisord's, by name, start so."""
        for name, group in groups.items():
            for process in group.processes.values():
                process.spawn = self._patient(name, process.spawn)

    def _patient(self, group: str, spawn: Callable[[], int | None]) -> Callable[[], int | None]:
        def start() -> int | None:
            pid = spawn()
            if pid and self._is_spare(group):
                with suppress(OSError):
                    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
                    self._starting[pid] = group, time.monotonic()
            return pid

        return start

    def _is_spare(self, group: str) -> bool:
        """Whether all places are taken that one who starts now could find."""
        stage, run = group.removesuffix("-service"), self._environment.run
        places = slots.wanted_workers(run, self._environment.workers) if stage == "device" else 1
        with suppress(OSError):
            return sum(held == stage for held, _ in slots.held(run)) >= places
        return False

    def end(self, group: str | None = None) -> None:
        """Takes it back from who has had it for long, and from all of a group."""
        now = time.monotonic()
        for pid, (of, since) in list(self._starting.items()):
            if of != group and now - since < PATIENCE:
                continue
            del self._starting[pid]
            with suppress(OSError):  # it has ended
                if os.sched_getscheduler(pid) == os.SCHED_IDLE:
                    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
