"""Keeps the history in an SQLite file, which a thread writes: a slow disk must not hold up the loop.

A batch is one transaction, and the counts that key-service reported last are part of it. So a process that is killed counts
nothing twice and, once it is back, nothing too little.
"""

import json
import math
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from stagewire import files
from stagewire.control.codec import checked
from stagewire.control.event import KINDS, Event
from stagewire.history import NAME, TABLES, VERSION, expect_ours, key_of
from stagewire.limits import MAX_COUNT
from status_service.history import DAY, HOUR, Batch
from status_service.peers import Bytes
from status_service.presence import Connection
from status_service.ring import MOST as MOST_EVENTS

MAX_SIZE: Final = 256 << 20
"""Bytes of the file; MAX_ROWS keeps it well below. At this bound the oldest rows make room."""
MAX_ROWS: Final = {"minutes": 2_000_000, "hours": 3_000_000, "months": 1_000_000, "connections": 100_000}
KEPT_FOR: Final = {
    "minutes": DAY, "stage_minutes": DAY, "hours": 92 * DAY, "stage_hours": 92 * DAY, "connections": 92 * DAY,
    "months": 3 * 366 * DAY,
}  # fmt: skip
"""s that rows of a table are kept."""
TIDY_EVERY: Final = 600.0
"""s between two clean-ups: 10,000 busy peers add 100,000 rows meanwhile."""
_PAGE: Final = 4096
_PART: Final = 8
"""A file at its bound loses an eighth of its rows, the oldest of each table."""
_LAST_ID: Final = 2**62
_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(Event)}
_BUSY: Final = 5.0
"""s that a write waits for a reader."""


@dataclass(slots=True)
class Kept:
    """Holds what an earlier life has left. `connections` are None if there is nothing."""

    seen: dict[bytes, Bytes] = field(default_factory=dict)
    connections: list[Connection] | None = None
    goes_on: bool = False
    """Whether it is of the same life of the gateway."""
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """Tells what became of a batch. `reason` says why it was not written, `aside` where a damaged file lies."""

    batch: Batch
    reason: str = ""
    aside: Path | None = None


