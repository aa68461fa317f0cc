"""Starts the `stagewire` command so that ^C ends it without a traceback, also while its modules load; ends it at once."""

import atexit
import os
import signal
import sys
import threading


def main() -> None:
    """Loads the commands, runs the one on the command line, and ends the process."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # a parent may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stagewire_cli.__main__ import main as command

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        command()
    except SystemExit as ended:
        _end(ended.code)
        raise


def _end(status: object) -> None:
    """Ends the process without Python's tidying of memory, which an operator would wait for.

    Returns where something else is left to do: a thread works on, or an output takes no more.
    """
    if threading.active_count() > 1 or not isinstance(status, int | None):
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # its descriptor was closed at the start
                stream.flush()
    except (OSError, ValueError):
        return
    atexit._run_exitfuncs()  # noqa: SLF001 - Python calls it at this point
    os._exit(status or 0)
