"""`stagewire backup` and `restore`: all comes back on another host, or one line says why not and nothing is changed."""

import json
import os
import socket
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.services.commands import folders, stagewire
from tests.services.disks import full_disk, small_disk

from stagewire.history import FOLDER, NAME, TABLES, VERSION
from stagewire.stages import UID_RANGES
from stagewire_cli import sealed
from stagewire_cli.failures import Failed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="these commands need root")

PASSPHRASE = "correct horse"


class Host:
    """The folders of one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.conf = folder / "wg0.conf"
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(f"{PASSPHRASE}\n")
        self.stamps = folder / "state" / "wg0" / "timestamps"

    def run(self, *words: str | Path, status: int = 0) -> str:
        secret = ("--passphrase-file", self.passphrase) if words[0] in {"backup", "restore"} else ()
        done = stagewire(*words, *secret, env=folders(self.folder))
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    def restore(self, backup: Path, *words: str, status: int = 0) -> str:
        return self.run("restore", backup, "--as", str(self.conf), *words, status=status)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path / "one")
    made.run("init", made.conf, "--endpoint", "203.0.113.201", "--network", "10.8.0.0/24")
    made.run("peer", "add", "phone", "-i", made.conf)
    made.stamps.parent.mkdir(parents=True, exist_ok=True)
    made.stamps.write_bytes(b"stamps\0")
    return made


@pytest.fixture
def backup(host: Host) -> Path:
    path = host.folder / "backup"
    host.run("backup", host.conf, "--output", path)
    return path


def test_all_comes_back_on_another_host_with_what_differs_there(host: Host, backup: Path, tmp_path: Path) -> None:
    other = Host(tmp_path / "other")
    said = other.restore(backup)
    assert other.conf.read_bytes() == host.conf.read_bytes()
    assert other.stamps.read_bytes() == b"stamps\0"
    assert {stat.S_IMODE(each.stat().st_mode) for each in (backup, other.conf, other.stamps)} == {0o600}
    assert "with 1 peer\n" in said
    assert "203.0.113.201" in said
    assert "no address of this host" in said
    assert "the same private key" not in said


def audited(host: Host) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (host.folder / "state" / "wg0" / "audit").read_text().splitlines()]


def test_a_second_file_with_the_same_key_is_said(host: Host, backup: Path) -> None:
    said = host.run("restore", backup, "--as", str(host.folder / "wg1.conf"))
    assert f"note: {host.conf} has the same private key: never let both be up at the same time" in said


def test_a_taken_port_is_said(host: Host, backup: Path, tmp_path: Path) -> None:
    text = host.conf.read_text()
    port = int(next(line for line in text.splitlines() if line.startswith("ListenPort")).split("=")[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        with suppress(OSError):  # then another program of this host has it
            taken.bind(("", port))
        said = Host(tmp_path / "other").restore(backup)
    assert f"note: UDP port {port} is taken here, by another interface or program" in said


def test_the_audit_has_what_is_done_while_the_interface_is_down(host: Host, backup: Path, tmp_path: Path) -> None:
    host.run("peer", "set", "phone", "-i", host.conf, "--quota", "50G")
    host.run("peer", "remove", "phone", "-i", host.conf)
    assert [line["what"] for line in audited(host)] == ["peer add", "backup", "peer set", "peer remove"]
    assert audited(host)[1]["changes"] == [f"to {backup}"]
    assert "Quota 50G" in audited(host)[3]["changes"][0]
    assert host.conf.read_text().partition("PrivateKey = ")[2][:44] not in json.dumps(audited(host))
    other = Host(tmp_path / "other")
    other.restore(backup)
    assert [line["what"] for line in audited(other)] == ["peer add", "restore"]


def test_what_an_earlier_key_service_has_left_goes_on_while_the_interface_is_down(host: Host, backup: Path) -> None:
    """Each life of an interface may have other uids."""
    earlier = UID_RANGES[0][1]
    for each in (host.stamps.parent, host.stamps.parent / "audit", host.stamps):
        os.chown(each, earlier, earlier)
    host.run("peer", "rename", "phone", "tablet", "-i", host.conf)
    host.restore(backup, "--force")
    assert [line["what"] for line in audited(host)][-2:] == ["peer rename", "restore"]
    assert {each.stat().st_uid for each in (host.stamps.parent, host.stamps)} == {earlier}
    os.chown(host.stamps.parent / "audit", earlier + 1, -1)
    said = host.run("peer", "rename", "phone", "tablet", "-i", host.conf, status=1)
    assert f"audit belongs to user {earlier + 1}; remove it; nothing is changed" in said


def test_without_room_for_the_audit_nothing_is_changed(host: Host) -> None:
    (host.stamps.parent / "audit").unlink()
    (host.stamps.parent / "audit").mkdir()
    before = host.conf.read_bytes()
    assert "nothing is changed" in host.run("peer", "rename", "phone", "tablet", "-i", host.conf, status=1)
    assert host.conf.read_bytes() == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A full disk. `ballast` fills it."""
    with small_disk(tmp_path / "disk") as folder, full_disk(folder):
        yield folder


