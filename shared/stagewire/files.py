"""Opens and removes files in folders that a stage can write, where another process may have put anything under our names.

A pipe without a writer would stop us, a link would lead us elsewhere, and a huge file would take our memory. So a file
counts only if it is regular, has one name and the right owner, and is small enough. Only the last part of a path may be
untrusted: every folder above belongs to root.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_SAFELY: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_ZEROS: Final = bytes(1 << 20)
_PIECE: Final = 1 << 16
"""Bytes of a file to read at once: more than Python keeps in blocks of its own, so the C library overwrites the content.
It overwrites each buffer of key-service, however little is read. So the buffer is no larger."""
_MOST_ROUNDS: Final = 100_000
"""Levels of folders that are removed: a living process could make new ones without end."""


class Suspicious(OSError):  # noqa: N818 - a state of the host, told to the operator
    """Reports a file that is no file of ours. Its text names the file and says what to do."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}; remove it")
        self.why = why


def opened(path: Path, most: int, flags: int = os.O_RDONLY) -> int:
    """Opens a regular file of `most` bytes at most, which belongs to root, to us or to its folder's owner.

    Raises FileNotFoundError for a missing file, Suspicious for any other kind of thing, and other OSErrors.
    """
    try:
        descriptor = os.open(path, flags | _SAFELY, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not _is_regular(path):
            raise Suspicious(path, "is no regular file") from None
        raise error from None
    try:
        _check(path, os.fstat(descriptor), most)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return True  # the error at the opening tells more


def _check(path: Path, found: os.stat_result, most: int) -> None:
    _check_kind(path, found)
    if found.st_uid not in {0, os.geteuid(), path.parent.stat().st_uid}:
        raise Suspicious(path, f"belongs to user {found.st_uid}")
    if found.st_size > most:
        raise Suspicious(path, f"has more than {most} bytes")


def _check_kind(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Suspicious(path, "is no regular file")
    if found.st_nlink > 1:  # another name may be in another's folder; none is left of a file that was just replaced
        raise Suspicious(path, "has another name elsewhere")


def read(path: Path, most: int) -> bytes:
    """Reads a file that `opened` accepts, and no more than `most` bytes of it. Raises as `opened` does."""
    descriptor = opened(path, most)
    try:
        return read_open(descriptor, most)
    finally:
        os.close(descriptor)


def read_open(descriptor: int, most: int) -> bytes:
    """Reads an open file from its present place, and no more than `most` bytes. Raises OSError."""
    pieces, left = list[bytes](), most
    while left and (piece := os.read(descriptor, min(_PIECE, left))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def give(path: Path, uid: int, gid: int) -> Suspicious | None:
    """Makes an account the owner of an existing file. Removes what is no regular file of one name, and returns why.

    Raises OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFELY)
    except FileNotFoundError:
        return None
    except OSError:
        clear(path)
        return Suspicious(path, "is no regular file")
    try:
        found = os.fstat(descriptor)
        _check_kind(path, found)
        os.fchown(descriptor, uid, gid)
    except Suspicious as suspicious:
        if found.st_nlink:  # else it was just replaced
            clear(path)
            return suspicious
    finally:
        os.close(descriptor)
    return None


def make_folder(path: Path, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Makes a folder, or corrects an existing folder's mode and owner (uid, gid). Raises OSError for any other thing."""
    before = os.umask(0o022)  # the folders above must be open to all, whatever umask we inherited
    try:
        path.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFELY)
    try:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes) -> None:
    """Writes a file anew, whatever has its name or the name of the new file. Raises OSError."""
    fresh = path.with_suffix(".new")
    clear(fresh)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600), "wb") as file:  # noqa: PTH123 - safely
        file.write(data)
    put(fresh, path)


def put(fresh: Path, path: Path) -> None:
    """Gives a file its name, whatever had that before. Raises OSError."""
    if path.is_dir():  # rename(2) replaces all else
        clear(path)
    fresh.replace(path)


def put_aside(path: Path) -> Path | None:
    """Renames a file that nobody can read here, over the one before it, so that its place is free. Returns its new name."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        put(path, aside)
    except OSError:
        return None
    return aside


def put_over(fresh: Path, path: Path) -> None:
    """Does as `put`, and overwrites the content that had the name before: secrets may be in it. Raises OSError."""
    old = -1
    with suppress(OSError):
        old = os.open(path, os.O_WRONLY | _SAFELY)
    try:
        put(fresh, path)
        with suppress(OSError):
            _overwrite(old)
    finally:
        if old >= 0:
            os.close(old)


def _overwrite(descriptor: int) -> None:
    """Overwrites a file that has no name any more. What a disk keeps beside its blocks is beyond us."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink:
        return
    for start, end in _written(descriptor):
        for at in range(start, end, len(_ZEROS)):
            os.pwrite(descriptor, _ZEROS[: end - at], at)
    os.fdatasync(descriptor)
    os.ftruncate(descriptor, 0)


def _written(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yields the parts of a file that are on the disk: a file of holes can be larger than any disk."""
    end = 0
    with suppress(OSError):  # no more data
        while True:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            yield start, end


def clear(path: Path) -> None:
    """Removes whatever has a name of ours, and a folder with all that is in it. Raises OSError if it is still there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # unlink(2) leaves open which of both a folder gives
        if not path.is_dir() or path.is_symlink():
            raise
        remove_tree(path)


def wipe(path: Path) -> None:
    """Removes a folder and all that is in it, as far as that is possible."""
    with suppress(OSError):
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Removes a folder and all that is in it, however deep: each folder below is first moved up into this one.

    Follows no link. Raises OSError if something is left.
    """
    top, stuck = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFELY), set[str]()
    try:
        for _ in range(_MOST_ROUNDS):
            folders = _emptied(top) - stuck
            for name in folders:
                try:
                    _move_up(name, top)
                    os.rmdir(name, dir_fd=top)
                except OSError:
                    stuck.add(name)
            if not folders:
                break
    finally:
        os.close(top)
    path.rmdir()


def _move_up(name: str, top: int) -> None:
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _SAFELY, dir_fd=top)
    try:
        for each in _emptied(inner):
            os.rename(each, f".gone-{os.urandom(8).hex()}", src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)


def _emptied(folder: int) -> set[str]:
    """Removes all but the folders from a folder, and what cannot be removed. Returns the folders' names."""
    folders = set()
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            folders.add(name)
        else:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
    return folders