class HistoryFile:
    """Writes one batch after another. `load` opens the file; then the thread alone uses it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._connection: sqlite3.Connection | None = None
        self._ids: dict[bytes, int] = {}
        self._waiting: queue.SimpleQueue[tuple[Batch, float | None] | None] = queue.SimpleQueue()
        self._outcomes: deque[Outcome] = deque()
        self._tidied = -math.inf
        self._life = ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.aside: Path | None = None
        """Where a damaged file lies that `load` has found."""

    def load(self, life: str, now: float, unix_s: float) -> Kept:
        """Reads what an earlier status-service has kept. `life` names the gateway's life from `up` to `down`.

        Raises OSError and sqlite3.Error, and may be tried again by writing.
        """
        try:
            return self._load(life, now, unix_s)
        except files.Suspicious:
            self._put_aside()
            return self._load(life, now, unix_s)
        except (OSError, sqlite3.OperationalError):
            self._close()
            raise
        except Exception:  # noqa: BLE001 - a hostile process may have left anything, and must not end its successors
            self._put_aside()
            return self._load(life, now, unix_s)

    def _load(self, life: str, now: float, unix_s: float) -> Kept:
        self._life = life
        db = self._open()
        found = db.execute("SELECT value FROM meta WHERE name = 'life'").fetchone()
        kept = Kept()
        kept.goes_on = found is not None and found[0] == life
        if kept.goes_on:  # otherwise key-service counts from zero again
            rows = db.execute("SELECT public_key, rx_seen, tx_seen FROM peers")
            kept.seen = {key_of(key): (_count(rx), _count(tx)) for key, rx, tx in rows}
        if found is not None:
            kept.connections = list(_connections(db, now, unix_s))
        kept.events = [_event(json.loads(said)) for (said,) in db.execute("SELECT said FROM events ORDER BY id")]
        return kept

    def start(self) -> None:
        self._thread.start()

    def write(self, batch: Batch, old_before: float | None) -> None:
        """Has the thread write a batch. `old_before` is the time (UNIX, s) that makes rows old, None if it isn't sure."""
        self._waiting.put((batch, old_before))

    def outcome(self) -> Outcome | None:
        """Returns what became of the oldest batch that is done."""
        return self._outcomes.popleft() if self._outcomes else None

    def close(self, last: Batch, patience: float) -> None:
        """Writes the last batch, and waits at most so many seconds for it."""
        if self._thread.is_alive():
            self._waiting.put((last, None))
            self._waiting.put(None)
            self._thread.join(patience)

    # --- in the thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (order := self._waiting.get()) is not None:
            self._outcomes.append(self._try(*order))
        self._close()

    def _try(self, batch: Batch, old_before: float | None) -> Outcome:
        try:
            try:
                self._commit(batch, old_before)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # SQLite says so of a damaged file alone
                    raise
                return Outcome(batch, str(error), self._put_aside())
        except (OSError, sqlite3.OperationalError) as error:
            self._close()
            return Outcome(batch, getattr(error, "strerror", None) or str(error))
        except Exception as error:  # noqa: BLE001 - nonsense in the batch: it would hold up the next ones
            return Outcome(Batch(), f"nonsense was reported: {error}")
        return Outcome(Batch())

    def _commit(self, batch: Batch, old_before: float | None) -> None:
        db = self._connection or self._open()
        try:
            with db:
                self._write(db, batch)
        except sqlite3.OperationalError:
            if not _is_at_bound(db):  # so it is the disk that is full
                raise
            self._ids.clear()
            with db:
                _make_room(db)
            with db:
                self._write(db, batch)
        if time.monotonic() >= self._tidied + TIDY_EVERY:
            with db:
                _tidy(db, old_before)
            self._tidied = time.monotonic()

    def _write(self, db: sqlite3.Connection, batch: Batch) -> None:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('life', ?)", (self._life,))
        for key, row in batch.peers.items():
            self._ids[key] = db.execute(
                "INSERT INTO peers (public_key, name, since, rx_seen, tx_seen, rx, tx) VALUES (?, ?, 0, ?, ?, 0, 0)"
                " ON CONFLICT (public_key) DO UPDATE SET name = excluded.name, rx_seen = excluded.rx_seen,"
                " tx_seen = excluded.tx_seen RETURNING id",
                (key, row.name, row.rx_seen, row.tx_seen),
            ).fetchone()[0]
        for table, span in (("minutes", 60), ("hours", HOUR)):
            rows = ((at // span * span, self._id(db, key), *grown) for (at, key), grown in batch.minutes.items())
            db.executemany(_ADD.format(table), rows)
        db.executemany(
            _ADD.format("months"), ((at, self._id(db, key), *grown) for (at, key), grown in batch.sums.items())
        )
        db.executemany(
            "UPDATE peers SET rx = rx + ?, tx = tx + ?, since = iif(since, min(since, ?), ?) WHERE public_key = ?",
            ((*grown, at, at, key) for (at, key), grown in batch.sums.items()),
        )
        for table, span in (("stage_minutes", 60), ("stage_hours", HOUR)):
            stages = ((at // span * span, *place, *work) for (at, *place), work in batch.stages.items())
            db.executemany(_ADD_WORK.format(table), stages)
        self._write_connections(db, batch)
        db.executemany(
            "INSERT OR REPLACE INTO events VALUES (?, ?, ?)",
            ((event.id, event.kind, json.dumps(asdict(event))) for event in batch.events),
        )

    def _write_connections(self, db: sqlite3.Connection, batch: Batch) -> None:
        for ended in batch.ended:
            peer = self._id(db, ended.public_key)
            db.execute("DELETE FROM open WHERE peer = ?", (peer,))
            db.execute(
                "INSERT INTO connections (at, peer, until, seconds, endpoint, rx, tx) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    ended.since_unix_s,
                    peer,
                    ended.heard_unix_s,
                    ended.seconds,
                    ended.endpoint,
                    ended.rx_bytes,
                    ended.tx_bytes,
                ),
            )
        rows = ((self._id(db, key), one.since_unix_s, one.shaken, *_values(one)) for key, one in batch.open.items())
        db.executemany("INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _id(self, db: sqlite3.Connection, key: bytes) -> int:
        if key not in self._ids:
            db.execute("INSERT OR IGNORE INTO peers VALUES (NULL, ?, '', 0, 0, 0, 0, 0)", (key,))
            self._ids[key] = db.execute("SELECT id FROM peers WHERE public_key = ?", (key,)).fetchone()[0]
        return self._ids[key]

    # --- the file ------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Opens the file, and makes it if there is none. Raises OSError and sqlite3.Error."""
        self._ids.clear()
        with suppress(FileNotFoundError):
            os.close(files.opened(self._path, 2 * MAX_SIZE))
        self._connection = db = sqlite3.connect(
            f"file:{quote(str(self._path))}", uri=True, timeout=_BUSY, check_same_thread=False
        )
        db.executescript(
            "PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = NORMAL; PRAGMA trusted_schema = OFF;"
            f"PRAGMA temp_store = MEMORY; PRAGMA max_page_count = {MAX_SIZE // _PAGE};"
        )
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"version {version}")
        if version != VERSION:  # a full disk takes no write, and what it has can be read
            with db:
                db.executescript(f"{TABLES} PRAGMA user_version = {VERSION};")
        expect_ours(db)
        return db

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _put_aside(self) -> Path:
        """Gives a damaged file another name, in place of the damaged file before. Raises OSError."""
        self._close()
        self.aside = self._path.with_name(f"{NAME}.damaged")
        files.put(self._path, self.aside)
        files.clear(self._path.with_name(f"{NAME}-journal"))
        return self.aside


_ADD: Final = (
    "INSERT INTO {} VALUES (?, ?, ?, ?) ON CONFLICT (at, peer)"
    " DO UPDATE SET rx = rx + excluded.rx, tx = tx + excluded.tx"
)
_ADD_WORK: Final = (
    "INSERT INTO {} VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (at, stage, number) DO UPDATE SET"
    " handled = handled + excluded.handled, dropped = dropped + excluded.dropped, failed = failed + excluded.failed"
)


def _values(one: Connection) -> tuple[float, float, str, int, int]:
    return one.heard_unix_s, one.seconds, one.endpoint, one.rx_bytes, one.tx_bytes


def _connections(db: sqlite3.Connection, now: float, unix_s: float) -> Iterator[Connection]:
    rows = db.execute(
        "SELECT public_key, name, endpoint, at, heard, seconds, shaken, open.rx, open.tx FROM open JOIN peers"
        " ON peers.id = open.peer"
    )
    for key, name, endpoint, *times, rx, tx in rows:
        at, heard_unix, seconds, shaken = map(_time, times)
        heard = now - max(0.0, unix_s - heard_unix)
        yield checked(
            Connection,
            (key_of(key), name, endpoint, heard - seconds, at, heard, heard_unix, shaken, _count(rx), _count(tx)),
        )


def _time(value: object) -> float:
    """Returns a number of s in a row. Raises ValueError for anything else."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("a time is none")
    return float(value)


def _count(value: object) -> int:
    """Returns a count in a row. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError("a count is none")
    return value


def _event(values: dict[str, Any]) -> Event:
    """Returns a kept event. Raises ValueError, TypeError, KeyError or BadControl for what is none."""
    whole = _DEFAULTS | values  # an earlier version may have known fewer fields
    event = checked(Event, tuple(tuple(whole[name]) if name == "changes" else whole[name] for name in _DEFAULTS))
    _time(event.unix_s)
    _time(event.seconds)
    if not 0 <= event.id < _LAST_ID:
        raise ValueError("an id is none")
    return event


def _is_at_bound(db: sqlite3.Connection) -> bool:
    """Tells whether the file may take hardly another page."""
    pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
    return bool(pages - free >= MAX_SIZE // _PAGE * (1 - 1 / _PART))


def _make_room(db: sqlite3.Connection) -> None:
    """Removes the oldest part of each table that grows."""
    for table in MAX_ROWS:
        count = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
        if count:
            row = db.execute(f"SELECT at FROM {table} ORDER BY at LIMIT 1 OFFSET ?", (count // _PART,)).fetchone()  # noqa: S608
            db.execute(f"DELETE FROM {table} WHERE at <= ?", row)  # noqa: S608


def _tidy(db: sqlite3.Connection, old_before: float | None) -> None:
    """Removes old rows, and the oldest of too many."""
    if old_before is not None:
        for table, kept_for in KEPT_FOR.items():
            db.execute(f"DELETE FROM {table} WHERE at < ? OR at > ?", (old_before - kept_for, old_before + DAY))  # noqa: S608
    for table, most in MAX_ROWS.items():
        count = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
        if count > most:
            row = db.execute(f"SELECT at FROM {table} ORDER BY at LIMIT 1 OFFSET ?", (count - most,)).fetchone()  # noqa: S608
            db.execute(f"DELETE FROM {table} WHERE at <= ?", row)  # noqa: S608
    for kind in KINDS:
        db.execute(
            "DELETE FROM events WHERE kind = ? AND id < (SELECT min(id) FROM"
            " (SELECT id FROM events WHERE kind = ? ORDER BY id DESC LIMIT ?))",
            (kind, kind, MOST_EVENTS),
        )
