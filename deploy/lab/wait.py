"""Waiting: always for a condition, never for a while."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


slack = 1.0
"""What each wait is multiplied with, up to LONG. Tests set more: they wait only so as not to hang, and a busy machine is no
fault."""
LONG = 60.0
"""s; pytest-timeout ends a test without a word after 120."""


class NeverHappened(AssertionError):  # noqa: N818 - what did not happen is the message
    """A condition that was waited for did not come true in time."""


def until(condition: Callable[[], T], timeout: float, what: str, *, promptly: bool = False) -> T:
    """Polls `condition` until it is truthy and returns its value; after `timeout` s raises NeverHappened with `what`.

    `promptly`: the time is what is asked for, and has no slack.

    The polls begin 1 ms apart, for what is about to happen, and slow down to 20 ms, so that a long wait takes
    no CPU from the processes that it waits for.
    """
    if not promptly:
        timeout = max(timeout, min(timeout * slack, LONG))
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise NeverHappened(f"waited {timeout:g} s for {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return value


class Bell:
    """Wakes a thread that polls descriptors: registered beside them, it is readable once rung."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.rung = False

    def fileno(self) -> int:
        """The descriptor to poll; it stays readable once rung."""
        return self._descriptor

    def ring(self) -> None:
        """May be called from any thread, any number of times."""
        self.rung = True
        os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """To be called when no thread polls it any more."""
        os.close(self._descriptor)
