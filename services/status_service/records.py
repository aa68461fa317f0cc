"""Keeps the history while the loop turns: hands batches to the file, and says once what hinders it."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.history import LIFE, MAX_LIFE
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto.tai64n import MAX_JUMP_NS
from status_service.history import Batch, History
from status_service.history_file import HistoryFile, Kept

LAST_WITHIN: Final = 0.5
"""s that the last batch may take when the process ends."""
TRY_AGAIN: Final = 10.0
"""s after a write that failed."""
_DAY_S: Final = MAX_JUMP_NS / 1e9
_GOES_ON: Final = "events and history go on by the new time, and lose nothing"


def life_of(run: Path, make: Callable[[], str]) -> str:
    """Returns the name of the gateway's life, which the first status-service makes."""
    path = run / "status" / LIFE
    with suppress(OSError):
        return files.read(path, MAX_LIFE).decode("ascii", "replace")
    life = make()
    with suppress(OSError):  # a full disk: the next status-service counts all again
        files.write(path, life.encode())
    return life


class Records:
    """Owns the history and its file. Without a folder, nothing is kept beyond this process."""

    def __init__(self, folder: Path | None, log: Log) -> None:
        self.history = History()
        self._file = HistoryFile(folder) if folder is not None else None
        self._log = log
        self._writing = False
        self._said = ""
        self._not_before = 0.0

    def begin(self, life: str, now: float, unix_s: float) -> Kept:
        """Reads what is kept, and begins to write. Call it before the stage gives up everything else."""
        if self._file is None:
            return Kept()
        kept = Kept()
        try:
            kept = self._file.load(life, now, unix_s)
        except (OSError, sqlite3.Error) as error:
            self._complain(getattr(error, "strerror", None) or str(error))
        if self._file.aside is not None:
            self._say_aside(self._file.aside)
        self._file.start()
        return kept

    def look(self, now: float, unix_s: float) -> None:
        """Takes up what the thread has done, and hands it the next batch."""
        if 0 < abs(jump := self.history.clock.look(now, unix_s)) <= _DAY_S:  # key-service tells of a greater one
            self._log.warning("the wall clock jumped", seconds=round(jump), history=_GOES_ON)
        if self._file is None:
            self.history.take(now)
            return
        while (outcome := self._file.outcome()) is not None:
            self._writing = False
            if outcome.aside is not None:
                self._say_aside(outcome.aside)
            if outcome.reason:
                self.history.give_back(outcome.batch)
            if outcome.reason and outcome.aside is None:
                self._not_before = now + TRY_AGAIN
                self._complain(outcome.reason)
            elif not outcome.reason and self._said:
                self._said = ""
                self._log.info("keeps the history again")
        if not self._writing and now >= self._not_before and self.history.is_due(now):
            self._writing = True
            self._file.write(self.history.take(now), unix_s if self.history.clock.is_steady(now) else None)

    def close(self) -> None:
        """Writes what is left, if the disk is quick enough."""
        if self._file is not None:
            self._file.close(Batch() if self._said else self.history.take(boot_time()), LAST_WITHIN)

    def _complain(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            self._log.warning("cannot keep the history; tries again", reason=reason)

    def _say_aside(self, path: Path) -> None:
        self._log.warning("the history was damaged: begins anew, and keeps the damaged file", file=str(path))


def new_life() -> str:
    """Makes the name of a life."""
    return f"{time.time_ns():x}"
