"""Tells which processes are ours, by the locks (flock(2)) that the kernel lists.

Any program can have our names, paths or command lines. A lock is on one file of one filesystem, and the kernel says which
process took it (/proc/locks). A process is ours when

- it holds a lock on a file of the interface's folder, by device and inode;
- it lives in our pid namespace, not in a container that we can look into;
- it runs as root or as a stage's uid.

A process can read all three facts without CAP_SYS_PTRACE, which root in a container lacks.
"""

import fcntl
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from stagewire.linux import uids
from stagewire.process import signals

PRESENCE: Final = "here."
"""Prefix of the files, one for each kind, on which each process of ours holds a shared lock."""
SUPERVISORD: Final = "supervisord"
"""Kind of a supervisord that runs by the configuration in the run folder."""
OTHER_SUPERVISORD: Final = "other-supervisord"
"""Kind of a supervisord that runs by another configuration."""
KEEPER: Final = "keeper"
GOING: Final = "going"
"""Second kind of a keeper or supervisord that has begun to end everything."""
_NO_STAGES: Final = (SUPERVISORD, OTHER_SUPERVISORD, KEEPER, GOING)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class File:
    """Identifies a file as /proc/locks does."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Lock:
    """Describes a line of /proc/locks. `exclusive`: a slot's holder has such a lock."""

    pid: int
    file: File
    exclusive: bool


def locks() -> Iterator[Lock]:
    """Yields every flock(2) lock of the processes in our pid namespace and in those below it."""
    return locks_in(Path("/proc/locks").read_text())


def locks_in(text: str) -> Iterator[Lock]:
    """Yields the flock(2) locks in the text of /proc/locks."""
    # "1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF"; a waiting process has an arrow before FLOCK
    for line in text.splitlines():
        if (lock := _lock(line.split())) is not None:
            yield lock


def _lock(words: list[str]) -> Lock | None:
    if words[1] != "FLOCK":
        return None
    major, minor, inode = words[5].split(":")
    return Lock(int(words[4]), File(os.makedev(int(major, 16), int(minor, 16)), int(inode)), words[3] == "WRITE")


def identity(descriptor: int) -> File:
    """Returns the identity of an open file. Raises OSError."""
    found = os.fstat(descriptor)
    return File(_filesystem(found.st_dev, _mount_of(descriptor)), found.st_ino)


def identity_of(path: Path) -> File | None:
    """Returns the identity of the file at a path; None without a file."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return identity(descriptor)
    finally:
        os.close(descriptor)


def _mount_of(descriptor: int) -> str:
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    return next((line.split()[1] for line in text.splitlines() if line.startswith("mnt_id:")), "")


@cache
def _filesystem(told: int, mount: str) -> int:
    """Returns the device that /proc/locks shows. On overlay and btrfs, stat(2) shows another.

    A mount above a chroot's root is in no list; then what stat(2) shows has to do.
    """
    for words in (line.split() for line in _lines(Path("/proc/self/mountinfo"))):
        if words[:1] == [mount]:
            major, minor = words[2].split(":")
            return os.makedev(int(major), int(minor))
    return told


def holding(files: Mapping[File, T]) -> dict[T, set[int]]:
    """Returns the pids of our processes that hold a lock on a file, by the value that `files` has for it."""
    found: dict[T, set[int]] = {}
    for lock in locks():
        if lock.file in files and is_ours(lock.pid):
            found.setdefault(files[lock.file], set()).add(lock.pid)
    return found


def is_ours(pid: int) -> bool:
    """Tells whether a process lives in our pid namespace, as root or as a stage."""
    facts = status(pid)
    found = {int(uid) for uid in facts.get("Uid", "").split()}
    return len(facts.get("NSpid", "").split()) <= 1 and bool(found) and all(map(_is_our_uid, found))


def _is_our_uid(uid: int) -> bool:
    return uid in {0, os.geteuid()} or uids.is_any_stages(uid)


_KILLED: Final = 1 << signal.SIGKILL - 1
"""SIGKILL among the signals that wait for a thread. The kernel leaves it with each thread of a killed process."""
_MOST_DESCRIPTORS: Final = 4096
"""Descriptors of another process that we look through: a hostile one can have very many."""


def has_lock(pid: int, file: File, uid: int) -> bool:
    """Tells whether a process that runs as `uid` or root has an exclusive lock on a file among its own descriptors.

    /proc/locks names the process that took the lock. But that process may have ended and left its descriptor to another,
    and its pid may be any program's by now. Where the kernel shows us no descriptors, as without CAP_SYS_PTRACE, a
    process counts if it runs as `uid`.
    """
    if not runs_as(pid, uid):
        return False
    try:
        with os.scandir(f"/proc/{pid}/fdinfo") as found:
            entries = [entry.path for entry in islice(found, _MOST_DESCRIPTORS + 1)]
        if 0 < len(entries) <= _MOST_DESCRIPTORS:  # a dying process has none
            return any(file in _exclusive_locks(entry) for entry in entries)
    except OSError:
        pass
    return status(pid).get("Uid", "").split()[:1] == [str(uid)]


def runs_as(pid: int, uid: int) -> bool:
    """Tells whether a process lives in our pid namespace, and has `uid` or root's as its only one.

    A process that was killed runs no more, even where a freezer or a disk keeps it from its end.
    """
    facts = status(pid)
    return (
        len(facts.get("NSpid", "").split()) <= 1
        and {*facts.get("Uid", "").split()} in ({str(uid)}, {"0"})
        and not int(facts.get("SigPnd", "0"), 16) & _KILLED
    )


def _exclusive_locks(entry: str) -> list[File]:
    with suppress(OSError):  # closed meanwhile
        words = [line.split()[1:] for line in Path(entry).read_text().splitlines() if line.startswith("lock:")]
        return [lock.file for each in words if (lock := _lock(each)) is not None and lock.exclusive]
    return []


def status(pid: int) -> dict[str, str]:
    """Returns the fields of /proc/<pid>/status; nothing when the process is gone."""
    try:
        lines = _lines(Path(f"/proc/{pid}/status"))
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def parent(pid: int) -> int:
    """Returns the pid of a process's parent; 0 when the process is gone."""
    return int(status(pid).get("PPid", "0"))


