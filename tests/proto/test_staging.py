"""What waits for sessions is bounded for all peers of a worker together, and what is taken of the bound comes back."""

import random

import pytest
from tests.proto.byhand import PEER, T, facts, install, new_session, v4, worker

from stagewire.proto import staging
from stagewire.proto.constants import MAX_STAGED_PACKETS
from stagewire.proto.staging import Room, Staged
from stagewire.reasons import Reasons

ROOM = 20_000


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(staging, "MAX_BYTES", ROOM)
    return Room()


def test_many_peers_share_what_room_there_is(room: Room) -> None:
    drops = Reasons()
    peers = [Staged(room, drops) for _ in range(50)]
    for peer in peers:
        peer.add([bytes(936)] * 10)  # 1,000 with what Python takes
    assert [len(peer) for peer in peers] == [10, 10] + [1] * 48
    assert drops == {"staging_room_full": 480 - 48}
    peers[1].add([b"\1" * 936])  # its own oldest go for it, whoever took the room
    assert peers[1].take() == [b"\1" * 936]
    peers[7].add([b"\1" * 936])
    assert peers[7].take() == [b"\1" * 936]


def test_what_is_taken_of_it_is_what_waits(room: Room) -> None:
    drops = Reasons()
    rng, peers, added, taken = random.Random(4), [Staged(room, drops) for _ in range(5)], 0, 0
    for _ in range(2000):
        peer = rng.choice(peers)
        if rng.random() < 0.2:
            taken += len(peer.take())
        else:
            packets = [bytes(rng.choice([20, 1400]))] * rng.choice([1, 3, 2 * MAX_STAGED_PACKETS])
            peer.add(packets)
            added += len(packets)
        assert 0 <= room.used <= ROOM + len(peers) * 1500
        assert max(map(len, peers)) <= MAX_STAGED_PACKETS
        assert added == taken + sum(map(len, peers)) + sum(drops.values())
    assert drops.keys() == {"staging_full", "staging_room_full"}
    for peer in peers:
        peer.take()
    assert room.used == 0


@pytest.mark.parametrize("way", ["session", "gave up", "gone", "elsewhere"])
def test_room_comes_back_whatever_becomes_of_the_packets(way: str) -> None:
    one = worker()
    one.outbound([v4("10.9.9.9", "10.1.0.5")] * 10, T)
    assert one._room.used > 0
    match way:
        case "session":
            install(one, new_session())
        case "gave up":
            one.handshake_gave_up(PEER, T)
        case "gone":
            one.remove_peer(PEER)
        case "elsewhere":
            one.set_peer(facts(PEER, "10.1.0.0/16", home=False), T)
    assert one._room.used == 0
