"""Closes a killed process's descriptors before the kernel frees its memory.

The kernel takes a killed process's memory apart, page by page, and only then closes its descriptors. Meanwhile its lock is
held and its pipes take packets, which are lost. The last thread to leave does both. So this module starts threads that
share the memory but no descriptors, one on each processor, at idle priority. They nearly always leave last, and by then
the other threads have closed everything. Otherwise behaviour is unchanged.

The memory holds every mapped file as well, so a locked file must not be the mapped file (`process.slots`).

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
    """Starts the threads, which only wait. Only the main thread may call it."""
    if not hasattr(_libc, "close_range"):  # glibc 2.34, Linux 5.9
        return
    before = _thread.stack_size(_STACK)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the threads inherit it and take none
    try:
        for processor in sorted(os.sched_getaffinity(0))[:MAX_THREADS]:
            with suppress(RuntimeError):  # no more threads are allowed
                _thread.start_new_thread(partial(_wait, processor), ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _thread.stack_size(before)


def dismiss() -> None:
    """Gives the threads normal priority, so that they do not delay a process that ends by itself."""
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
