"""History: what is counted where, and what a kill, a full disk, a damaged file and a clock that jumps do to it."""

import json
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lab.wait import until
from stagewire.control.event import Event
from stagewire.control.telemetry import PeerReport
from stagewire.history import NAME
from stagewire.logs import Log
from status_service import history_file, records
from status_service.history import DAY, HOUR, JUMP, MAX_WAITING, STEADY_FOR, WRITE_EVERY, History, month_of
from status_service.history_file import HistoryFile, Kept
from status_service.peers import Peers
from status_service.presence import Connection
from status_service.records import Records
from status_service.tally import Service

KEY, OTHER = bytes([1]) * 32, bytes([2]) * 32
T, UNIX = 1000.0, 1_800_000_030.0
MINUTE = 1_800_000_000


def report(rx: int, tx: int = 0, key: bytes = KEY, name: str = "Anna") -> PeerReport:
    return PeerReport(key, name, "", tx, rx, UNIX, "192.0.2.1:5", 0.0)


def connection(key: bytes = KEY) -> Connection:
    return Connection(key, "Anna", "192.0.2.1:5", T, UNIX, T + 60, UNIX + 60, UNIX, 5, 7)


class Lines(Log):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def info(self, event: str, **_values: object) -> None:
        self.said.append(event)

    def warning(self, event: str, **values: object) -> None:
        self.said.append(f"{event}: {values.get('reason') or values.get('file')}")


# --- what is counted ----------------------------------------------------------------------------------------


def test_bytes_go_into_their_minute_and_month() -> None:
    history = History()
    history.on_peer(report(5), (5, 1), UNIX)
    history.on_peer(report(9), (4, 1), UNIX + 29)
    history.on_peer(report(10), (1, 0), UNIX + 30)
    batch = history.take(T)
    assert batch.minutes == {(MINUTE, KEY): (9, 2), (MINUTE + 60, KEY): (1, 0)}
    assert batch.sums == {(month_of(UNIX), KEY): (10, 2)}
    assert time.gmtime(month_of(UNIX))[2:6] == (1, 0, 0, 0)
    assert not history.take(T)


def test_a_batch_is_due_each_minute_and_soon_after_an_event() -> None:
    history = History()
    assert not history.is_due(T)
    history.take(T)
    history.on_peer(report(5), (5, 1), UNIX)
    assert [history.is_due(T + after) for after in (WRITE_EVERY - 1, WRITE_EVERY)] == [False, True]
    history.on_event(Event("rekeyed"))
    assert not history.is_due(T + 1)
    history.on_event(Event("connected"))
    assert history.is_due(T + 1)


def test_what_could_not_be_written_is_counted_later_and_is_bounded() -> None:
    history = History()
    history.on_peer(report(5), (5, 1), UNIX)
    history.on_connection(connection())
    history.on_event(Event("connected", 1))
    failed = history.take(T)
    history.on_peer(report(7), (2, 0), UNIX)
    history.on_ended(connection())
    history.on_event(Event("disconnected", 2))
    history.give_back(failed)
    batch = history.take(T)
    assert batch.minutes == {(MINUTE, KEY): (7, 1)}
    assert (batch.peers[KEY].rx_seen, batch.open, len(batch.ended)) == (7, {}, 1)
    assert [event.id for event in batch.events] == [1, 2]
    for number in range(MAX_WAITING + 10):
        history.on_peer(report(1), (1, 0), number * 60.0)
    assert len(history.take(T).minutes) == MAX_WAITING


def test_the_work_of_a_stage_is_counted_from_its_second_look_on() -> None:
    history, service = History(), Service()
    for datagrams, drops in ((100, 5), (150, 5), (160, 8)):
        service.present.update({"datagrams_in": datagrams - service.present["datagrams_in"]})
        service.present["no_peer"] = drops
        history.on_services([(("conn", 0), service)], UNIX)
    assert history.take(T).stages == {(MINUTE, "conn", 0): (60, 3, 0)}


def test_a_key_service_that_knows_less_adds_nothing() -> None:
    peers = Peers()
    peers.resume({KEY: (100, 50)})
    assert peers._grown(report(130, 50)) == (30, 0)
    assert peers._grown(report(20, 10)) == (0, 0)
    assert peers._grown(report(25, 10)) == (5, 0)


def test_a_clock_that_jumps_by_less_than_a_day_is_said_once(tmp_path: Path) -> None:
    said: list[object] = []
    log = Lines()
    log.warning = lambda event, **values: said.append((event, values["seconds"]))  # type: ignore[method-assign]
    made = Records(None, log)
    for at, ahead in ((0, 0), (1, 0.5), (2, -3600), (3, -3600), (4, 0), (5, 40 * DAY), (6, 0)):
        made.look(T + at, UNIX + at + ahead)
    assert said == [("the wall clock jumped", -3600), ("the wall clock jumped", 3600)]


