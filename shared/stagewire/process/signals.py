"""Signals a process, but not another process that has got its pid, and waits for its end.

`opened` and `send` open a descriptor first (pidfd_open(2)). Then `still` checks that the pid is still the right process's.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable


def opened(pid: int, still: Callable[[int], bool]) -> int | None:
    """Returns a descriptor of a process, if `still` confirms the pid; None otherwise."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    if still(pid):
        return process
    os.close(process)
    return None


def send(pid: int, number: int, still: Callable[[int], bool]) -> bool:
    """Sends a signal if `still` confirms the pid. Returns whether it was sent. Raises PermissionError."""
    process = opened(pid, still)
    if process is None:
        return False
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(process)
    return True


def wait(processes: Iterable[int], seconds: float) -> bool:
    """Waits until processes, given by descriptors, have ended. Returns False if some have not in time."""
    poll, left = select.poll(), set(processes)
    for each in left:
        poll.register(each, select.POLLIN)
    until = time.monotonic() + seconds
    while left:
        rest = max(0.0, until - time.monotonic())
        ended = poll.poll(rest * 1000)
        for each, _ in ended:
            poll.unregister(each)
            left.discard(each)
        if not ended and not rest:
            return False
    return True
