"""Every timer, by the paper's section 6, on two whole gateways. The paper's numbers are written out here once more."""

from itertools import pairwise

import pytest
from tests.proto.sim import START, Gateway, Pair, World, pair

from stagewire.proto.events import GaveUp
from stagewire.proto.session import Session
from stagewire.proto.tunnel import TunnelSettings

REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
REKEY_AFTER_TIME = 120
REJECT_AFTER_TIME = 180
REKEY_ATTEMPT_TIME = 90
REKEY_TIMEOUT = 5
KEEPALIVE_TIMEOUT = 10
JITTER_MAX = 0.334
RTT = 0.02


def up(seed: int = 1) -> Pair:
    """Two gateways with a session that `a` initiated just now, and the log empty."""
    p = pair(seed)
    p.a.send(p.b)
    p.world.run(RTT * 2)
    assert current(p.a, p.b).initiator
    assert len(p.b.delivered) == 1
    # The keepalive that the first packet asks for must not stand in the way of what is measured.
    p.b.send(p.a)
    p.world.run(KEEPALIVE_TIMEOUT + 1)
    p.world.log.clear()
    return p


def current(one: Gateway, other: Gateway) -> Session:
    session = one.tunnel(other).slots.current
    assert session is not None
    return session


def age(p: Pair, session: Session) -> float:
    return p.world.now - session.created


def run_to_age(p: Pair, seconds: float) -> None:
    """Lets the session become so old."""
    p.world.run(seconds - age(p, current(p.a, p.b)))


def kinds(world: World, sender: Gateway | None = None) -> list[int]:
    return [sent.kind for sent in world.log if sender in (None, sent.sender)]


def cut(p: Pair) -> None:
    """Nothing arrives any more."""
    p.world.wire.loss = 1.0


# --- 6.2: rekey and reject ---------------------------------------------------------------------------------


def test_the_initiator_rekeys_when_it_sends_after_120_s() -> None:
    p = up()
    run_to_age(p, REKEY_AFTER_TIME - 0.1)
    p.a.send(p.b)
    p.world.run(0.05)
    assert p.world.sent(1) == []
    run_to_age(p, REKEY_AFTER_TIME + 0.1)
    assert p.world.sent(1) == []  # not without a packet
    numbers = p.a.send(p.b)
    p.world.run(0.05)
    assert [sent.sender for sent in p.world.sent(1)] == [p.a]
    assert age(p, current(p.a, p.b)) < 0.1
    # The packet that brought it about went at once, under the old session.
    assert p.b.delivered[numbers[0]] == pytest.approx(START + p.world.now - START - 0.04, abs=0.01)


def test_the_responder_does_not_rekey_by_time() -> None:
    p = up()
    cut(p)  # else the initiator would, having received so late
    for seconds in (166, 172, 179):
        run_to_age(p, seconds)
        p.b.send(p.a)
    assert len(p.world.sent(4, p.b)) == 3
    assert p.world.sent(1) == []


@pytest.mark.parametrize("initiator", [True, False])
def test_either_rekeys_after_2_60_messages(initiator: bool) -> None:
    p = up()
    one, other = (p.a, p.b) if initiator else (p.b, p.a)
    current(one, other).send_counter = REKEY_AFTER_MESSAGES - 1
    one.send(other)
    p.world.run(0.05)
    assert p.world.sent(1) == []
    one.send(other)
    p.world.run(0.05)
    assert [sent.sender for sent in p.world.sent(1)] == [one]
    assert current(one, other).initiator
    assert current(one, other).send_counter < 3


@pytest.mark.parametrize("initiator", [True, False])
def test_nothing_is_sent_under_a_session_of_180_s(initiator: bool) -> None:
    p = up()
    one, other = (p.a, p.b) if initiator else (p.b, p.a)
    old = current(one, other)
    run_to_age(p, REJECT_AFTER_TIME)
    counter = old.send_counter
    (number,) = one.send(other)
    assert kinds(p.world, one)[-1] == 1
    p.world.run(0.1)
    # The packet waited for the new session.
    assert old.send_counter == counter
    assert number in other.delivered
    assert current(one, other).initiator


def test_nothing_is_received_under_a_session_of_180_s() -> None:
    p = up()
    p.world.wire.delay = 10.0
    run_to_age(p, REJECT_AFTER_TIME - 10.5)
    (early,) = p.b.send(p.a)
    run_to_age(p, REJECT_AFTER_TIME - 5)
    (late,) = p.b.send(p.a)
    p.world.run(20)
    assert early in p.a.delivered
    assert late not in p.a.delivered
    assert p.a.drops["session_expired"] == 1


def test_at_the_last_counter_sending_stops_and_a_new_session_takes_over() -> None:
    p = up()
    cut(p)
    session = current(p.a, p.b)
    session.send_counter = REJECT_AFTER_MESSAGES - 2
    p.a.send(p.b, 5)
    p.a.send(p.b, 2)
    sent = [int.from_bytes(s.data[8:16], "little") for s in p.world.sent(4, p.a)]
    assert sent == [REJECT_AFTER_MESSAGES - 2, REJECT_AFTER_MESSAGES - 1]
    assert len(p.a.tunnel(p.b).staged) == 5
    p.world.wire.loss = 0.0
    before = len(p.b.delivered)
    p.world.run(REKEY_TIMEOUT + 1)
    assert len(p.b.delivered) == before + 5


