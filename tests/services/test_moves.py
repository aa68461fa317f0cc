"""How peers move between workers: their new session before the old one goes, a few at a time, whoever dies meanwhile."""

import random

import pytest
from tests.proto.far import PLACE, WALL, stamp
from tests.services.town import WIRE, Town

from key_service.homes import home_of
from key_service.moves import (
    AGAIN,
    GRACE,
    LINGER,
    NUDGES,
    SETTLE_WITHIN,
    SETTLED,
    SHAKE_WITHIN,
    Carry,
    Count,
    MoveIn,
    MoveOut,
    Moves,
)
from stagewire.proto.handshaker import INSTALL_TIMEOUT
from stagewire.proto.pace import Pace


def movers(town: Town, workers: int) -> list[bytes]:
    return [key for key in town.fars if home_of(key, workers) != home_of(key, town.moves.wanted)]


def one_mover(*, sessions: bool = True) -> tuple[Town, bytes]:
    """Of 1 worker and of 2, both of which run; who stays is there as well."""
    town = Town(8, 1, sessions=sessions)
    moving = movers(town, 2)
    for key in moving[1:]:
        town.handshaker.remove_peer(key)
        town.moves.forget(key)
        del town.fars[key]
    assert len(town.fars) > 1
    return town, moving[0]


def grow(town: Town) -> float:
    """Wants a second worker, which is up at once; returns when peers may begin to move."""
    town.scale(2)
    town.start(1)
    return town.now + SETTLED


def swapped(town: Town, key: bytes) -> float:
    """When the packets of this peer, and of no other, began to go to worker 1."""
    ((when, public_key, worker),) = town.swaps
    assert (public_key, worker) == (key, 1)
    return when


# --- one peer ----------------------------------------------------------------------------------------------


def test_a_peer_with_a_session_moves_when_the_new_one_may_send() -> None:
    town, key = one_mover()
    begin = grow(town)
    assert town.moves.moving == 1
    town.run(SETTLED - 0.001)
    assert town.moves.homes(key) == (0,)
    town.run(0.001 + 1.5 * WIRE)
    assert town.begun == [(begin + WIRE, key)]
    assert town.moves.homes(key) == (1, 0)
    assert town.routes[key] == 0  # until it is installed
    town.run(2 * WIRE)
    assert swapped(town, key) == pytest.approx(begin + 3 * WIRE)
    assert town.moves.homes(key) == (1, 0)
    assert town.handshaker.peers[key].has_session(0)
    town.run(LINGER + WIRE)
    assert town.moves.homes(key) == (1,)
    assert not town.handshaker.peers[key].has_session(0)
    assert town.handshaker.peers[key].has_session(1)
    assert town.settled()
    assert town.moves.next_deadline() is None


def test_a_peer_that_only_sends_is_nudged_to_use_its_new_session() -> None:
    town, key = one_mover()
    begin = grow(town)
    town.run(3)
    assert [(worker, keys) for _, worker, keys in town.nudged] == [(1, (key,))] * NUDGES
    first, last = town.nudged[0][0], town.nudged[-1][0]
    assert begin + 3 * WIRE < first < last < begin + 3 * WIRE + LINGER


def test_both_homes_of_a_moving_peer_may_deliver_its_packets_and_then_one_alone() -> None:
    town, key = one_mover()
    grow(town)
    town.run(SETTLED - 0.001)
    assert town.sources[key] == {0}
    town.run(0.001)
    assert town.sources[key] == {0, 1}
    town.run(3 * WIRE + LINGER - 0.001)
    assert town.sources[key] == {0, 1}
    town.run(2 * WIRE)
    assert town.sources[key] == {1}


def test_a_worker_that_was_left_may_deliver_until_its_last_packets_have_arrived() -> None:
    town, key = one_mover()
    grow(town)
    town.run(SETTLED + 3 * WIRE + LINGER)
    assert town.moves.homes(key) == (1,)
    assert town.moves.others(key) == (0,)  # whatever makes key-service tell the routes again meanwhile
    town.scale(1)  # and the peer may leave again
    town.run(0)
    assert town.moves.others(key) == (0,)
    town.run(WIRE)
    assert town.moves.others(key) == ()


