"""Changes the peers of a configuration file: the only place where root writes what key-service worked out.

The file is locked meanwhile, replaced in one step, and put back if the change is refused.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stagewire import config
from stagewire.config import guard
from stagewire.config.loader import MAX_SIZE
from stagewire.whole_files import WholeFile, sync_folder
from stagewire_cli.failures import Failed

PATIENCE: Final = 60.0
"""s to wait for another command that changes the file."""
_POLL: Final = 0.005
_SAFELY: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW


class PeersFile:
    """Holds a locked file. `text` is what stands in it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._target = path.resolve()
        self._found = os.fstat(descriptor)
        self.text = config.load_text(path)
        self._lock = -1
        """A descriptor of the new file, which is locked as well."""
        self._old: Path | None = None
        """The name of the old file, as long as it may come back."""

    def write(self, text: str) -> None:
        """Replaces the file's text by a text that differs in peers alone. Raises Failed, and then nothing is changed."""
        if (what := guard.beyond_peers(self.text, text)) is not None:
            raise Failed(f"key-service wants to change {what} in {self.path}; nothing is written")
        try:
            config.parse_text(text, self.path)
        except config.ConfigError as error:
            what = f"key-service wants to write a file with a mistake: {error.mistakes[0]}"
            raise Failed(f"{what}; nothing is written") from None
        data = text.encode("utf-8", "surrogateescape")
        if len(data) > MAX_SIZE:
            raise Failed(f"{self.path} would be larger than {MAX_SIZE >> 20} MiB; nothing is changed")
        try:
            self._replace(data)
        except OSError as error:
            raise Failed(f"{self._target.parent}: {error.strerror}; nothing is changed") from None

    def _replace(self, data: bytes) -> None:
        with WholeFile(self._target) as new:
            os.fchown(new.descriptor, self._found.st_uid, self._found.st_gid)
            os.fchmod(new.descriptor, stat.S_IMODE(self._found.st_mode))
            self.lock_also(new.descriptor)
            new.write(data)
            old = _former(self._target)
            os.fsync(new.descriptor)  # the old file has no second name for longer than it needs
            os.link(self._target, old)
            if not os.path.samestat(old.stat(), self._found):
                old.unlink()
                raise Failed(f"{self.path} was replaced by another program just now: try again; nothing is changed")
            self._old = old
            new.replace()
            self.text = data.decode("utf-8", "surrogateescape")

    def lock_also(self, descriptor: int) -> None:
        """Locks the file that will take this one's place: the next command that waits for the lock finds it there."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._lock = os.dup(descriptor)

    def put_back(self) -> None:
        """Puts the old file back. Raises Failed."""
        if self._old is not None:
            try:
                self._old.replace(self._target)
                self._old = None
                sync_folder(self._target)
            except OSError as error:
                raise Failed(
                    f"{self._target}: the change is refused but stays in the file ({error.strerror})"
                ) from None

    def close(self) -> None:
        """Removes the old file for good, and ends the lock."""
        if self._old is not None:
            with suppress(OSError):
                self._old.unlink()
        if self._lock >= 0:
            os.close(self._lock)


@contextmanager
def locked(path: Path, patience: float | None = None) -> Iterator[PeersFile]:
    """Keeps other commands from the file meanwhile. Raises ConfigError for a file that can't be read, and Failed."""
    config.load_text(path)
    descriptor = _lock(path, PATIENCE if patience is None else patience)
    try:
        with suppress(OSError):
            _former(path.resolve()).unlink()
        file = PeersFile(path, descriptor)
        try:
            yield file
        finally:
            file.close()
    finally:
        os.close(descriptor)


def clear_former(path: Path) -> None:
    """Removes the former file that a killed command has left: it has keys that were removed since.

    Leaves it to a command that is at work.
    """
    with suppress(OSError, Failed):
        if os.path.lexists(former := _former(path.resolve())):
            descriptor = _lock(path, 2 * _POLL)
            try:
                former.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _former(target: Path) -> Path:
    return target.with_name(f".{target.name}.before")


def _lock(path: Path, patience: float) -> int:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            descriptor = os.open(path.resolve(), _SAFELY)
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}; nothing is changed") from None
        with suppress(OSError):  # another command has the lock, or has replaced the file
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)
        time.sleep(_POLL)
    mend = "wait for that or end it; nothing is changed"
    raise Failed(f"{path}: another command has been changing it for {patience:.0f} s: {mend}")
