"""A stage left pipes, folders or links under every name in its folder: each door of its successor opens all the same."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.services.house import House
from tests.services.surroundings import surroundings
from tests.services.test_announce import key
from tests.services.test_remembered import HERE, life
from tests.speakers import admission

from host_service import sockets
from host_service.ledger import Ledger, LinkMade
from key_service import door_wire, in_force, journal
from key_service.clock import Clock
from key_service.timestamps import TimestampStore
from stagewire import files, logs
from stagewire.config import accepted
from stagewire.config.accepted import Accepted
from stagewire.control.socket_door import Door
from stagewire.linux import privileges
from stagewire.loop import Loop
from stagewire.pipe.names import SOCKETS
from stagewire.process import worker_count
from stagewire.process.hand_down import Bequest

PLANTS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": lambda path: (path / "deep").mkdir(parents=True),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "huge": lambda path: os.truncate(os.open(path, os.O_WRONLY | os.O_CREAT), 1 << 40),
}


@pytest.fixture(params=PLANTS)
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            PLANTS[request.param](tmp_path / name)
        return tmp_path

    return make


def test_the_wanted_number_of_workers(plant: Callable[..., Path]) -> None:
    run = plant("key/workers", "key/workers.new")
    assert worker_count.wanted(run, 3) == 3
    worker_count.remember(run, 2, 3)
    assert worker_count.wanted(run, 3) == 2


def test_the_accepted_text(plant: Callable[..., Path]) -> None:
    run = plant("key/accepted", "key/accepted.new")
    assert accepted.read(run) is None
    kept = Accepted.first("text")
    files.put(kept.prepare(run, os.geteuid(), os.getegid()), accepted.path(run))
    assert accepted.read(run) == kept


def test_the_journal(plant: Callable[..., Path]) -> None:
    kept = Accepted.first("text")
    run = plant(f"key/live-{kept.generation}", "key/live-other", f"key/live-{kept.generation}.new")
    store = in_force.journal_of(run, kept)
    assert journal.records(store) == []
    list(journal.Journal(store).append(iter([b"record"])))
    assert journal.records(store) == [b"record"]


def test_the_door_for_reload_and_the_clock(plant: Callable[..., Path]) -> None:
    run = plant("key/reload", "key/.reload", "key/clock")
    door_wire.listen(run).close()
    assert Clock(run / "key", logs.Log()).anchor is None


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives the file to key-service")
def test_the_time_stamps(plant: Callable[..., Path]) -> None:
    path = plant("key/timestamps", "key/timestamps.new") / "key/timestamps"
    removed = privileges.give(path, "key")
    store = TimestampStore(path)
    assert removed or store.lost
    store.store(bytes(32), "initiation", b"\1" * 12)
    assert TimestampStore(path).latest(bytes(32), "initiation") == b"\1" * 12


def test_who_had_sessions(plant: Callable[..., Path]) -> None:
    folder = plant("key/remembered", "key/remembered.new") / "key"
    before, handshaker = life(folder)
    before.recall()
    handshaker.peers[key(1)].endpoint = HERE
    handshaker.adopt_session(key(1), 5 << 8, None, 0)
    before.look()
    after, handshaker = life(folder)
    after.recall()
    assert handshaker.peers[key(1)].session_lost


def test_the_port_that_was_free(plant: Callable[..., Path]) -> None:
    file = plant("host/port", "host/port.new") / "host/port"
    assert sockets._remembered(file) == 0
    sockets._remember(file, 4711)
    assert sockets._remembered(file) == 4711


def test_the_ledger(plant: Callable[..., Path]) -> None:
    path = plant("host/ledger", "host/ledger.new") / "host/ledger"
    Ledger(path).do(LinkMade("wg0", 1))
    assert Ledger(path).operations() == [LinkMade("wg0", 1)]


def test_sockets(plant: Callable[..., Path]) -> None:
    run = plant("tun/spare.0", "host/sockets")
    loop = Loop()
    Bequest(loop, run / "tun", 0).close()
    Door(loop, run / "host/sockets", lambda *_: None, lambda _: {}, admission(SOCKETS)).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives the file to key-service")
@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")], ids=["pipe", "link"])
def test_lost_time_stamps_are_said_and_stop_nobody(kind: Callable[[Path], None]) -> None:
    with surroundings("planted") as around:
        house = House(around)
        house.shake_hands()
        assert "time stamps are lost" not in house.key.log
        path = around.directory / "state/wg0/timestamps"
        house.key.kill()
        path.unlink()
        kind(path)
        house.key = around.start("key-service")
        house.wait_for_worker()
        (line,) = (line for line in house.key.log.splitlines() if "time stamps are lost" in line)
        assert f'file={path} reason="it is no regular file"' in line
        house.shake_hands()
        house.works()
