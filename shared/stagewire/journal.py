"""Connects each program to systemd's journal under its own name, where standard output leads to the journal.

systemd gives a unit one connection, and the journal ascribes all of its lines to the unit's first program. systemd.exec(5)
describes `JOURNAL_STREAM`, and sd-daemon(3) the priority before each line. sd_journal_stream_fd(3) describes the lines that
open a connection.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

SOCKET: Final = "/run/systemd/journal/stdout"
VARIABLE: Final = "JOURNAL_STREAM"
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}


def is_behind(descriptor: int, variables: Mapping[str, str]) -> bool:
    """Tells whether a descriptor is the connection that `JOURNAL_STREAM` names."""
    with suppress(OSError):
        return variables.get(VARIABLE) == named(descriptor)
    return False


def named(descriptor: int) -> str:
    """Returns a connection's name in `JOURNAL_STREAM`."""
    found = os.fstat(descriptor)
    return f"{found.st_dev}:{found.st_ino}"


def connect(program: str, path: str = SOCKET) -> int | None:
    """Opens a connection for lines of `program`, each with a priority before it; None if the journal is away."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect(path)
        # Name, unit (empty: the journal asks our control group), priority, whether lines have one, three times no copy.
        line.sendall(f"{program}\n\n{PRIORITIES['info']}\n1\n0\n0\n0\n".encode())
    except OSError:
        line.close()
        return None
    return line.detach()


def take_over(program: str, descriptors: tuple[int, ...] = (1, 2)) -> bool:
    """Replaces descriptors that lead to the journal by this program's own connection. Returns False if none does."""
    ours = [each for each in descriptors if is_behind(each, os.environ)]
    made = connect(program) if ours else None
    if made is None:
        return False
    for each in ours:
        os.dup2(made, each)
    os.environ[VARIABLE] = named(made)
    os.close(made)
    return True
