"""Lets a test's own process speak at a pipe: what admits anybody of its uid, and tells whom it refused."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagewire.linux import uids
from stagewire.linux.peer_credentials import Credentials
from stagewire.linux.uids import Place
from stagewire.pipe.names import Pipe
from stagewire.pipe.speakers import Admission


def as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all stages share this process's uid, as in a container that lacks uids."""
    monkeypatch.setattr(uids, "_lacking", lambda: "uids are lacking")
    monkeypatch.setattr(uids, "_block", None)  # a stage in this process sets it; it is put back afterwards


def admission(
    pipe: Pipe,
    each: int = 1,
    *,
    contest: Callable[[Place, int], bool | None] = lambda _place, _pid: None,
    refused: Callable[[Pipe, Credentials], None] = lambda _pipe, _theirs: None,
) -> Admission:
    """Admits root and the pipe's speakers."""
    return Admission(pipe, each=each, contest=contest, refused=refused)


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Lets this process, which is root, be another user for a while: the kernel notes that user for what it connects."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def connect_as(uid: int, path: Path, kind: int = socket.SOCK_STREAM, gid: int | None = None) -> socket.socket:
    """Connects as another user of the interface's group; only root can."""
    line = socket.socket(socket.AF_UNIX, kind)
    try:
        with acting_as(uid, uids.group() if gid is None else gid):
            line.connect(str(path))
    except OSError:
        line.close()
        raise
    return line