def test_only_a_clock_that_was_long_steady_makes_rows_old() -> None:
    clock = History().clock
    assert not clock.is_steady(T)
    clock.look(T, UNIX)
    clock.look(T + STEADY_FOR, UNIX + STEADY_FOR + JUMP / 2)
    assert clock.is_steady(T + STEADY_FOR)
    clock.look(T + STEADY_FOR + 1, UNIX + 10 * 366 * DAY)
    assert not clock.is_steady(T + STEADY_FOR + 1)
    clock.look(T + STEADY_FOR + 2, UNIX + STEADY_FOR + 2)
    assert not clock.is_steady(T + 2 * STEADY_FOR)


# --- the file -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "TRY_AGAIN", 0.0)


@contextmanager
def recording(folder: Path, log: Lines, life: str = "a") -> Iterator[Records]:
    made = Records(folder, log)
    made.begin(life, T, UNIX)
    try:
        yield made
    finally:
        made.close()


def written(made: Records, folder: Path, now: float = T + 100) -> sqlite3.Connection:
    """Waits until all is in the file."""

    def done() -> bool:
        made.look(now, UNIX + now - T)
        return not made._writing and not made.history._batch

    made.history._urgent = True
    until(done, 10, "the write")
    return sqlite3.connect(folder / NAME)


def loaded(folder: Path, life: str, now: float, unix: float) -> Kept:
    file = HistoryFile(folder)
    found = file.load(life, now, unix)
    file._close()
    return found


def rows(db: sqlite3.Connection, what: str) -> list[tuple[object, ...]]:
    try:
        return list(db.execute(what))
    finally:
        db.close()


def test_rows_by_minute_and_hour_sums_connections_and_events(tmp_path: Path) -> None:
    with recording(tmp_path, Lines()) as made:
        made.history.on_peer(report(5, 1), (5, 1), UNIX)
        made.history.on_peer(report(9, 2), (4, 1), UNIX + HOUR)
        made.history.on_ended(connection())
        made.history.on_connection(connection(OTHER))
        made.history.on_event(Event("connected", 7, UNIX, name="\u202eevil\n'; DROP TABLE peers; --"))
        written(made, tmp_path).close()
        made.history.on_peer(report(10, 2), (1, 0), UNIX)
        db = written(made, tmp_path)
        assert list(db.execute("SELECT at, rx, tx FROM minutes")) == [(MINUTE, 6, 1), (MINUTE + HOUR, 4, 1)]
        assert list(db.execute("SELECT sum(rx), sum(tx) FROM hours")) == [(10, 2)]
        assert list(db.execute("SELECT rx, tx FROM months")) == [(10, 2)]
        assert list(db.execute("SELECT rx, tx, rx_seen, name FROM peers WHERE name != ''")) == [(10, 2, 10, "Anna")]
        assert list(db.execute("SELECT seconds, endpoint, rx, tx FROM connections")) == [(60.0, "192.0.2.1:5", 5, 7)]
        db.close()
    again = loaded(tmp_path, "a", T + 100, UNIX + 100)
    assert again.seen[KEY] == (10, 2)
    [kept] = again.connections or []
    assert (kept.public_key, kept.rx_bytes, kept.seconds, kept.heard) == (OTHER, 5, 60.0, T + 60)
    assert [event.id for event in again.events] == [7]
    another = loaded(tmp_path, "another life", T, UNIX)
    assert (again.goes_on, another.goes_on, another.seen) == (True, False, {})


def test_a_reboot_loses_no_total(tmp_path: Path) -> None:
    for life in ("a", "b", "c"):
        peers = Peers()
        made = Records(tmp_path, Lines())
        peers.resume(made.begin(life, T, UNIX).seen)
        made.history.on_peer(report(100), peers._grown(report(100)), UNIX)
        made.close()
    assert rows(sqlite3.connect(tmp_path / NAME), "SELECT rx FROM peers") == [(300,)]


