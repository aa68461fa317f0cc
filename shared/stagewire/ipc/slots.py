"""Who is at work: one process a slot, whoever is started, killed or left behind.

A slot is a lock on a file (flock(2)), which the kernel frees the instant its holder dies. A second copy of a stage, started
by hand or left behind by a supervisord that was killed, waits here before it opens anything, and takes over when the first
is gone.
"""

import fcntl
import os
from pathlib import Path

import structlog


def take(folder: Path, number: int, log: structlog.typing.FilteringBoundLogger) -> int:
    """Waits for a stage's slot; returns the descriptor that holds it for as long as the process lives. Raises OSError."""
    slot = os.open(folder / f"slot.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waits: another process is at work in this place", pid=os.getpid())
        fcntl.flock(slot, fcntl.LOCK_EX)
    return slot