@pytest.mark.parametrize("dead", [0, 1])
@pytest.mark.parametrize("after", [1.5 * WIRE, 4 * WIRE])
def test_a_worker_that_died_in_a_move_may_deliver_nothing_for_the_peer_later(dead: int, after: float) -> None:
    town, key = one_mover()
    grow(town)
    town.run(SETTLED + after)
    town.kill(dead)
    town.run(LINGER + SHAKE_WITHIN)
    assert town.sources[key] == {town.moves.carrier(key)}


def test_until_its_sessions_are_known_a_peer_may_be_where_an_earlier_key_service_had_it() -> None:
    town = Town(8, 2, sessions=False)
    town.moves.earlier = (1,)
    assert {town.moves.others(key) for key in town.fars if home_of(key, 2) == 1} == {(0,)}
    assert {town.moves.others(key) for key in town.fars if home_of(key, 2) == 0} == {()}
    key = next(key for key in town.fars if home_of(key, 2) == 1)
    town.do(town.moves.claim(1, [(key, 5)]))
    assert town.moves.others(key) == ()


def test_who_stays_hears_of_nothing() -> None:
    town, key = one_mover()
    grow(town)
    town.run(10)
    assert {each for _, each in town.begun} == {each for _, each, _ in town.swaps} == {key}


@pytest.mark.parametrize("why", ["none", "old", "nowhere"])
def test_a_peer_without_a_live_session_moves_at_once(why: str) -> None:
    town, key = one_mover(sessions=why != "none")
    if why == "old":
        town.run(180)
    if why == "nowhere":
        town.handshaker.peers[key].endpoint = None
    begin = grow(town)
    town.run(1)
    assert swapped(town, key) == pytest.approx(begin + WIRE)
    assert town.begun == []
    town.run(LINGER)
    assert town.settled()


def test_a_session_that_may_be_confirmed_any_moment_counts_as_live() -> None:
    town, key = one_mover(sessions=False)
    town.handshaker.adopt_session(key, 0x700, PLACE, 0)
    grow(town)
    town.run(1)
    assert [each for _, each in town.begun] == [key]


def test_a_worker_that_came_early_is_not_moved_to_before_its_number_is_known() -> None:
    town, key = one_mover()
    town.start(1)
    town.run(2)
    town.scale(2)
    town.run(SETTLED - 0.001)
    assert town.moves.homes(key) == (0,)
    town.run(1)
    assert swapped(town, key)


def test_a_peer_that_does_not_answer_moves_anyway() -> None:
    town, key = one_mover()
    town.silent.add(key)
    begin = grow(town)
    town.run(SETTLED + SHAKE_WITHIN)
    assert town.swaps == []
    town.run(2 * WIRE)
    assert swapped(town, key) == pytest.approx(begin + WIRE + SHAKE_WITHIN)
    assert len(town.begun) == 2  # one retransmission


def test_the_answer_to_its_own_initiation_counts() -> None:
    town, key = one_mover()
    town.silent.add(key)
    grow(town)
    town.run(SETTLED + 2 * WIRE)
    town.initiate(key, stamp(10))
    assert town.routes[key] == 0  # it hasn't said that it has the session
    town.run(2 * WIRE)
    assert town.routes[key] == 1


def test_an_answer_of_before_must_have_arrived_before_we_initiate() -> None:
    """Or it might be the later one for the peer, which would keep to a session that goes."""
    town, key = one_mover()
    begin = grow(town)
    town.run(SETTLED - WIRE)
    town.initiate(key, stamp(10))
    town.run(INSTALL_TIMEOUT)
    assert town.begun == []
    assert town.moves.homes(key) == (0, 1)
    town.run(2 * WIRE)
    assert [each for _, each in town.begun] == [key]
    assert town.begun[0][0] == pytest.approx(begin + INSTALL_TIMEOUT)
    town.run(2)
    assert town.settled()


def test_a_removed_peer_moves_no_further() -> None:
    for wait in (0, SETTLED + WIRE / 2, SETTLED + 2 * WIRE, SETTLED + 4 * WIRE):
        town, key = one_mover()
        grow(town)
        town.run(wait)
        town.handshaker.remove_peer(key)
        town.moves.forget(key)
        del town.fars[key]
        town.run(2)
        assert town.moves.moving == 0
        assert town.moves.next_deadline() is None