@pytest.mark.parametrize("damage", [b"this is no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_kept_aside_and_begun_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NAME).write_bytes(damage)
    log = Lines()
    with recording(tmp_path, log) as made:
        made.history.on_peer(report(5), (5, 0), UNIX)
        assert rows(written(made, tmp_path), "SELECT rx FROM peers") == [(5,)]
    aside = tmp_path / f"{NAME}.damaged"
    assert aside.read_bytes() == damage
    assert log.said == [f"the history was damaged: begins anew, and keeps the damaged file: {aside}"]


EVENT = "INSERT INTO events VALUES (1, 'connected', '{}')"
PEER = "INSERT INTO peers VALUES (9, zeroblob(32), 'Anna', 0, 0, 0, 0, 0)"
ENDLESS = """CREATE VIEW events AS WITH RECURSIVE n (id, said) AS
    (VALUES (1, '') UNION ALL SELECT id + 1, said FROM n) SELECT * FROM n"""


def event(**values: object) -> str:
    return EVENT.format(json.dumps(asdict(Event("connected", id=7)) | values))


@pytest.mark.parametrize(
    "planted",
    [
        [EVENT],
        [EVENT.format("[" * 200_000)],
        [event(id="a")],
        [event(id=10**30)],
        [event(id=-1)],
        [event(unix_s=float("inf"))],
        [event(unix_s="now")],
        [event(changes=[5])],
        [event(changes=5)],
        [event(number=None)],
        ["DROP TABLE events"],
        ["DROP TABLE events", ENDLESS],
        ["CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM peers; END"],
        ["INSERT INTO peers VALUES (9, 1152921504606846976, 'Anna', 0, 0, 0, 0, 0)"],
        ["INSERT INTO peers VALUES (9, x'ff', 'Anna', 0, 0, 0, 0, 0)"],
        [PEER, "UPDATE peers SET rx_seen = 'many'"],
        [PEER, "UPDATE peers SET rx_seen = -1"],
        [PEER, "INSERT INTO open VALUES (9, 0, 'abc', 0, 0, 'x', 1, 1)"],
        [PEER, "INSERT INTO open VALUES (9, 0, 0, 0, 0, x'ffff', 1, 1)"],
        [PEER, "INSERT INTO open VALUES (9, 0, 0, 9e999, 0, 'x', 1, 1)"],
        [PEER, "INSERT INTO open VALUES (9, 0, 0, 0, 0, 'x', 'abc', 1)"],
    ],
)
def test_whatever_a_hostile_process_has_left_its_successor_begins_anew(tmp_path: Path, planted: list[str]) -> None:
    with recording(tmp_path, Lines()) as made:
        made.history.on_peer(report(5), (5, 0), UNIX)
        written(made, tmp_path).close()
    with closing(sqlite3.connect(tmp_path / NAME)) as db:
        db.executescript("; ".join(planted))
    log = Lines()
    made = Records(tmp_path, log)
    kept = made.begin("a", T, UNIX)
    try:
        assert (kept.seen, kept.events, kept.connections) == ({}, [], None)
        made.history.on_peer(report(8), (3, 0), UNIX)
        assert rows(written(made, tmp_path), "SELECT rx FROM peers") == [(3,)]
    finally:
        made.close()
    assert [line.partition(":")[0] for line in log.said] == ["the history was damaged"]


def test_an_event_of_a_version_with_fewer_fields_is_kept(tmp_path: Path) -> None:
    with recording(tmp_path, Lines()) as made:
        made.history.on_peer(report(5), (5, 0), UNIX)
        written(made, tmp_path).close()
    with closing(sqlite3.connect(tmp_path / NAME)) as db:
        db.executescript(EVENT.format('{"kind": "connected", "id": 7, "unix_s": 5.0}'))
    made = Records(tmp_path, log := Lines())
    try:
        assert made.begin("a", T, UNIX).events == [Event("connected", 7, 5.0)]
    finally:
        made.close()
    assert log.said == []


def test_a_file_that_is_damaged_meanwhile_is_kept_aside_too(tmp_path: Path) -> None:
    log = Lines()
    with recording(tmp_path, log) as made:
        made.history.on_peer(report(5), (5, 0), UNIX)
        written(made, tmp_path).close()
        with (tmp_path / NAME).open("r+b") as file:
            file.write(b"\xff" * 200_000)
        made.history.on_peer(report(8), (3, 0), UNIX)
        assert rows(written(made, tmp_path), "SELECT rx FROM peers") == [(3,)]
    assert [line.partition(":")[0] for line in log.said] == ["the history was damaged"]


def test_nonsense_is_passed_over_and_damages_nothing(tmp_path: Path) -> None:
    log = Lines()
    with recording(tmp_path, log) as made:
        for grown in (2**63 - 1, 2**63 - 1):
            made.history.on_peer(report(5), (grown, 0), UNIX)
        written(made, tmp_path).close()
        made.history.on_connection(replace(connection(), since_unix_s=float("nan")))
        written(made, tmp_path).close()
        made.history.on_peer(report(5), (5, 0), UNIX + 60)
        assert rows(written(made, tmp_path), "SELECT rx FROM minutes") == [(2**63 - 1,), (5,)]
    assert not (tmp_path / f"{NAME}.damaged").exists()
    assert log.said[0].startswith("cannot keep the history; tries again: nonsense was reported")


@pytest.mark.parametrize("planted", ["folder", "link"])
def test_what_is_no_file_of_ours_is_put_aside(tmp_path: Path, planted: str) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    if planted == "folder":
        (tmp_path / NAME).mkdir()
    else:
        (tmp_path / NAME).symlink_to(tmp_path / "victim")
    with recording(tmp_path, Lines()) as made:
        made.history.on_peer(report(5), (5, 0), UNIX)
        written(made, tmp_path).close()
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_full_disk_is_said_once_and_nothing_is_lost(tmp_path: Path) -> None:
    log = Lines()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with recording(tmp_path, log) as made:
        made.history.on_peer(report(5), (5, 0), UNIX)
        written(made, tmp_path).close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))  # SQLite reports a file that can't grow as full
        try:
            for number in range(1, 4):
                made.history.on_peer(report(5 + number), (1, 0), UNIX)
                made.history.on_event(Event("connected", number))
                made.look(T, UNIX)
                until(lambda: bool(made._file and made._file._outcomes), 10, "the failure")
                made.look(T, UNIX)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert rows(written(made, tmp_path), "SELECT rx FROM peers") == [(8,)]
        assert len(rows(sqlite3.connect(tmp_path / NAME), "SELECT * FROM events")) == 3
    assert len(log.said) == 2
    assert log.said[0].startswith("cannot keep the history; tries again: ")
    assert log.said[1] == "keeps the history again"


