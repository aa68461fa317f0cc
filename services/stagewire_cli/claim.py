"""Tells which process runs an interface in the foreground: it holds the lock on a file of the interface.

The lock is a record lock (fcntl(2)): the kernel names its holder, and frees it when the holder ends.
"""

import fcntl
import os
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.environment import Environment
from stagewire.linux import privileges

_FLOCK: Final = "@hhqqi4x"
"""struct flock: type, whence, start, length, pid."""
_FAILED: Final = b"failed\n"
_GOING: Final = b"going\n"
GOING_WITHIN: Final = 120.0
"""s that an ending holder gets: its hooks may take long."""
_POLL: Final = 0.02


class Claim:
    """Takes the lock for this process."""

    def __init__(self, environment: Environment) -> None:
        """Opens the file without the lock. Raises OSError."""
        self._path = _path(environment)
        privileges.make_folder(self._path.parent, None, 0o755)
        self._file = _open(self._path)

    def take(self) -> bool:
        """Takes the lock and says whether that worked; waits for a holder that is ending."""
        until = time.monotonic() + GOING_WITHIN
        while not self._try():
            if os.pread(self._file, len(_GOING), 0) != _GOING or time.monotonic() > until:
                return False
            time.sleep(_POLL)
        os.ftruncate(self._file, 0)
        return True

    def _try(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._file), self._path.stat()):
                return True
        except FileNotFoundError:
            pass
        except OSError:
            return False
        # The previous holder has deleted this file.
        os.close(self._file)
        self._file = _open(self._path)
        return self._try()

    def begin_to_end(self) -> None:
        """Makes the next `take` of another process wait for our end."""
        os.pwrite(self._file, _GOING, 0)

    def give_up(self, *, failed: bool) -> None:
        """Frees the lock; tells a waiting `stagewire down` whether a step failed."""
        if failed:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _FAILED, 0)
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


class Runner:
    """Represents another process, which runs an interface in the foreground."""

    def __init__(self, file: int, pid: int) -> None:
        self._file = file
        self._process = os.pidfd_open(pid)
        self.pid = pid

    def end(self) -> None:
        """Tells the process to take the interface down."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGTERM)

    def fileno(self) -> int:
        """Returns a descriptor that becomes readable when the process has ended."""
        return self._process

    def failed(self) -> bool:
        """Says whether the process reported a failed step."""
        return os.pread(self._file, len(_FAILED), 0) == _FAILED

    def close(self) -> None:
        os.close(self._process)
        os.close(self._file)


def runner(environment: Environment) -> Runner | None:
    """Finds the process that holds an interface's lock; None when this process or none does."""
    try:
        file = os.open(_path(environment), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    pid = _holder(file)
    with suppress(OSError):
        found = Runner(file, pid) if pid > 0 else None
        if found is not None and _holder(file) == pid:  # otherwise the pid may belong to another process by now
            return found
    os.close(file)
    return None


def _holder(file: int) -> int:
    """Returns the holder's pid: 0 for no holder, for this process, and for one of another pid namespace."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def _path(environment: Environment) -> Path:
    return environment.run.with_name(f"{environment.run.name}.lock")
