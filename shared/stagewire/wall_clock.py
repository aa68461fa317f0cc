"""Tells the wall clock's time of a moment on the boot-time clock, so that ages stay true when the wall clock jumps."""

import time
from typing import Final

from stagewire.loop import boot_time

STEP_NS: Final = 10**9
"""ns by which the wall clock must leave the boot-time clock before earlier moments follow: a slow correction moves none."""

_offset_ns: list[int] = []


def unix_ns(at: float) -> int:
    """Returns the UNIX time (ns) of a moment (s since the boot), by the wall clock as it is now."""
    offset = time.time_ns() - int(boot_time() * 1e9)
    if not _offset_ns or abs(offset - _offset_ns[0]) >= STEP_NS:
        _offset_ns[:] = [offset]
    return int(at * 1e9) + _offset_ns[0]
