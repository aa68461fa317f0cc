"""Writes files that are there as a whole or not at all, also when this process is killed or the disk is full."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

Lock = Callable[[int], None] | None
"""Locks the descriptor of a new file, which does not have its name yet."""
_NO_UNNAMED: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
"""Answers of a file system, such as FAT or NFS, that has no files without a name."""
_DESCRIPTORS: Final = Path("/proc/self/fd")


class WholeFile:
    """Holds a new file for its owner alone, which has no name before `appear` or `replace`. The kernel removes it otherwise.

    A file system without such files gets a hidden name, which `close` removes.
    """

    def __init__(self, path: Path) -> None:
        """Opens a new file in the folder of `path`. Raises OSError."""
        self.path = path
        self._hidden: Path | None = None
        self.descriptor = self._opened()

    def _opened(self) -> int:
        if _DESCRIPTORS.is_dir():
            try:
                return os.open(self.path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
        self._hidden = self._some_name()
        return os.open(self._hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def _some_name(self) -> Path:
        return self.path.with_name(f".stagewire-{os.urandom(6).hex()}")

    def write(self, data: bytes) -> None:
        """Appends to the content. Raises OSError."""
        rest = memoryview(data)
        while rest:  # on a disk that is nearly full, the second write raises
            rest = rest[os.write(self.descriptor, rest) :]

    def appear(self) -> None:
        """Names the file, once its content is on the disk. Raises FileExistsError for a name in use, and OSError."""
        os.fsync(self.descriptor)
        if self._hidden is None:
            self._link(self.path)
        elif os.path.lexists(self.path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        else:
            self._hidden.rename(self.path)
            self._hidden = None
        sync_folder(self.path)

    def replace(self, lock: Lock = None) -> None:
        """Puts the file in the place of any other of its name, once the content is on the disk. Raises OSError."""
        os.fsync(self.descriptor)
        if lock is not None:
            lock(self.descriptor)
        if self._hidden is None:
            self._hidden = self._some_name()
            self._link(self._hidden)
        self._hidden.replace(self.path)
        self._hidden = None
        sync_folder(self.path)

    def _link(self, name: Path) -> None:
        # Only with a folder does Python call the kernel's linkat, which can follow the link of a descriptor.
        os.link(_DESCRIPTORS / str(self.descriptor), name, src_dir_fd=self.descriptor, follow_symlinks=True)

    def close(self) -> None:
        """Closes the file, and removes a file that has not appeared."""
        os.close(self.descriptor)
        if self._hidden is not None:
            with suppress(OSError):
                self._hidden.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def sync_folder(path: Path) -> None:
    """Has a file's new name outlive a power cut, as far as the file system does that."""
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
