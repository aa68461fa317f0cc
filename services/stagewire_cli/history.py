"""Reads what status-service has kept of peers and stages, also while the interface is down, and draws it.

Root reads as the user that writes the file: SQLite may have to finish what a killed process began, and follows no link that
this user couldn't.
"""

import csv
import io
import os
import sqlite3
import time
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from stagewire import files
from stagewire.config import decode_key, encode_key
from stagewire.config.peer_names import NotFoundError, find, label
from stagewire.environment import Environment
from stagewire.history import FOLDER, LIFE, MAX_LIFE, NAME, VERSION, expect_ours, key_of
from stagewire.limits import LATEST, MAX_COUNT
from stagewire.linux import privileges
from stagewire.stages import STAGES
from stagewire_cli import flow, layout
from stagewire_cli.failures import Failed

FORMAT: Final = 1
"""Version of the JSON objects."""
DAY: Final = 86_400
QUARTER: Final = 92 * DAY
_MAX_SIZE: Final = 1 << 30
_BUSY: Final = 5.0
"""s to wait for a write of status-service."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_OF_DAY: Final = 48
"""Bars of a day."""
_OF_QUARTER: Final = 46
"""Bars of a quarter, of two days each."""
_SHOWN: Final = 10
"""Connections that are shown to people."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings that a spreadsheet takes for a formula."""
_TEXTS: Final = frozenset({"interface", "of", "stage", "public_key", "name", "endpoint", "month"})
"""What is text in the JSON object; all else are numbers."""
Found = dict[str, Any]


@contextmanager
def opened(environment: Environment) -> Iterator[sqlite3.Connection]:
    """Opens the history. Raises Failed."""
    folder = environment.state / FOLDER
    try:
        with _as_owner_of(folder):
            os.close(files.opened(folder / NAME, _MAX_SIZE))
            db = sqlite3.connect(f"file:{quote(str(folder / NAME))}?mode=rw", uri=True, timeout=_BUSY)
            try:
                db.executescript("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON;")
                if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                    raise Failed(f"{folder / NAME}: another version of Stagewire has written it")
                expect_ours(db)
                yield db
            finally:
                db.close()
    except FileNotFoundError:
        raise Failed(f"there is no history of {environment.interface} yet") from None
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror}" if error.strerror else str(error)) from None
    except sqlite3.Error as error:
        raise Failed(f"{folder / NAME}: {error}") from None
    except (TypeError, ValueError, OverflowError) as error:  # a column of SQLite may hold anything
        raise Failed(f"{folder / NAME} holds nonsense: {error}") from None


@contextmanager
def _as_owner_of(folder: Path) -> Iterator[None]:
    found = folder.stat()
    before = os.geteuid(), os.getegid()
    os.setegid(found.st_gid)
    os.seteuid(found.st_uid)
    privileges.hide_memory()  # where fs.suid_dumpable isn't 0, a change of uid may show it again
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        privileges.hide_memory()


# --- one peer, one stage ------------------------------------------------------------------------------------


def of_peer(environment: Environment, text: str, now: float) -> Found:
    """Returns what is kept of the peer that `text` names, as the JSON object. Raises Failed."""
    with opened(environment) as db:
        names = {encode_key(key_of(key)): str(name) for key, name in db.execute("SELECT public_key, name FROM peers")}
        try:
            key = find(text, names, "stagewire usage")
        except NotFoundError as error:
            raise Failed(str(error)) from None
        row = "SELECT id, since, rx, tx FROM peers WHERE public_key = ?"
        peer, since, rx, tx = db.execute(row, (decode_key(key),)).fetchone()
        found = {
            "version": FORMAT,
            "interface": environment.interface,
            "of": "peer",
            "public_key": key,
            "name": names[key],
            "since_unix_s": since or None,
            "rx_bytes": rx,
            "tx_bytes": tx,
            "minutes": _rows(db, "minutes", 60, peer, now - DAY, now),
            "hours": _rows(db, "hours", 3600, peer, now - QUARTER, now),
            "connections": list(_connections(db, peer, is_over=_is_over(environment, db))),
        }
        return _sensible(found)


def _sensible(found: Found) -> Found:
    """Returns what was found. Raises ValueError for what no history of ours has, such as text for a number."""
    for name, value in found.items():
        if isinstance(value, list):
            for each in value:
                _sensible(each)
        elif value is not None and not _fits(name, value):
            raise ValueError(f"{name} is {value!r:.40}")
    return found


