"""Makes a forked process what execve(2) would have made it, and runs a program's `main` in it.

What Python's own hooks after a fork do isn't repeated here: locks, `random`, threads. OpenSSL notices a fork by itself.
Each page that this process writes to becomes its own, and Python writes to each object that it uses. So this is short.
"""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn, TextIO

from stagewire.linux import command_line

_STREAMS: Final = 3
_HANDLED: Final = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2)
"""Signals that supervisord has handlers for, beside SIGINT."""
_MOST_DESCRIPTORS: Final = 0x7FFFFFFF
_BY_INTERRUPT: Final = 130
"""Exit status of a program that SIGINT ended."""
_FAILED: Final = 1
_kept: list[Any] = []
"""Streams of the parent: their ends would close our descriptors, and write what the parent has yet to write."""


def become(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Leaves nothing of the parent: descriptors, signal handlers, streams, variables, name. Raises OSError.

    `words` are the interpreter, a script and its arguments. After a failure execve(2) is still possible.
    """
    gc.freeze()  # no object of the parent may end here: it could close a descriptor of ours
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.closerange(_STREAMS, _MOST_DESCRIPTORS)
    command_line.show(words, variables)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    atexit._clear()  # noqa: SLF001 - as multiprocessing does in its forks
    _kept.extend((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lasts as long as the process
    sys.stdout, sys.stderr = _writer(1, "strict"), _writer(2, "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc, assignment]
    sys.argv[:] = words[1:]


def _writer(descriptor: int, errors: str) -> TextIO:
    return open(descriptor, "w", buffering=1, errors=errors, closefd=False)


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a program, and ends the process as an interpreter would."""
    status = _FAILED
    try:
        status = _status_of(main)
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does in its forks
        atexit._run_exitfuncs()  # noqa: SLF001
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
    finally:
        os._exit(status)


def _status_of(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        return _BY_INTERRUPT
    except BaseException:  # noqa: BLE001 - as an interpreter does
        sys.excepthook(*sys.exc_info())
    return _FAILED