def left(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file() and each.name not in {"ballast", "passphrase"}]


@pytest.mark.parametrize("full", ["state", "conf"])
def test_a_full_disk_takes_a_backup_back_wholly_or_not_at_all(
    full: str, host: Host, backup: Path, disk: Path, tmp_path: Path
) -> None:
    """Never a configuration without its timestamps, and never a line that says so."""
    other = Host(tmp_path / "other")
    if full == "state":
        (other.folder / "state").symlink_to(disk)
    else:
        other.conf = disk / "wg0.conf"
    said = other.restore(backup, status=1)
    assert said.count("\n") == 1
    assert "No space left on device; nothing is changed" in said
    assert (left(other.folder), left(disk)) == ([], [])
    other.conf = other.folder / "wg0.conf"
    other.conf.write_text(host.conf.read_text().replace("10.8.0.2/32", "10.8.0.9/32"))
    before = other.conf.read_bytes()
    if full == "state":
        other.restore(backup, "--force", status=1)
        assert left(other.folder) == [other.conf]
        assert other.conf.read_bytes() == before
    (disk / "ballast").unlink()
    assert "restored" in other.restore(backup, "--force")
    assert not [each for each in other.conf.parent.iterdir() if each.name.startswith(".")], (
        "no copy of a key is forgotten"
    )
    assert other.conf.read_bytes() == host.conf.read_bytes()
    assert sorted(each.name for each in left(other.conf.parent))[-2:] == ["wg0.conf", "wg0.conf.bak"]


def test_an_audit_without_room_takes_a_restored_file_back(backup: Path, tmp_path: Path) -> None:
    other = Host(tmp_path / "other")
    (other.stamps.parent / "audit").mkdir(parents=True)
    other.conf.write_text("[Interface]\n")
    assert "nothing is changed" in other.restore(backup, "--force", status=1)
    assert left(other.folder) == [other.conf]
    assert other.conf.read_text() == "[Interface]\n"


@pytest.mark.parametrize("words", ["backup", "init", "import"])
def test_a_full_disk_gets_no_part_of_a_file(words: str, host: Host, disk: Path) -> None:
    new = disk / "new.conf"
    commands: dict[str, tuple[str | Path, ...]] = {
        "backup": ("backup", host.conf, "--output", new),
        "init": ("init", new, "--endpoint", "203.0.113.201", "--network", "10.9.0.0/24"),
        "import": ("import", host.conf, "-i", new, "--endpoint", "203.0.113.201:51999"),
    }
    said = host.run(*commands[words], status=1)
    assert "No space left on device" in said
    assert said.count("\n") == 1
    assert left(disk) == []
    assert words != "backup" or "backup" not in [line["what"] for line in audited(host)]


def test_the_history_comes_along_if_wanted(host: Host, tmp_path: Path) -> None:
    folder = host.folder / "state" / "wg0" / FOLDER
    folder.mkdir(mode=0o700)
    with closing(sqlite3.connect(folder / NAME)) as db, db:
        db.executescript(f"{TABLES} PRAGMA user_version = {VERSION};")
        db.execute("INSERT INTO months VALUES (0, 1, 2, 3)")
    for number, (words, kept) in enumerate([((), False), (("--history",), True)]):
        path, other = tmp_path / f"backup{number}", Host(tmp_path / f"other{number}")
        host.run("backup", host.conf, "--output", path, *words)
        other.restore(path)
        restored = other.folder / "state" / "wg0" / FOLDER / NAME
        assert restored.exists() == kept
    assert restored.stat().st_uid == restored.parent.stat().st_uid
    with closing(sqlite3.connect(restored)) as db:
        assert db.execute("SELECT * FROM months").fetchall() == [(0, 1, 2, 3)]


def test_no_secret_can_be_read_in_it(host: Host, backup: Path) -> None:
    data = backup.read_bytes()
    for line in host.conf.read_text().splitlines():
        key, _, value = line.partition(" = ")
        assert not value or value.encode() not in data, key
    assert b"10.8.0" not in data


