"""Who is at work: one process a slot, whoever is started, killed or left behind.

A slot is a lock on a file (flock(2)), which the kernel frees the instant its holder dies. A second copy of a stage, started
by hand or left behind by a supervisord that was killed, waits here before it opens anything, and takes over when the first
is gone.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import structlog

_PREFIX = "slot."


def take(run: Path, stage: str, number: int, log: structlog.typing.FilteringBoundLogger) -> int:
    """Waits for a stage's slot; returns the descriptor that holds it for as long as the process lives. Raises OSError.

    The file is in the interface's own folder `run`, root's, where no stage could take it away or put a link in its place.
    """
    path = run / f"{_PREFIX}{stage}.{number}"
    slot = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waits: another process is at work in this place", pid=os.getpid())
        fcntl.flock(slot, fcntl.LOCK_EX)
    return slot


def holders(run: Path) -> list[int]:
    """The pids of the processes at work in an interface's folder, whoever started them; only root sees all."""
    inodes = set()
    with suppress(OSError):
        inodes = {path.stat().st_ino for path in run.glob(f"{_PREFIX}*")}
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    # "1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF"; those that wait have an arrow for a kind
    return sorted({int(f[4]) for f in held if f[1] == "FLOCK" and int(f[5].rpartition(":")[2]) in inodes})
