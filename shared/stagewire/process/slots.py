"""Lets one process at a time work in a slot, even if others are killed, stopped or left behind.

A slot is a lock on a file (flock(2)), which the kernel frees the instant its holder dies. The file also is the holder's
page: it has the time of the last heartbeat, and until when the holder may be silent or sleeps. Files and locks are root's,
in the interface's own folder. There no stage can remove them or put a link in their place.

A holder can write anything into its page, but cannot make the file shorter or longer. Its spares read the page, and map
nothing.

Any process that can read a file can lock it. So root alone can open a slot's file, and a stage keeps no other from its
slot. status-service reads a second page, in a file that no process locks.
"""

import errno
import fcntl
import math
import mmap
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire.linux.uids import Place
from stagewire.loop import MAX_SLEEP
from stagewire.process import holders

PREFIX: Final = "slot."
BEATS: Final = "beats."
"""Prefix of the files with the second pages."""
LOOK_INTERVAL: Final = 0.25
"""s between two looks whether the file is still in place."""
STARTING: Final = 10.0
"""s that a new holder has until its first heartbeat; key-service reads all its peers first."""
MAX_SILENCE: Final = STARTING
"""s of silence that a holder can announce at a time."""
_PAGE: Final = mmap.PAGESIZE
_TIMES: Final = struct.Struct("=ddd")
"""Last heartbeat, end of an announced silence, end of a sleep."""
_CHUNK: Final = 1 << 16
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LOCKED_MODE: Final = 0o600
_BEATS_MODE: Final = 0o644
"""status-service reads it, and no other user enters the folder but the services."""


class SlotLost(Exception):  # noqa: N818 - a state of the host, told to the operator
    """Reports that a slot's file was removed: another process may hold a new file of its name."""


class Slot:
    """Opens a slot's file, as root. One process at a time can hold the slot. Raises OSError."""

    def __init__(self, run: Path, stage: str, number: int) -> None:
        self.stage = stage
        self.number = number
        self.path = run / f"{PREFIX}{stage}.{number}"
        try:
            self._shown = _shown(run / f"{BEATS}{stage}.{number}")
            self._file, self._page = _opened(self.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        try:
            self._identity = holders.identity(self._file)
        except OSError:
            os.close(self._file)
            raise
        self._look = 0.0
        self._sleeps = False

    def take(self, now: float) -> bool:
        """Takes the lock if it is free and the file is still in place. `now` is in s on the boot-time clock."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not self.in_place():
            self.release()
            return False
        for page in (self._page, self._shown):
            page[1] = now + STARTING
            page[2] = 0.0
            page[0] = now
        return True

    def release(self) -> None:
        """Frees the lock."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes the file, which frees the lock."""
        os.close(self._file)

    def in_place(self) -> bool:
        """Tells whether the path still leads to the file."""
        try:
            found, ours = self.path.lstat(), os.fstat(self._file)
        except OSError:
            return False
        return (found.st_ino, found.st_dev) == (ours.st_ino, ours.st_dev)

    # --- the holder ----------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """Notes that the loop turns. Raises SlotLost. Hot."""
        self._page[0] = self._shown[0] = now
        if self._sleeps:
            self._page[2] = self._shown[2] = 0.0
            self._sleeps = False
        if now >= self._look:
            self._page[1] = self._shown[1] = 0.0
            self._page[2] = self._shown[2] = 0.0  # a former holder may have written it last
            # After a long stop this comes before any packet: another process may hold the slot by now.
            self._look = now + LOOK_INTERVAL
            if not self.in_place():
                raise SlotLost(f"{self.path} was removed")

    def sleep(self, until: float) -> None:
        """Announces that the loop waits for work, with nothing left unread, until a time (s). The next beat ends it. Hot."""
        self._page[2] = self._shown[2] = until
        self._sleeps = True

    def expect_silence(self, seconds: float, now: float) -> None:
        """Announces work during which the loop stands still."""
        self._page[1] = self._shown[1] = now + min(seconds, MAX_SILENCE)
        self._look = 0.0  # so that the next beat ends it

    # --- its spares ----------------------------------------------------------------------------------------

    def last_beat(self, now: float) -> float:
        """Returns the time of the holder's last heartbeat, in s on the boot-time clock. A time to come is none (-inf)."""
        beat, _, _ = self._times()
        return beat if beat <= now else -math.inf

    def may_be_silent(self, now: float) -> bool:
        """Tells whether the holder has announced a silence that has not ended, and is not too long."""
        _, until, _ = self._times()
        return now < until <= now + MAX_SILENCE

    def sleeps(self, now: float) -> bool:
        """Tells whether the holder says that it waits for work, and owes no heartbeat yet."""
        _, _, until = self._times()
        return now < until <= now + MAX_SLEEP

    def _times(self) -> tuple[float, float, float]:
        data = os.pread(self._file, _TIMES.size, 0)
        return _TIMES.unpack(data) if len(data) == _TIMES.size else (-math.inf,) * 3

    @property
    def file(self) -> holders.File:
        """Identifies the slot's file as /proc/locks does."""
        return self._identity

    def holder(self, uid: int) -> int | None:
        """Returns the pid of the process of ours that verifiably holds the lock; None without one.

        `uid` is the uid of a holder that has begun; before, it is root.
        """
        found = (each.pid for each in holders.locks() if each.exclusive and each.file == self._identity)
        return next((pid for pid in found if holders.has_lock(pid, self._identity, uid)), None)

    def give_up(self, uid: int) -> None:
        """Removes the file unless a process of ours has its lock (`holder`), so that a fresh one can take its place."""
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # else the file that another spare has just made could go
            if self.in_place() and self.holder(uid) is None:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(folder)


class SlotLocks:
    """Tells for a stage which process holds a slot: root alone can lock a slot's file, and the kernel lists its lock."""

    def __init__(self, ours: Slot) -> None:
        """Opens the list of locks beforehand; takes the run folder's filesystem from our own slot."""
        self._run, self._device = ours.path.parent, ours.file.device
        self._locks = os.open("/proc/locks", os.O_RDONLY | os.O_CLOEXEC)

    def holds(self, place: Place, pid: int) -> bool | None:
        """Tells whether a process holds the slot of a place; None if the place has no slot."""
        try:
            file = self._file(place)
        except OSError:
            return None
        return pid in self._pids(file)

    def are_held(self, place: Place) -> bool | None:
        """Tells whether any process holds the slot of a place; None if the place has no slot."""
        try:
            return bool(self._pids(self._file(place)))
        except OSError:
            return None

    def _file(self, place: Place) -> holders.File:
        return holders.File(self._device, (self._run / f"{PREFIX}{place.stage}.{place.number}").stat().st_ino)

    def _pids(self, file: holders.File) -> list[int]:
        return [lock.pid for lock in holders.locks_in(self._read()) if lock.exclusive and lock.file == file]

    def _read(self) -> str:
        chunks = [os.pread(self._locks, _CHUNK, 0)]
        while chunks[-1]:
            chunks.append(os.pread(self._locks, _CHUNK, sum(map(len, chunks))))
        return b"".join(chunks).decode()


def _opened(path: Path) -> tuple[int, "memoryview[float]"]:
    """Returns a descriptor that can be locked but not written, and the page. Raises OSError.

    The page belongs to a second descriptor: a mapped locked file stays locked until a killed process's memory goes, which
    is last.
    """
    writable = os.open(path, _OPEN, _LOCKED_MODE)
    try:
        page = _mapped(writable, _LOCKED_MODE)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC), page
    finally:
        os.close(writable)