# --- many --------------------------------------------------------------------------------------------------


def test_many_take_turns() -> None:
    town = Town(200, 1)
    town.silent = set(town.fars)
    moving = len(movers(town, 2))
    assert moving > 2 * Pace.AT_ONCE
    grow(town)
    town.run(SETTLED + 2 * WIRE)
    assert len(town.begun) == Pace.AT_ONCE  # nobody answers
    town.run(Pace.WINDOW)
    assert len(town.begun) == 2 * Pace.AT_ONCE
    town.silent.clear()
    before = len(town.begun)
    town.run(Pace.WINDOW + 5 * WIRE)
    assert len(town.begun) > before + Pace.AT_ONCE  # who answers makes room at once
    town.run(SHAKE_WITHIN)
    assert town.settled()


def test_up_and_down_and_nobody_in_between() -> None:
    town = Town(60, 3)
    town.scale(1)
    town.run(3)
    assert town.settled()
    assert (town.count, sorted(set(town.told_to_go))) == (1, [1, 2])
    for worker in (1, 2):
        town.kill(worker)
    town.scale(3)
    assert town.count == 3
    town.run(30)
    assert not town.settled()  # nobody is there to move to
    assert town.moves.next_deadline() is None
    assert town.begun[-1][0] < town.now - 25
    for worker in (1, 2):
        town.start(worker)
    town.run(3)
    assert town.settled()
    town.scale(2)
    town.run(3)
    assert (town.settled(), town.count) == (True, 2)


# --- who goes ----------------------------------------------------------------------------------------------


def test_a_worker_goes_when_its_last_peer_has_left_and_is_told_again() -> None:
    town = Town(20, 2)
    town.scale(1)
    town.run(SETTLED + 3 * WIRE + LINGER / 2)
    assert town.told_to_go == []
    assert town.count == 2
    town.run(LINGER)
    assert town.told_to_go == [1]
    assert town.count == 1
    town.run(AGAIN)
    assert town.told_to_go == [1, 1]
    town.kill(1)
    town.run(10)
    assert town.told_to_go == [1, 1]


def test_a_worker_that_comes_before_it_is_wanted_has_some_time() -> None:
    town = Town(20, 1)
    town.start(1)
    town.run(GRACE - 0.1)
    assert town.told_to_go == []
    town.scale(2)
    town.run(10)
    assert town.told_to_go == []
    assert town.settled()
    town.start(2)
    town.run(GRACE + 0.1)
    assert town.told_to_go == [2]


# --- deaths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [0, SETTLED / 2, SETTLED + WIRE / 2, SETTLED + 2 * WIRE, SETTLED + 4 * WIRE, 1.2])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("answers", [True, False])
def test_whoever_dies_when_it_ends_well(wait: float, victim: int, answers: bool) -> None:
    town, key = one_mover()
    if not answers:
        town.silent.add(key)
    grow(town)
    town.run(wait)
    town.kill(victim)
    town.check()
    town.run(1)
    town.silent.clear()
    if victim == 0:
        assert town.routes[key] == 1 or wait < SETTLED
    town.start(victim)
    town.run(SHAKE_WITHIN + 3)
    assert town.settled()
    assert town.handshaker.peers[key].has_session(1)


def test_nobody_lingers_in_a_dead_worker() -> None:
    town, key = one_mover()
    grow(town)
    town.run(SETTLED + 4 * WIRE)
    assert town.moves.homes(key) == (1, 0)
    town.kill(0)
    assert town.moves.homes(key) == (1,)


def test_if_the_new_worker_dies_before_packets_go_there_the_peer_stays() -> None:
    town, key = one_mover()
    town.silent.add(key)
    grow(town)
    town.run(SETTLED + 2 * WIRE)
    town.kill(1)
    assert town.moves.homes(key) == (0,)
    assert town.handshaker.peers[key].has_session(0)
    town.run(20)
    assert town.routes[key] == 0
    assert town.moves.moving == 1