def _fits(name: str, value: Any) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    return isinstance(value, (int, float)) and 0 <= value <= (LATEST if name.endswith("unix_s") else MAX_COUNT)


def _rows(db: sqlite3.Connection, table: str, step: int, peer: int, since: float, until: float) -> list[Found]:
    """Looks each time up: in the order of the table, the rows of all peers would have to be read."""
    first = -(-int(since) // step) * step
    found = db.execute(  # the table's name is ours
        "WITH RECURSIVE times (at) AS (VALUES (?) UNION ALL SELECT at + ? FROM times WHERE at + ? <= ?)"  # noqa: S608
        f" SELECT times.at, rx, tx FROM times CROSS JOIN {table} AS kept ON kept.at = times.at AND peer = ?",
        (first, step, step, int(until), peer),
    )
    return [{"at_unix_s": at, "rx_bytes": rx, "tx_bytes": tx} for at, rx, tx in found]


def _is_over(environment: Environment, db: sqlite3.Connection) -> bool:
    """Tells whether the life of the gateway that wrote last is over; the next one closes its connections."""
    if not environment.run.exists():
        return True
    try:
        life = files.read(environment.run / "status" / LIFE, MAX_LIFE).decode("ascii", "replace")
    except OSError:  # it could not be written, or status-service has not begun
        return False
    found = db.execute("SELECT value FROM meta WHERE name = 'life'").fetchone()
    return found is not None and found[0] != life


def _connections(db: sqlite3.Connection, peer: int, *, is_over: bool) -> Iterator[Found]:
    """Yields the connections, the newest first. Of one that a gateway's end has cut, `heard` is the end."""
    columns = "seconds, endpoint, rx, tx"
    for table, until in (("open", "heard" if is_over else "NULL"), ("connections", "until")):
        found = db.execute(
            f"SELECT at, {until}, {columns} FROM {table} WHERE peer = ? ORDER BY at DESC",  # noqa: S608 - our words
            (peer,),
        )
        for since, end, seconds, endpoint, rx, tx in found:
            yield {
                "since_unix_s": since, "until_unix_s": end, "seconds": seconds, "endpoint": str(endpoint),
                "rx_bytes": rx, "tx_bytes": tx,
            }  # fmt: skip


def of_stage(environment: Environment, text: str, now: float) -> Found:
    """Returns what is kept of a stage, as the JSON object. Raises Failed."""
    stage = text.removesuffix("-service")
    if stage not in STAGES:
        raise Failed(f"{text!r} is no stage; there are {', '.join(STAGES)}")
    with opened(environment) as db:
        found = {
            "version": FORMAT,
            "interface": environment.interface,
            "of": "stage",
            "stage": stage,
            "minutes": _work(db, "stage_minutes", stage, now - DAY, now),
            "hours": _work(db, "stage_hours", stage, now - QUARTER, now),
        }
        return _sensible(found)


def _work(db: sqlite3.Connection, table: str, stage: str, since: float, until: float) -> list[Found]:
    columns = "at, number, handled, dropped, failed"
    found = db.execute(
        f"SELECT {columns} FROM {table} WHERE at BETWEEN ? AND ? AND stage = ? ORDER BY at, number",  # noqa: S608
        (int(since), int(until), stage),
    )
    return [
        {"at_unix_s": at, "number": number, "handled": handled, "dropped": dropped, "failed": failed}
        for at, number, handled, dropped, failed in found
    ]


def lines(found: Found, now: float, width: int | None = None) -> Iterator[str]:
    """Draws what `of_peer` or `of_stage` has found. `width` is in columns; with None no line is wrapped."""
    yield from flow.wrapped(_lines(found, now), width)


def _lines(found: Found, now: float) -> Iterator[str]:
    if found["of"] == "stage":
        yield f"{found['stage']}-service"
        drawn = [("handled", "handled"), ("dropped", "dropped"), ("failed", "failed")]
    else:
        since = f", since {_day(found['since_unix_s'])}" if found["since_unix_s"] else ""
        much = f"received {layout.size(found['rx_bytes'])}, sent {layout.size(found['tx_bytes'])}{since}"
        yield f"{label(found['public_key'], found['name'])}: {much}"
        drawn = [("rx_bytes", "received"), ("tx_bytes", "sent")]
    for heading, rows, span, bars in (
        ("last 24 hours", found["minutes"], DAY, _OF_DAY),
        ("last 92 days", found["hours"], QUARTER, _OF_QUARTER),
    ):
        yield f"  {heading}, {_span(span / bars)} a bar"
        for key, word in drawn:
            yield f"    {word:9}{_bars(rows, key, now - span, span, bars)}  {_sum(rows, key)}"
    if found["of"] == "peer" and found["connections"]:
        count = len(found["connections"])
        yield "  connections" + (f", the last {_SHOWN} of {count}" if count > _SHOWN else "")
        for each in found["connections"][:_SHOWN]:
            yield f"    {_connection(each)}"


def _connection(each: Found) -> str:
    end = "now" if each["until_unix_s"] is None else _time(each["until_unix_s"])
    much = f"received {layout.size(each['rx_bytes'])}, sent {layout.size(each['tx_bytes'])}"
    return f"{_time(each['since_unix_s'])} to {end}, {layout.span(each['seconds'])}, {each['endpoint']}, {much}"


def _bars(rows: Iterable[Found], key: str, since: float, span: float, bars: int) -> str:
    sums = [0] * bars
    for row in rows:
        sums[min(bars - 1, max(0, int((row["at_unix_s"] - since) * bars / span)))] += row[key]
    return spark(sums)


def spark(counts: Sequence[int]) -> str:
    """Draws a bar for each count, the greatest at full height, and a dot for none."""
    most = max(counts, default=0)
    return "".join(_BARS[min(7, count * 8 // (most + 1))] if count else "·" for count in counts)


def _sum(rows: Iterable[Found], key: str) -> str:
    total = sum(row[key] for row in rows)
    return layout.size(total) if key.endswith("_bytes") else f"{total:,}"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < DAY else f"{seconds / DAY:.0f} days"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%MZ")


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m")


# --- a month ------------------------------------------------------------------------------------------------


def usage(environment: Environment, month: str | None, now: float) -> Found:
    """Returns the bytes of each peer in a month (`2026-11`), the present one by default. Raises Failed."""
    text = month or time.strftime("%Y-%m", time.gmtime(now))
    try:
        at = timegm(time.strptime(text, "%Y-%m"))
    except ValueError:
        raise Failed(f"--month must be a month such as 2026-11, not {text!r}") from None
    with opened(environment) as db:
        found = db.execute(
            "SELECT public_key, name, months.rx, months.tx FROM months JOIN peers ON peers.id = months.peer"
            " WHERE at = ? ORDER BY months.rx + months.tx DESC",
            (at,),
        )
        peers = [
            {"public_key": encode_key(key_of(key)), "name": str(name), "rx_bytes": rx, "tx_bytes": tx}
            for key, name, rx, tx in found
        ]
        return _sensible({"version": FORMAT, "interface": environment.interface, "month": text, "peers": peers})


def usage_lines(found: Found, width: int | None = None) -> Iterator[str]:
    """Writes a month as a table. `width` is in columns; with None no line is wrapped."""
    yield f"{found['interface']}, {found['month']} (UTC)"
    sums = {key: sum(peer[key] for peer in found["peers"]) for key in ("rx_bytes", "tx_bytes")}
    yield f"{'received':>12} {'sent':>12}  peer"
    for peer in found["peers"]:
        yield from _row(peer, label(peer["public_key"], peer["name"]), width)
    yield from _row(sums, "all", width)


def _row(sums: Found, who: str, width: int | None) -> Iterator[str]:
    head = f"{layout.size(sums['rx_bytes']):>12} {layout.size(sums['tx_bytes']):>12} "
    yield from flow.lines(head, len(head), who.split(" "), width)


# --- CSV ----------------------------------------------------------------------------------------------------


def as_csv(found: Found) -> str:
    """Writes a month, or the minutes and hours of a peer or stage, as CSV with a heading."""
    if "month" in found:
        return _csv(found["peers"])
    return _csv({"period": period[:-1], **row} for period in ("minutes", "hours") for row in found[period])


def _csv(rows: Iterable[Found]) -> str:
    text = io.StringIO()
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row))
            writer.writeheader()
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    return text.getvalue()


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