def _shown(path: Path) -> "memoryview[float]":
    """Returns the page for status-service. Raises OSError."""
    writable = os.open(path, _OPEN, _LOCKED_MODE)
    try:
        return _mapped(writable, _BEATS_MODE)
    finally:
        os.close(writable)


def _mapped(writable: int, mode: int) -> "memoryview[float]":
    found = os.fstat(writable)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid not in {0, os.geteuid()}:
        raise OSError(errno.EINVAL, "is no slot of ours; remove it")
    os.fchmod(writable, mode)
    os.ftruncate(writable, _PAGE)
    # On a full disk, a write to the page would be a SIGBUS; this call raises a readable error.
    os.posix_fallocate(writable, 0, _PAGE)
    return memoryview(mmap.mmap(writable, _PAGE)).cast("d")


def quiet_for(run: Path, stage: str, number: int, now: float) -> float:
    """Returns for how long (s) a holder that neither sleeps nor has announced a silence has given no heartbeat."""
    try:
        file = os.open(run / f"{BEATS}{stage}.{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return 0.0
    try:
        data = os.pread(file, _TIMES.size, 0)
    finally:
        os.close(file)
    if len(data) < _TIMES.size:
        return 0.0
    beat, silent, asleep = _TIMES.unpack(data)
    if not beat or now < silent <= now + MAX_SILENCE or now < asleep <= now + MAX_SLEEP:
        return 0.0
    return now - beat if beat <= now else 0.0


def held(run: Path) -> dict[tuple[str, int], int]:
    """Returns the pids of the holders in a run folder, by stage and number."""
    places: dict[holders.File, tuple[str, int]] = {}
    with suppress(OSError):
        for path in run.glob(f"{PREFIX}*"):
            stage, _, number = path.name.removeprefix(PREFIX).partition(".")
            if (file := holders.identity_of(path)) is not None and number.isdecimal():
                places[file] = stage, int(number)
    return {place: pid for place, pids in holders.holding(places).items() for pid in pids}


def are_held(run: Path) -> bool:
    """Tells whether any process holds a slot in a run folder, even one in a pid namespace that we cannot see."""
    for path in run.glob(f"{PREFIX}*"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails beside the holder's exclusive lock
        except BlockingIOError:
            return True
        finally:
            os.close(file)
    return False


def contenders(run: Path, *stages: str) -> list[int]:
    """Lists the pids of holders and spares in a run folder as it is, of these stages (default: of every stage)."""
    at_work = {pid for (stage, _), pid in held(run).items() if not stages or stage in stages}
    return sorted(at_work | {*holders.present(run, *stages)})


def holders_of_deleted(paths: Iterable[Path]) -> list[int]:
    """Lists the pids of processes that hold a removed file of one of these slots' names."""
    found: set[int] = set()
    for run in {path.parent for path in paths}:
        lost = holders.holding_deleted(run, exclusive=True)
        found.update(*(lost.get(path.name, ()) for path in paths if path.parent == run))
    return sorted(found)
