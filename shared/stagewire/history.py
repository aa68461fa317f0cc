"""Describes the file of an interface's history: status-service writes it, and the command reads it.

Times are UNIX times (s): of rows by the minute, hour or month, the beginning of it, in UTC. `rx` and `tx` are bytes.
"""

import sqlite3
from contextlib import closing
from functools import cache
from typing import Final

from stagewire.proto.constants import KEY_LENGTH

FOLDER: Final = "history"
"""status-service's folder in the state folder of an interface."""
STATE_MODE: Final = 0o710
"""Mode of that state folder, which is key-service's: status-service passes through it."""
NAME: Final = "history.db"
LIFE: Final = "life"
"""Name of the file in status-service's run folder that tells one life of the gateway, from `up` to `down`, from the next."""
MAX_LIFE: Final = 64
"""Bytes of that file."""
VERSION: Final = 1
"""SQLite's `user_version` of the file."""
TABLES: Final = """
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS peers (
        id INTEGER PRIMARY KEY, public_key BLOB NOT NULL UNIQUE, name TEXT NOT NULL, since INTEGER NOT NULL,
        rx_seen INTEGER NOT NULL, tx_seen INTEGER NOT NULL, rx INTEGER NOT NULL, tx INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS minutes (
        at INTEGER, peer INTEGER, rx INTEGER, tx INTEGER, PRIMARY KEY (at, peer)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS hours (
        at INTEGER, peer INTEGER, rx INTEGER, tx INTEGER, PRIMARY KEY (at, peer)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS months (
        at INTEGER, peer INTEGER, rx INTEGER, tx INTEGER, PRIMARY KEY (at, peer)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS stage_minutes (
        at INTEGER, stage TEXT, number INTEGER, handled INTEGER, dropped INTEGER, failed INTEGER,
        PRIMARY KEY (at, stage, number)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS stage_hours (
        at INTEGER, stage TEXT, number INTEGER, handled INTEGER, dropped INTEGER, failed INTEGER,
        PRIMARY KEY (at, stage, number)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS connections (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, peer INTEGER NOT NULL, until REAL NOT NULL, seconds REAL NOT NULL,
        endpoint TEXT NOT NULL, rx INTEGER NOT NULL, tx INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS connections_of_peer ON connections (peer, at);
    CREATE TABLE IF NOT EXISTS open (
        peer INTEGER PRIMARY KEY, at REAL NOT NULL, shaken REAL NOT NULL, heard REAL NOT NULL, seconds REAL NOT NULL,
        endpoint TEXT NOT NULL, rx INTEGER NOT NULL, tx INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, said TEXT NOT NULL);
"""
"""`peers` has sums since `since`, and what key-service counted at the last report; `open` has the present connections."""


def expect_ours(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError for a file with other tables: a hostile status-service may plant a view without end."""
    if _made(db) != _ours():
        raise sqlite3.DatabaseError("its tables are not those of a history")


@cache
def _ours() -> frozenset[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(TABLES)
        return _made(db)


def _made(db: sqlite3.Connection) -> frozenset[tuple[str, ...]]:
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return frozenset((*map(str, place), " ".join(str(sql).split())) for *place, sql in rows)


def key_of(value: object) -> bytes:
    """Returns the public key in a row. Raises ValueError for anything else, which a column of SQLite may hold too."""
    if type(value) is not bytes or len(value) != KEY_LENGTH:
        raise ValueError("a public key is none")
    return value
