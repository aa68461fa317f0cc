"""Who is at work: one process a slot, whoever is started, killed, stopped or left behind.

A slot is a lock on a file (flock(2)), which the kernel frees the instant its holder dies. The file is also the holder's
page: the time of its last heartbeat, and until when it may be silent because it has said that it will be. Files and locks
are root's, in the interface's own folder, where no stage could take them away or put a link in their place.
"""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.environment import MAX_WORKERS

PREFIX: Final = "slot."
LOOK_INTERVAL: Final = 0.25
"""s between two looks whether the file is still there."""
STARTING: Final = 10.0
"""s that a new holder has until its first heartbeat; a key-service with 10,000 peers needs one or two."""
_PAGE: Final = mmap.PAGESIZE


class SlotLost(Exception):  # noqa: N818 - a state of the host, told to the operator
    """Somebody took the file away; another process may hold a new one of that name."""


class Slot:
    """A file that can be held by one process at a time. Opened as root. Raises OSError."""

    def __init__(self, run: Path, stage: str, number: int) -> None:
        self.stage = stage
        self.number = number
        self.path = run / f"{PREFIX}{stage}.{number}"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Writing to a page that a full disk has no room for would be a SIGBUS; here it is an error one can read.
            os.posix_fallocate(self._file, 0, _PAGE)
            self._inode = os.fstat(self._file).st_ino
            self._page = _map(self._file)
        except OSError:
            os.close(self._file)
            raise
        self._look = 0.0

    def take(self, now: float) -> bool:
        """Takes the lock if it is free and its file still there. `now` is in s on the boot-time clock."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not self.in_place():
            self.release()
            return False
        self._page[1] = now + STARTING
        self._page[0] = now
        return True

    def release(self) -> None:
        """Lets go of the lock."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes the file; a lock on it is free then."""
        os.close(self._file)

    def in_place(self) -> bool:
        """Whether the file is still what its name leads to."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    # --- the holder ----------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """Says that the loop turns. Raises SlotLost.

        Hot: 0.08 us, once a turn.
        """
        self._page[0] = now
        if now >= self._look:
            self._page[1] = 0.0
            # After a long stop this is the first thing done, before any packet.
            self._look = now + LOOK_INTERVAL
            if not self.in_place():
                raise SlotLost(f"{self.path} was taken away")

    def expect_silence(self, seconds: float, now: float) -> None:
        """Announces work during which the loop stands still."""
        self._page[1] = now + seconds
        self._look = 0.0  # over with the next turn

    # --- who watches it ------------------------------------------------------------------------------------

    @property
    def last_beat(self) -> float:
        """The holder's last heartbeat, s on its boot-time clock."""
        return self._page[0]

    @property
    def silent_until(self) -> float:
        """Until when the holder has said that it may be silent, s on the boot-time clock."""
        return self._page[1]

    def holder(self) -> int | None:
        """The pid of the process that holds the lock."""
        return next((pid for pid, inode in _locks() if inode == self._inode), None)


def _map(locked: int) -> "memoryview[float]":
    # Opened once more: a lock is held as long as what was locked is mapped, and a killed process's memory goes last.
    again = os.open(f"/proc/self/fd/{locked}", os.O_RDWR | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(again, _PAGE)).cast("d")
    finally:
        os.close(again)


def _locks() -> list[tuple[int, int]]:
    # "1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF"; those that wait have an arrow for a kind
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return [(int(f[4]), int(f[5].rpartition(":")[2])) for f in held if f[1] == "FLOCK"]


def held(run: Path) -> dict[tuple[str, int], int]:
    """The pids of the processes at work in an interface's folder by stage and number; only root sees all."""
    places: dict[int, tuple[str, int]] = {}
    with suppress(OSError):
        for path in run.glob(f"{PREFIX}*"):
            stage, _, number = path.name.removeprefix(PREFIX).partition(".")
            places[path.stat().st_ino] = stage, int(number)
    return {places[inode]: pid for pid, inode in _locks() if inode in places}


def wanted_workers(run: Path, configured: int) -> int:
    """How many workers an interface is to have: what key-service was told last, unless `configured` is another by now."""
    try:
        wanted, told_upon = map(int, _workers_file(run).read_text().split())
    except (OSError, ValueError):
        return configured
    return wanted if told_upon == configured and 1 <= wanted <= MAX_WORKERS else configured


def remember_workers(run: Path, wanted: int, configured: int) -> None:
    """Writes down, in key-service, how many it was told to have, and upon which configured number. Raises OSError."""
    fresh = _workers_file(run).with_suffix(".new")
    fresh.write_text(f"{wanted} {configured}\n")
    fresh.replace(_workers_file(run))


def _workers_file(run: Path) -> Path:
    return run / "key" / "workers"


def contenders(run: Path, stage: str = "", among: Iterable[int] | None = None) -> list[int]:
    """The pids of all that hold or wait for a slot of an interface (of `stage`), in its folder as it is or as it was.

    `among`: look at these alone; at all there are takes milliseconds.
    """
    beginning = f"{run / PREFIX}{stage}." if stage else str(run / PREFIX)
    if among is None:
        among = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return sorted(pid for pid in among if _has_open(pid, lambda path: path.startswith(beginning)))


def holders_of_deleted(paths: Iterable[Path]) -> list[int]:
    """The pids of those that hold a slot of one of these names whose file was taken away."""
    names = {f"{path} (deleted)" for path in paths}
    return sorted(pid for pid in {pid for pid, _ in _locks()} if _has_open(pid, names.__contains__))


def _has_open(pid: int, meant: Callable[[str], bool]) -> bool:
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if meant(str(link.readlink())):
                    return True
    return False
