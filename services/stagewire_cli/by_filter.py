"""Counts the processes that the kernel's filter has killed. supervisord itself keeps no word of how a process ended."""

import os
import signal
from collections import Counter
from typing import Any


class KilledByFilter:
    """Listens to a supervisord that waits for its children. `groups` counts those that SIGSYS ended, by their group."""

    def __init__(self, options: Any) -> None:
        """Takes supervisord's options, which wait for children and remember the name of each."""
        self.groups: Counter[str] = Counter()
        self._options, self._wait = options, options.waitpid
        options.waitpid = self._waitpid

    def _waitpid(self) -> tuple[int | None, int | None]:
        pid, status = self._wait()
        if pid and was_the_end(status):
            process = self._options.pidhistory.get(pid)
            if process is not None:
                self.groups[process.group.config.name] += 1
        return pid, status


def was_the_end(status: int) -> bool:
    """Tells whether a process with this status was killed by the filter."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


def warnings(groups: dict[str, int]) -> list[str]:
    """Returns what `stagewire status` says of the counts."""
    return [
        f"the kernel's filter killed {group} {f'{count} times' if count > 1 else 'once'} for a system call that its "
        "sandbox doesn't list: please report this, with your versions of Linux and Python"
        for group, count in sorted(groups.items())
    ]
