"""Waits always for a condition, never for a fixed time."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


slack = 1.0
"""Factor of each wait, up to LONG. Tests raise it: they wait only so as not to hang, and a busy machine is no fault."""
LONGEST_PAUSE = 0.05
"""s between two looks: a look may ask several processes, which others then do without."""
MOST_BETWEEN = 0.5
"""s between two looks that take long."""
LONG = 60.0
"""s; pytest-timeout ends a test without explanation soon after."""


class NeverHappened(AssertionError):  # noqa: N818 - what did not happen is the message
    """Says that an awaited condition did not come true in time."""


def until(condition: Callable[[], T], timeout: float, what: str, *, promptly: bool = False) -> T:
    """Polls `condition` until it is truthy and returns its value. Raises NeverHappened with `what` after `timeout` s.

    `promptly` measures the time itself, without slack.

    The pauses grow: a condition that is about to come true is seen soon, and a long wait takes no CPU from others. A look
    that runs a command costs more than such a pause, so the next one waits as long as it took.
    """
    if not promptly:
        timeout = max(timeout, min(timeout * slack, LONG))
    deadline = time.monotonic() + timeout
    pause, looked = 0.001, time.monotonic()
    while not (value := condition()):
        now = time.monotonic()
        if now >= deadline:
            raise NeverHappened(f"waited {timeout:g} s for {what}")
        time.sleep(pause if promptly else max(pause, min(now - looked, MOST_BETWEEN)))
        looked = time.monotonic()
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return value


class Bell:
    """Wakes a thread that polls descriptors: registered beside them, it is readable once rung."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.rung = False

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        """Wakes the poller. Any thread may call it, any number of times."""
        self.rung = True
        os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """Closes the descriptor. No thread may poll it any more."""
        os.close(self._descriptor)
