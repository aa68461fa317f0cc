"""Which peers had sessions, when key-service and their worker die together."""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from tests.proto.far import PLACE as ELSEWHERE
from tests.proto.far import PSK, WALL, T, new_handshaker
from tests.services.house import PLACE, House
from tests.services.surroundings import PATIENCE, surroundings
from tests.services.test_announce import key, made

from key_service.registry import Registry
from key_service.remembered import NAME, Remembered
from lab.wait import until
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.events import SendHandshake
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.pace import Pace

HERE = bytes([4]) + bytes(43)


@pytest.fixture
def house() -> Iterator[House]:
    with surroundings("memory") as around:
        yield House(around)


def initiations(house: House) -> list[bytes]:
    """Where to, of all that have come."""
    found = []
    while house.handshakes.poll(50):
        place, message = trains.unpack_handshake_untrusted(house.handshakes.recv(), boot_time())
        if message[0] == c.TYPE_INITIATION:
            found.append(place)
    return found


def test_the_next_life_initiates_for_a_worker_that_died_with_it(house: House) -> None:
    """The peer's place was learnt; nobody has configured it."""
    house.shake_hands()
    house.works()
    memory = house.environment.run / "key" / NAME
    until(lambda: memory.exists() and memory.stat().st_size > 0, PATIENCE, "the memory")
    initiations(house)
    house.device.kill()
    house.key.kill()
    house.device = house.around.start("device-service", "--number", "0")
    house.key = house.around.start("key-service")
    assert PLACE in until(lambda: initiations(house), PATIENCE, "an initiation")


def test_a_session_that_lives_on_is_left_alone(house: House) -> None:
    house.shake_hands()
    house.works()
    memory = house.environment.run / "key" / NAME
    until(lambda: memory.exists() and memory.stat().st_size > 0, PATIENCE, "the memory")
    initiations(house)
    house.restart_key_service()
    house.works()
    assert initiations(house) == []


def life(folder: Path, configured: str = "", peers: int = 3) -> tuple[Remembered, Handshaker]:
    peer = f"Endpoint = {configured}" if configured else ""
    registry, handshaker = Registry(made(peers=peers, peer=peer)), new_handshaker()
    for public_key in registry.peers:
        handshaker.add_peer(public_key, PSK, 0).endpoint = ELSEWHERE if configured else None
    return Remembered(folder, registry, handshaker), handshaker


def test_only_peers_with_sessions_are_remembered_with_their_places(tmp_path: Path) -> None:
    before, handshaker = life(tmp_path)
    for number in (1, 2):
        handshaker.peers[key(number)].endpoint = HERE
    handshaker.adopt_session(key(1), 5 << 8, None, 0)
    before.look()
    after, handshaker = life(tmp_path)
    assert after.recall() == [key(1)]
    assert [peer.session_lost for peer in handshaker.peers.values()] == [True, False, False]
    assert handshaker.peers[key(1)].endpoint == HERE
    handshaker.adopt_session(key(1), 5 << 8, None, 0)
    assert not handshaker.peers[key(1)].session_lost


def test_what_the_operator_set_since_precedes(tmp_path: Path) -> None:
    before, handshaker = life(tmp_path, "192.0.2.1:1")
    handshaker.peers[key(1)].endpoint = HERE
    handshaker.adopt_session(key(1), 5 << 8, None, 0)
    before.look()
    for configured, expected in (("192.0.2.1:1", HERE), ("192.0.2.2:2", ELSEWHERE)):
        after, handshaker = life(tmp_path, configured)
        after.recall()
        assert handshaker.peers[key(1)].endpoint == expected
        assert handshaker.peers[key(1)].session_lost


def test_ten_thousand_peers_take_turns(tmp_path: Path) -> None:
    """Their places were learnt, and none of them answers."""
    before, handshaker = life(tmp_path, peers=10_000)
    for number, peer in enumerate(handshaker.peers.values(), start=1):
        peer.endpoint = HERE
        handshaker.adopt_session(peer.public_key, number << 8, None, 0)
    before.look()
    after, handshaker = life(tmp_path, peers=10_000)
    after.recall()
    assert sum(peer.session_lost for peer in handshaker.peers.values()) == 10_000
    sent = [handshaker.worker_up(0, T, WALL)]
    sent += [handshaker.act(T + step / 100, WALL) for step in range(1, 200)]
    begun = [[each.public_key for each in effects if isinstance(each, SendHandshake)] for effects in sent]
    width = int(Pace.WINDOW * 100)
    assert max(sum(map(len, begun[at : at + width])) for at in range(len(begun))) == Pace.AT_ONCE
    assert len({*chain(*begun)}) == 4 * Pace.AT_ONCE  # in 2 s, each once


def test_what_changed_is_written_at_the_next_look(tmp_path: Path) -> None:
    before, handshaker = life(tmp_path)
    for number in (1, 2):
        handshaker.adopt_session(key(number), number << 8, None, 0)
        handshaker.peers[key(number)].endpoint = HERE
    before.look()
    handshaker.peers[key(1)].endpoint = ELSEWHERE
    handshaker.remove_peer(key(2))
    before.look()
    after, handshaker = life(tmp_path)
    after.recall()
    assert handshaker.peers[key(1)].endpoint == ELSEWHERE
    assert not handshaker.peers[key(2)].session_lost


def test_an_old_or_broken_file_counts_for_nothing(tmp_path: Path) -> None:
    before, handshaker = life(tmp_path)
    handshaker.peers[key(1)].endpoint = HERE
    handshaker.adopt_session(key(1), 5 << 8, None, 0)
    before.look()
    path = tmp_path / NAME
    good = path.read_bytes()
    for broken in (good[:-1], bytes([good[0] ^ 1]) + good[1:], b"", os.urandom(len(good))):
        path.write_bytes(broken)
        after, handshaker = life(tmp_path)
        after.recall()
        assert not handshaker.peers[key(1)].session_lost
    path.write_bytes(good)
    os.utime(path, (0, path.stat().st_mtime - c.REJECT_AFTER_TIME - 1))
    after, handshaker = life(tmp_path)
    after.recall()
    assert not handshaker.peers[key(1)].session_lost
    path.unlink()
    os.mkfifo(path)
    after.recall()
