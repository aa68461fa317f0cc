"""Lets a killed process's descriptors go before its memory.

The kernel takes a process's memory apart, page by page, and only then closes what it had open: for 2 ms, or 5 with all
processors busy, its lock is held and its pipes take packets, which are lost. Both are done by the last thread that leaves.
So there are threads that share the memory but no descriptors, one on each processor, at idle priority: they leave last,
nearly always, and by then the others have closed everything. Where they don't, it is as it was without them.

What is mapped is held by the memory as well: a file that is locked must not be the one that is mapped (`ipc.slots`).

Source: do_exit in the kernel's kernel/exit.c, close_range(2), sched(7).
"""

import _thread
import ctypes
import os
import signal
from contextlib import suppress
from functools import partial
from typing import Final

MAX_THREADS: Final = 16
_STACK: Final = 64 * 1024
_ALL: Final = ctypes.c_uint(0xFFFFFFFF)
_CLOSE_RANGE_UNSHARE: Final = 2
_libc = ctypes.CDLL(None)
_waiting: list[int] = []


def appoint() -> None:
    """Starts the threads, which only wait. To be called by the main thread."""
    if not hasattr(_libc, "close_range"):  # glibc 2.34, Linux 5.9
        return
    before = _thread.stack_size(_STACK)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # theirs too: they could tell nobody
    try:
        for processor in sorted(os.sched_getaffinity(0))[:MAX_THREADS]:
            with suppress(RuntimeError):  # as many threads as there may be
                _thread.start_new_thread(partial(_wait, processor), ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _thread.stack_size(before)


def dismiss() -> None:
    """A process that ends by itself has closed everything already, and they shall not hold its end up."""
    for thread in _waiting:
        with suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    _waiting.clear()


def _wait(processor: int) -> None:
    _waiting.append(_thread.get_native_id())
    with suppress(OSError):
        os.sched_setaffinity(0, {processor})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if _libc.close_range(0, _ALL, _CLOSE_RANGE_UNSHARE) == 0:
        while True:
            _libc.pause()