def _lines(path: Path) -> list[str]:
    """Returns a file's lines, in which names of mount points and processes may be any bytes."""
    return path.read_text(errors="surrogateescape").split("\n")


class Presence:
    """Holds a shared lock on the file of the process's kind in a run folder, which shows that the process is ours."""

    def __init__(self, run: Path, kind: str) -> None:
        """Takes the lock. Raises OSError."""
        self._path = run / f"{PRESENCE}{kind}"
        self._file = -1
        self.renew()

    def renew(self) -> None:
        """Takes the lock anew, after a fork or when the file was removed. Raises OSError."""
        fresh = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(fresh, fcntl.LOCK_SH)
        except OSError:
            os.close(fresh)
            raise
        self.close()
        self._file = fresh

    def in_place(self) -> bool:
        """Tells whether the path still leads to the file."""
        try:
            found, ours = self._path.lstat(), os.fstat(self._file)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        """Frees the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def present(run: Path, *kinds: str) -> list[int]:
    """Lists the pids of our processes of these kinds (default: of every stage) in a run folder as it is."""
    paths = [run / f"{PRESENCE}{kind}" for kind in kinds] if kinds else _listed(run)
    files = {file: True for path in paths if (file := identity_of(path)) is not None}
    return sorted(holding(files).get(True, ())) if files else []


def _listed(run: Path) -> list[Path]:
    try:
        names = {path.name for path in run.iterdir() if path.name.startswith(PRESENCE)}
    except OSError:
        return []
    return [run / name for name in names - {f"{PRESENCE}{kind}" for kind in _NO_STAGES}]


# --- removed files -----------------------------------------------------------------------------------------


def holding_deleted(run: Path, *, exclusive: bool = False) -> dict[str, set[int]]:
    """Returns the pids of our processes that hold a lock on a file removed from a run folder, by the file's name.

    No path leads to such a file, but its holder's descriptor shows the former path. Any process can make a path up. So the
    process must be ours, the file root's or ours, and the folder above the same to the process as to us. Without
    CAP_SYS_PTRACE we cannot read the descriptors of a stage, and find only processes that are still root.
    """
    above, found = _device_and_inode(run.parent), dict[str, set[int]]()
    for pid in {lock.pid for lock in locks() if lock.exclusive or not exclusive}:
        if is_ours(pid):
            for name in _deleted(pid, run, exclusive=exclusive, above=above):
                found.setdefault(name, set()).add(pid)
    return found


def _deleted(pid: int, run: Path, *, exclusive: bool, above: tuple[int, int] | None) -> Iterator[str]:
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                path = Path(str(link.readlink()).removesuffix(" (deleted)"))
                if path.parent != run:
                    continue
                facts = link.stat()
                if facts.st_nlink or facts.st_uid not in {0, os.geteuid()} or not _is_locked(pid, link.name, exclusive):
                    continue
                if _device_and_inode(Path(f"/proc/{pid}/root{run.parent}")) == above:
                    yield path.name


def _is_locked(pid: int, descriptor: str, exclusive: bool) -> bool:
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    return any(line.startswith("lock:") and "FLOCK" in line and ("WRITE" in line or not exclusive) for line in lines)


def _device_and_inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sees(pid: int, path: Path) -> bool:
    """Tells whether a path leads a process to the same file as us. Without a file, the nearest folder above counts."""
    while not path.exists() and path != path.parent:
        path = path.parent
    there = _device_and_inode(Path(f"/proc/{pid}/root{path}"))
    return there is not None and there == _device_and_inode(path)


def open_keeper(run: Path) -> int | None:
    """Returns a descriptor of a bare interface's keeper, readable when the keeper has ended; None without a keeper."""
    keepers = (signals.opened(pid, lambda pid: pid in present(run, KEEPER)) for pid in present(run, KEEPER))
    return next((process for process in keepers if process is not None), None)
