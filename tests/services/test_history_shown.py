"""What `stagewire history` and `usage` say of the file that status-service writes."""

import csv
import ctypes
import io
import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests import schemas

from stagewire.config import encode_key
from stagewire.control.telemetry import PeerReport
from stagewire.environment import Environment
from stagewire.history import FOLDER, LIFE, NAME
from stagewire_cli import flow
from stagewire_cli import history as shown
from stagewire_cli.__main__ import main
from stagewire_cli.failures import Failed
from status_service.history import DAY, HOUR, History
from status_service.history_file import HistoryFile
from status_service.presence import Connection

KEY, OTHER = bytes([1]) * 32, bytes([2]) * 32
NOW = 1_796_000_000.0
EVIL = '=cmd|\u202e"<b>,\x1b[2J' + "x" * 200


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An interface with a history: Anna's last hours, and another peer with a name that is no name."""
    made = Environment.read({"STAGEWIRE_STATE_DIR": str(tmp_path / "state"), "STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    (made.state / FOLDER).mkdir(parents=True)
    file, history = HistoryFile(made.state / FOLDER), History()
    file.load("a", 0.0, NOW)
    anna = PeerReport(KEY, "Anna", "", 0, 0, 0.0)
    for ago in (60, 120, 2 * HOUR, 3 * DAY, 100 * DAY):
        history.on_peer(anna, (1000, 10), NOW - ago)
    history.on_peer(replace(anna, public_key=OTHER, name=EVIL), (5, 5), NOW)
    one = Connection(KEY, "Anna", "192.0.2.1:5", 0.0, NOW - HOUR, 600.0, NOW - HOUR + 600, 0.0, 3000, 30)
    history.on_ended(one)
    history.on_connection(replace(one, since_unix_s=NOW - 60))
    history._batch.stages[int(NOW) // 60 * 60, "tun", 0] = 100, 7, 1
    file._commit(history.take(0.0), None)
    file._close()
    (made.run / "status").mkdir(parents=True)
    (made.run / "status" / LIFE).write_text("a")
    return made


def test_a_peer_by_minute_and_hour_with_its_connections(environment: Environment) -> None:
    found = shown.of_peer(environment, "anna", NOW)
    assert (found["rx_bytes"], found["tx_bytes"]) == (5000, 50)
    assert sum(row["rx_bytes"] for row in found["minutes"]) == 3000
    assert sum(row["rx_bytes"] for row in found["hours"]) == 4000
    assert [each["until_unix_s"] for each in found["connections"]] == [None, NOW - HOUR + 600]
    text = list(shown.lines(found, NOW))
    assert text[0].startswith("Anna (AQEBAQEBAQ): received 4.9 KiB, sent 50 B, since 20")
    assert "·" in text[2]
    assert text[-1].endswith(", 10 min, 192.0.2.1:5, received 2.9 KiB, sent 30 B")
    assert all(len(line) <= 80 for line in text[:7])


def test_what_an_end_of_the_gateway_cut_ended_when_it_was_last_heard(environment: Environment) -> None:
    def ends() -> list[float | None]:
        return [each["until_unix_s"] for each in shown.of_peer(environment, "anna", NOW)["connections"]]

    heard = NOW - HOUR + 600
    (environment.run / "status" / LIFE).write_text("b")  # up again, and nothing is written yet
    assert ends() == [heard, heard]
    (environment.run / "status" / LIFE).unlink()
    assert ends() == [None, heard]
    shutil.rmtree(environment.run)
    assert ends() == [heard, heard]


def test_a_stage_and_a_month(environment: Environment) -> None:
    found = shown.of_stage(environment, "tun-service", NOW)
    assert [list(row.values())[1:] for row in found["minutes"]] == [[0, 100, 7, 1]]
    assert "dropped" in "\n".join(shown.lines(found, NOW))
    month = shown.usage(environment, None, NOW)
    assert [(peer["name"], peer["rx_bytes"]) for peer in month["peers"]] == [("Anna", 4000), (EVIL, 5)]
    assert all(flow.columns(line) <= 80 for line in shown.usage_lines(month, 80))
    assert list(shown.usage_lines(month))[-1] == "     3.9 KiB         45 B  all"
    assert shown.usage(environment, "2019-01", NOW)["peers"] == []


def test_the_json_is_as_the_schemas_say(environment: Environment) -> None:
    schemas.check(shown.usage(environment, None, NOW), "usage")
    for found in (shown.of_peer(environment, encode_key(KEY), NOW), shown.of_stage(environment, "tun", NOW)):
        schemas.check(found, "history")
        assert schemas.misfit({**found, "more": 1}, schemas.schema("history"))


def test_csv_holds_no_formula_and_one_row_for_each(environment: Environment) -> None:
    rows = list(csv.DictReader(io.StringIO(shown.as_csv(shown.usage(environment, None, NOW)))))
    assert [row["name"] for row in rows] == ["Anna", f"'{EVIL}"]
    rows = list(csv.DictReader(io.StringIO(shown.as_csv(shown.of_peer(environment, "Anna", NOW)))))
    assert {row["period"] for row in rows} == {"minute", "hour"}


def test_commands_say_it_clean_or_say_what_is_wrong(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagewire_cli.operands.need_root", lambda: None)
    variables = {"STAGEWIRE_STATE_DIR": str(environment.state.parent), "STAGEWIRE_RUN_DIR": str(environment.run.parent)}

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, list(words), env=variables)
        return done.exit_code, done.output

    status, text = run("usage", "wg0", "--month", "2026-11")
    assert (status, all(line.isprintable() for line in text.splitlines())) == (0, True)
    assert json.loads(run("history", "Anna", "-i", "wg0", "--json")[1])["rx_bytes"] == 5000
    assert run("history", "--stage", "tun", "-i", "wg0")[0] == 0
    for words, said in (
        (("history", "Zoe", "-i", "wg0"), "no peer has the name or key 'Zoe'; `stagewire usage`"),
        (("history", "Anna", "-i", "wg9"), "there is no history of wg9 yet"),
        (("history", "--stage", "x", "-i", "wg0"), "'x' is no stage"),
        (("usage", "wg0", "--month", "May"), "--month must be a month such as 2026-11, not 'May'"),
    ):
        status, text = run(*words)
        assert (status, len(text.splitlines())) == (1, 1)
        assert said in text
    assert run("usage", "wg0", "--json", "--csv")[0] == 2


def test_a_damaged_file_and_a_link_are_refused_in_a_line(environment: Environment, tmp_path: Path) -> None:
    file = environment.state / FOLDER / NAME
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(Failed, match="file is not a database"):
        shown.usage(environment, None, NOW)
    file.unlink()
    file.symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_bytes(b"")
    with pytest.raises(Failed, match="is no regular file"):
        shown.usage(environment, None, NOW)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (
            """DROP TABLE months; CREATE VIEW months AS
                WITH RECURSIVE t (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM t)
                SELECT id AS at, 1 AS peer, 1 AS rx, 1 AS tx FROM t""",
            "its tables are not those of a history",
        ),
        ("INSERT INTO peers VALUES (9, 1152921504606846976, 'x', 0, 0, 0, 0, 0)", "a public key is none"),
        ("UPDATE peers SET rx = 'many'", "rx_bytes is 'many'"),
        ("UPDATE peers SET since = 1e300", "since_unix_s is 1e"),
        ("UPDATE minutes SET rx = -1", "rx_bytes is -1"),
        ("UPDATE connections SET until = 9e999", "until_unix_s is inf"),
        ("UPDATE connections SET at = x'ff'", "holds nonsense"),
    ],
)
def test_what_a_hostile_service_has_left_is_refused_in_a_line(
    environment: Environment, planted: str, said: str
) -> None:
    with closing(sqlite3.connect(environment.state / FOLDER / NAME)) as db:
        db.executescript(planted)
    with pytest.raises(Failed, match=said):
        shown.of_peer(environment, "anna", NOW)


def test_bars() -> None:
    assert shown.spark([0, 1, 4, 8]) == "·▁▄█"
    assert shown.spark([]) == ""
    assert shown.spark([1]) == "▅"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as another user")
def test_root_reads_as_the_owner_and_follows_no_link_that_the_owner_could_not(monkeypatch: pytest.MonkeyPatch) -> None:
    uid, was = 60_999, os.geteuid()
    readers: list[int] = []
    connect = sqlite3.connect

    def noted(*words: Any, **more: Any) -> sqlite3.Connection:
        readers.append(os.geteuid())
        made: sqlite3.Connection = connect(*words, **more)
        return made

    monkeypatch.setattr(sqlite3, "connect", noted)
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o711)
        environment = Environment.read({"STAGEWIRE_STATE_DIR": top, "STAGEWIRE_RUN_DIR": top}, "wg0")
        folder = environment.state / FOLDER
        folder.mkdir(parents=True)
        file = HistoryFile(folder)
        file.load("a", 0.0, NOW)
        file._close()
        for path in (folder, folder / NAME):
            os.chown(path, uid, uid)
        readers.clear()
        assert shown.usage(environment, None, NOW)["peers"] == []
        (Path(top) / "secret").write_text("x")
        (Path(top) / "secret").chmod(0o600)
        (folder / NAME).unlink()
        os.link(Path(top) / "secret", folder / NAME)
        with pytest.raises(Failed, match="Permission denied"):
            shown.usage(environment, None, NOW)
    assert (readers, os.geteuid()) == ([uid], was)


def test_no_core_file_gets_keys_that_the_command_has_read(environment: Environment) -> None:
    """As where fs.suid_dumpable isn't 0: the kernel shows memory again at a change of uid."""
    prctl, get_dumpable, set_dumpable = ctypes.CDLL(None).prctl, 3, 4
    before = prctl(get_dumpable)
    try:
        prctl(set_dumpable, 1)
        with shown.opened(environment):
            assert prctl(get_dumpable) == 0
            prctl(set_dumpable, 1)
        assert prctl(get_dumpable) == 0
    finally:
        prctl(set_dumpable, before)