def test_the_initiator_rekeys_on_receiving_after_165_s_once() -> None:
    p = up()
    at = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
    run_to_age(p, at - 0.1)
    p.b.send(p.a)
    p.world.run(0.05)
    assert p.world.sent(1) == []
    cut(p)
    run_to_age(p, at + 0.1)
    p.world.wire.loss = 0.0
    p.b.send(p.a)
    p.world.run(0.011)
    assert [sent.sender for sent in p.world.sent(1)] == [p.a]
    cut(p)
    p.world.run(REKEY_TIMEOUT - 0.2)
    p.world.wire.loss = 0.0
    wants = len(p.a.events)
    p.b.send(p.a)
    p.world.run(0.05)
    assert p.a.events[wants:] == []


def test_the_responder_does_not_rekey_on_receiving() -> None:
    p = up()
    run_to_age(p, 170)
    current(p.a, p.b).initiator = False  # so that only the other could
    p.a.send(p.b)
    p.world.run(0.05)
    assert p.world.sent(1) == []


@pytest.mark.parametrize("initiator", [True, False])
def test_a_lowered_interval_holds_for_both_roles(initiator: bool) -> None:
    """As responder a REKEY_TIMEOUT later, so that a side which keeps the interval too comes first."""
    p = up()
    one, other = (p.a, p.b) if initiator else (p.b, p.a)
    one.workers[0].settings = one.settings = TunnelSettings(rekey_after_time=30)
    one.knows(other)
    limit = 30 if initiator else 30 + REKEY_TIMEOUT
    run_to_age(p, limit - 0.1)
    one.send(other)
    p.world.run(0.05)
    assert p.world.sent(1) == []
    run_to_age(p, limit + 0.1)
    one.send(other)
    p.world.run(0.05)
    assert [sent.sender for sent in p.world.sent(1)] == [one]
    assert current(one, other).initiator


def test_keys_are_wiped_540_s_after_the_last_session() -> None:
    p = up()
    run_to_age(p, 3 * REJECT_AFTER_TIME - 1)
    assert len(p.a.workers[0].sessions()) == len(p.b.workers[0].sessions()) == 1
    run_to_age(p, 3 * REJECT_AFTER_TIME + 1)
    assert p.a.workers[0].sessions() == p.b.workers[0].sessions() == []
    assert list(p.a.tunnel(p.b).slots) == []
    assert len(p.a.handshaker._indices._used) == len(p.b.handshaker._indices._used) == 0
    numbers = p.a.send(p.b)
    p.world.run(1)
    assert numbers[0] in p.b.delivered


# --- 6.4: retransmission -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_twenty_initiations_5_s_and_some_apart_then_give_up(seed: int) -> None:
    p = pair(seed)
    cut(p)
    p.a.send(p.b, 3)
    p.world.run(200)
    times = [sent.when for sent in p.world.sent(1)]
    assert len(times) == 20
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(REKEY_TIMEOUT <= gap <= REKEY_TIMEOUT + JITTER_MAX for gap in gaps)
    assert max(gaps) - min(gaps) > 0.1
    assert times[-1] - times[0] > REKEY_ATTEMPT_TIME
    assert [effect for effect in p.a.effects if isinstance(effect, GaveUp)] == [GaveUp(p.b.identity.public_key)]
    assert p.a.drops["handshake_gave_up"] == 3
    assert not p.a.tunnel(p.b).staged
    # Every one is new: another ephemeral, another index, a later stamp.
    assert len({sent.data[8:40] for sent in p.world.sent(1)}) == len({sent.data[4:8] for sent in p.world.sent(1)}) == 20


def test_after_giving_up_a_new_packet_starts_anew() -> None:
    p = pair()
    cut(p)
    p.a.send(p.b)
    p.world.run(200)
    p.world.log.clear()
    p.a.send(p.b)
    p.world.run(30)
    assert len(p.world.sent(1)) == 6
    p.world.wire.loss = 0.0
    p.world.run(REKEY_TIMEOUT + 1)
    assert len(p.b.delivered) == 1
    p.world.log.clear()
    p.world.run(100)
    assert p.world.sent(1) == []


def test_giving_up_wipes_540_s_later() -> None:
    p = pair()
    cut(p)
    p.a.send(p.b)
    p.world.run(200)
    gave_up = p.world.sent(1)[-1].when + REKEY_TIMEOUT
    deadline = p.a.tunnel(p.b).timers.next_deadline()
    assert deadline is not None
    assert deadline[1] == "wipe"
    assert gave_up + 540 <= deadline[0] <= gave_up + 540 + JITTER_MAX


def test_a_lost_response_costs_one_retransmission() -> None:
    p = pair()
    p.a.send(p.b)
    p.world.run(0.015)
    cut(p)
    p.world.run(0.001)
    p.world._events.clear()
    p.world.wire.loss = 0.0
    p.world.run(REKEY_TIMEOUT + 1)
    assert kinds(p.world)[:3] == [1, 2, 1]
    assert len(p.b.delivered) == 1