def test_a_worker_that_hangs_keeps_nobody_for_good() -> None:
    town, key = one_mover()
    town.hung.add(1)
    grow(town)
    town.run(SETTLED + SETTLE_WITHIN + 1)
    assert town.routes[key] == 0
    town.scale(1)
    town.run(SETTLE_WITHIN)
    assert town.moves.homes(key) == (0,)
    assert town.settled()
    town.scale(2)
    town.run(1)
    town.hung.clear()
    town.run(SETTLE_WITHIN + 2)
    assert town.settled()
    assert town.routes[key] == 1


def test_another_number_while_they_move() -> None:
    for wait in (0, SETTLED + WIRE / 2, SETTLED + 2 * WIRE, SETTLED + 4 * WIRE, SETTLED + LINGER):
        town = Town(40, 2)
        town.scale(4)
        town.start(2)
        town.start(3)
        town.run(wait)
        town.scale(1)
        town.run(10)
        assert town.settled()
        assert (town.count, sorted(set(town.told_to_go))) == (1, [1, 2, 3])


@pytest.mark.parametrize("seed", range(6))
def test_anything_at_any_time(seed: int) -> None:
    town = Town(25, 2)
    rng = random.Random(seed)
    for step in range(80):
        match rng.randrange(7):
            case 0 | 1:
                town.scale(rng.randrange(1, 6))
            case 2:
                town.kill(rng.randrange(6))
            case 3 | 4:
                town.start(rng.randrange(6))
            case 5:
                town.silent = set(rng.sample(list(town.fars), rng.randrange(10)))
            case 6:
                key = rng.choice(list(town.fars))
                peer = town.handshaker.peers[key]
                if peer.worker in town.told and (peer.last_consumed is None or peer.last_consumed + 1 < town.now):
                    town.initiate(key, stamp(1000 + step))
        town.check()
        town.run(rng.choice([0, 0.01, 0.02, 0.3, 0.35, 1, 4]))
    town.silent.clear()
    for worker in range(town.moves.wanted):
        town.start(worker)
    town.run(30)
    assert town.settled()
    assert town.count == town.moves.wanted
    surplus = {worker for worker in town.told if worker >= town.moves.wanted}
    assert surplus <= set(town.told_to_go)


# --- a key-service that is new -----------------------------------------------------------------------------


def test_where_a_session_is_its_peer_is_whatever_a_new_key_service_thinks() -> None:
    town = Town(24, 2, sessions=False)
    moves = Moves(town.handshaker, 2)
    moves.earlier = (3, 1)
    one = next(key for key in town.fars if home_of(key, 2) == 1)
    zero = [key for key in town.fars if (home_of(key, 2), home_of(key, 3)) == (0, 2)]
    assert moves.claim(0, [(one, 50), (zero[0], 60)]) == [MoveOut(1, (one,)), Carry(0, (one,))]
    assert moves.homes(one) == (0,)
    assert moves.moving == 1
    # It was moving when the last key-service went: the younger session counts, whoever speaks first.
    assert moves.claim(2, [(one, 49), (zero[0], 60 + 1), (b"?" * 32, 7)]) == [
        Count(3),
        MoveOut(0, (zero[0],)),
        Carry(2, (zero[0],)),
    ]
    assert moves.claim(2, [(zero[1], 5)]) == [MoveOut(0, (zero[1],)), Carry(2, (zero[1],))]
    town.handshaker.adopt_session(zero[1], 2, PLACE, town.now)
    assert moves.claim(0, [(zero[1], WALL)]) == []  # we know it by now
    for worker in range(3):
        moves.worker_up(worker, town.now)
    steps = moves.act(town.now + SETTLED)
    assert steps == [MoveIn(1, (one,)), MoveIn(0, (zero[0], zero[1]))]


def test_a_worker_gets_no_peer_by_its_word_whose_home_it_never_was() -> None:
    town = Town(24, 4, sessions=False)
    moves = Moves(town.handshaker, 4)
    moves.earlier = (2,)
    for worker in range(5):
        sessions = [(key, WALL) for key in town.fars]
        moved = [key for step in moves.claim(worker, sessions) if isinstance(step, Carry) for key in step.public_keys]
        assert all(home_of(key, 2) == worker != home_of(key, 4) for key in moved)
        assert worker >= 2 or moved
