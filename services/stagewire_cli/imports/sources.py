"""Opens another program's file, finds out whose it is, and has it read."""

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from stagewire_cli.imports import wg_conf, wg_easy, wg_portal
from stagewire_cli.imports.found import Found, Unusable

_MAX_SIZE: Final = 64 << 20
_SQLITE: Final = b"SQLite format 3\0"
_LOGS: Final = ("", "-wal")
"""Endings of the files that hold a database: its own, and what was written last."""
_MAX_ROWS: Final = 100_000


def read(path: Path, only: str) -> Found:
    """Reads a file; `only` chooses one of several interfaces in it. Raises Unusable."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise Unusable(error.strerror or "can't be read") from None
    if len(data) > _MAX_SIZE:
        raise Unusable(f"has more than {_MAX_SIZE >> 20} MiB")
    if data.startswith(_SQLITE):
        return _from_database(path, only)
    text = data.decode("utf-8", "surrogateescape")
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and not _is_conf(text):
        return _from_json(text, only)
    _expect_all(only)
    return wg_conf.read(text, str(path))


def _expect_all(only: str) -> None:
    if only:
        raise Unusable("holds one interface, from which --only can't choose: leave --only out")


def _is_conf(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").lower().startswith(("[interface]", "[peer]"))


def _from_json(text: str, only: str) -> Found:
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        raise Unusable("is no JSON text, or is cut short") from None
    if wg_easy.is_file(content):
        _expect_all(only)
        return wg_easy.from_file(content)
    if wg_portal.is_export(content):
        return wg_portal.from_export(content, only)
    raise Unusable("is a JSON text of no program that is known here: wg-easy 14 (wg0.json) and WireGuard Portal are")


def _from_database(path: Path, only: str) -> Found:
    """Reads a copy: to open a database may write beside it, and its program may be running."""
    with tempfile.TemporaryDirectory(prefix="stagewire-import-") as folder:
        copy = Path(folder) / "database"
        try:
            for ending in _LOGS:
                source = path.with_name(path.name + ending)
                if not ending or source.exists():
                    shutil.copyfile(source, copy.with_name(copy.name + ending))
        except OSError as error:
            raise Unusable(f"can't be copied to {folder}: {error.strerror}") from None
        try:
            with closing(sqlite3.connect(copy)) as database:
                rows = _rows(database)
        except (sqlite3.Error, UnicodeError) as error:
            raise Unusable(f"is no whole database: {error}") from None
    if wg_easy.is_database(rows):
        return wg_easy.from_database(rows, only)
    if wg_portal.is_database(rows):
        return wg_portal.from_database(rows, only)
    raise Unusable("is a database of no program that is known here: wg-easy 15 and WireGuard Portal are")


def _rows(database: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of those tables that matter, by table and column."""
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA trusted_schema = OFF")
    names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {
        name: [dict(row) for row in database.execute(f'SELECT * FROM "{name}" LIMIT {_MAX_ROWS}')]  # noqa: S608 - ours
        for name in names
        if name in _TABLES
    }


_TABLES: Final = frozenset(
    [
        *("interfaces_table", "clients_table", "user_configs_table", "hooks_table", "one_time_links_table"),
        *("interfaces", "peers", "peer_addresses", "interface_addresses"),
    ]
)