def test_a_file_at_its_bound_loses_its_oldest_rows_and_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 48 * 4096
    monkeypatch.setattr(history_file, "MAX_SIZE", bound)
    file = HistoryFile(tmp_path)
    file.load("a", T, UNIX)
    history = History()
    for number in range(20_000):
        history.on_peer(report(number), (1, 0), UNIX + 60 * number)
        if number % 1000 == 999:
            outcome = file._try(history.take(T), None)
            assert outcome.reason == ""
            assert (tmp_path / NAME).stat().st_size <= bound
    db = file._connection
    assert db is not None
    first, last, count = db.execute("SELECT min(at), max(at), count(*) FROM minutes").fetchone()
    assert first > MINUTE + 60 * 5_000
    assert last == MINUTE + 60 * 19_999
    assert count > 1000
    assert db.execute("SELECT rx FROM peers").fetchone() == (20_000,)
    file._close()


def test_old_rows_go_but_not_by_a_clock_that_is_not_to_be_believed(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path)
    file.load("a", T, UNIX)
    history = History()
    for age in (0, DAY - 60, DAY + 60, 93 * DAY, -3 * DAY):
        history.on_peer(report(5), (5, 0), UNIX - age)
    file._commit(history.take(T), None)
    db = file._connection
    assert db is not None
    assert db.execute("SELECT count(*) FROM minutes").fetchone() == (5,)
    history_file._tidy(db, UNIX)
    assert db.execute("SELECT count(*) FROM minutes").fetchone() == (2,)
    assert db.execute("SELECT count(*) FROM hours").fetchone() == (3,)
    assert db.execute("SELECT rx FROM peers").fetchone() == (25,)
    file._close()


def test_the_oldest_of_too_many_rows_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_file, "MAX_ROWS", {"minutes": 10})
    monkeypatch.setattr(history_file, "MOST_EVENTS", 3)
    file = HistoryFile(tmp_path)
    file.load("a", T, UNIX)
    history = History()
    for number in range(25):
        history.on_peer(report(5), (5, 0), UNIX + number * 60)
        history.on_event(Event("connected", number))
        history.on_event(Event("moved", 100 + number))
    file._commit(history.take(T), None)
    db = file._connection
    assert db is not None
    assert db.execute("SELECT count(*) FROM minutes").fetchone()[0] == 9
    assert db.execute("SELECT max(at) FROM minutes").fetchone() == (MINUTE + 24 * 60,)
    assert [id_ for (id_,) in db.execute("SELECT id FROM events")] == [22, 23, 24, 122, 123, 124]
    history.on_peer(report(5), (5, 0), UNIX)
    file._commit(history.take(T), None)
    assert db.execute("SELECT count(*) FROM minutes").fetchone()[0] == 10  # not at each write
    db.close()


def test_without_a_folder_nothing_is_kept_and_nothing_grows() -> None:
    made = Records(None, Lines())
    assert made.begin("a", T, UNIX).connections is None
    for _ in range(100):
        made.history.on_event(Event("connected"))
        made.look(T, UNIX)
    assert not made.history._batch
    made.close()
