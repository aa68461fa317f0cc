"""Lets one command, or the keeper, start or end an interface at a time.

The turn is a lock on a file beside the run folder. The file exists only during a turn.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stagewire.environment import Environment
from stagewire_cli.failures import Failed

PATIENCE: Final = 60.0
"""s; longer than `bring_up.READY_WITHIN`, because hooks may take long."""
_POLL: Final = 0.005


@contextmanager
def take(environment: Environment, *, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Waits for the turn and keeps it during the block. Yields False without a turn once `unless` holds. Raises Failed."""
    path = environment.run.with_name(f"{environment.interface}.turn")
    try:
        file = _wait(path, unless)
    except OSError as error:
        raise Failed(f"{error.filename or path}: {error.strerror}") from None
    try:
        yield file is not None
    finally:
        if file is not None:
            with suppress(OSError):
                if os.path.samestat(path.stat(), os.fstat(file)):
                    path.unlink()
            os.close(file)


def _wait(path: Path, unless: Callable[[], bool]) -> int | None:
    before = os.umask(0o022)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    until = time.monotonic() + PATIENCE
    while not unless():
        file = _lock(path)
        if file is not None:
            return file
        if time.monotonic() > until:
            other = f"another command has been starting or ending it for {PATIENCE:.0f} s"
            raise Failed(f"{other}; wait for that or end it (its lock is {path})")
        time.sleep(_POLL)
    return None


def _lock(path: Path) -> int | None:
    """Returns a descriptor of the locked file; None when another process has the turn. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.stat(), os.fstat(file)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass  # another process has the turn, or ended it and removed the file
    os.close(file)
    return None