def test_two_backups_of_the_same_differ(host: Host, backup: Path) -> None:
    host.run("backup", host.conf, "--output", host.folder / "again")
    one, two = ((host.folder / name).read_bytes() for name in ("backup", "again"))
    assert one.partition(b"\n")[0] != two.partition(b"\n")[0]
    assert one[-64:] != two[-64:]


def test_another_file_stays_unless_it_is_forced(host: Host, backup: Path) -> None:
    host.run("peer", "add", "tablet", "-i", host.conf)
    edited = host.conf.read_bytes()
    said = host.restore(backup, status=1)
    assert "--force replaces it" in said
    assert "- peer tablet" in said
    assert host.conf.read_bytes() == edited
    host.stamps.write_bytes(b"newer")
    said = host.restore(backup, "--force")
    assert b"tablet" not in host.conf.read_bytes()
    assert (host.folder / "wg0.conf.bak").read_bytes() == edited
    assert host.stamps.read_bytes() == b"newer", "older stamps would let replays in"
    assert "stays as it is" in said


def test_a_wrong_passphrase_changes_nothing(backup: Path, tmp_path: Path) -> None:
    other = Host(tmp_path / "other")
    other.passphrase.write_text("another one\n")
    said = other.restore(backup, status=1)
    assert said == f"stagewire: {backup}: does not open: the passphrase is wrong, or the file is cut short or changed\n"
    assert not other.conf.exists()
    assert not other.stamps.exists()


def test_an_existing_file_is_not_overwritten(host: Host, backup: Path) -> None:
    before = backup.read_bytes()
    assert "exists already, and stays as it is" in host.run("backup", host.conf, "--output", backup, status=1)
    assert backup.read_bytes() == before


def test_a_short_passphrase_and_no_file_are_said(host: Host) -> None:
    host.passphrase.write_text("short\n")
    assert "at least 8 letters" in host.run("backup", host.conf, "--output", host.folder / "b", status=1)
    assert not (host.folder / "b").exists()
    assert "No such file" in host.run("restore", host.folder / "none", status=1)


SEALED = sealed.seal(b"content", PASSPHRASE)
HEAD, _, REST = SEALED.partition(b"\n")


def changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(HEAD), **fields}).encode() + b"\n" + REST


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no backup"),
        (REST, "is no backup"),
        (b"[Interface]\n", "is no backup"),
        (b"[" * 10_000 + b"\n", "is no backup"),
        (b'{"stagewire backup": true}\n', "is no backup"),
        (b'{"stagewire backup": 1}\n', "is damaged in its first line"),
        (changed(salt=5), "is damaged in its first line"),
        (changed(nonce="AA=="), "is damaged in its first line"),
        (changed(**{"stagewire backup": 2}), "is of version 2.*use a newer stagewire"),
        (changed(more="x"), "does not open"),
        (HEAD + b"\n", "does not open"),
        *((SEALED[:at], "does not open") for at in (len(HEAD) + 2, -len(REST) // 2, -16, -1)),
        *((SEALED[:at], "is no backup") for at in (1, len(HEAD) // 2)),
        (SEALED[:-1] + bytes([SEALED[-1] ^ 1]), "does not open"),
    ],
    ids=map(str, range(18)),  # the data are random
)
def test_any_other_file_is_refused_in_a_line(data: bytes, why: str) -> None:
    with pytest.raises(Failed, match=why) as failed:
        sealed.unseal(data, PASSPHRASE)
    assert "\n" not in str(failed.value)


def test_what_was_sealed_is_opened() -> None:
    assert sealed.unseal(SEALED, PASSPHRASE) == b"content"


def test_a_file_that_differs_in_peers_out_of_use_is_said(host: Host, tmp_path: Path) -> None:
    host.run("peer", "add", "tablet", "-i", host.conf)
    host.run("peer", "disable", "phone", "tablet", "-i", host.conf)
    path = host.folder / "later"
    host.run("backup", host.conf, "--output", path)
    before = host.conf.read_text()
    assert "with 2 peers, 2 of them out of use" in host.restore(path)
    host.run("peer", "remove", "tablet", "-i", host.conf)
    assert "+ peer tablet" in host.restore(path, status=1)
    host.conf.write_text(before)
    host.run("peer", "enable", "phone", "-i", host.conf)
    assert "is out of use" in host.restore(path, status=1)
    host.conf.write_text(f"{before}\n# a note\n")
    assert "stays as it is: only its comments and blank lines differ" in host.restore(path)
    assert host.conf.read_text().endswith("# a note\n")
    assert "restored" in host.restore(path, "--force")
    assert host.conf.read_text() == before
