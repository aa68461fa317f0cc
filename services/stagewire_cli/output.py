"""Makes programs in the foreground write straight to supervisord's own standard output.

supervisord would read each line from a pipe and write it to a file that it opens by name. But a socket, such as the
journal's connection, cannot be opened by name. And programs that outlive supervisord would write into a pipe without reader.
"""

import os
import sys
from contextlib import suppress
from types import MethodType
from typing import Any, Final, TextIO

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERRORS: Final = 2


def open_standard() -> None:
    """Opens /dev/null for each closed standard descriptor, so that no file of ours takes its number."""
    for descriptor in (_INPUT, _OUTPUT, _ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is mostly this one
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
    # Python made no stream at its start for a closed descriptor.
    sys.stdout = sys.stdout or _stream(_OUTPUT)
    sys.stderr = sys.stderr or _stream(_ERRORS)


def _stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", closefd=False)


def lend(process: Any) -> None:
    """Makes a process of supervisord's write straight to our standard output if it has no log file."""
    if process.config.stdout_logfile is None:
        process._prepare_child_fds = MethodType(_prepare, process)  # noqa: SLF001 - supervisord has no other way


def _prepare(process: Any) -> None:
    """Prepares descriptors in the new process as supervisord does, except its output."""
    options = process.config.options
    options.dup2(process.pipes["child_stdin"], _INPUT)
    options.dup2(_OUTPUT, _ERRORS)
    for descriptor in range(_ERRORS + 1, options.minfds):
        with suppress(OSError):
            options.close_fd(descriptor)
