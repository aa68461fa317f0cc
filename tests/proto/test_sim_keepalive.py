"""Keepalives, by the paper's section 6.5, and silence, on two whole gateways."""

from itertools import pairwise

import pytest
from tests.proto.sim import pair
from tests.proto.test_sim_timers import (
    JITTER_MAX,
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_TIMEOUT,
    RTT,
    age,
    current,
    cut,
    up,
)  # fmt: skip

from stagewire.proto.events import SessionConfirmed, WantHandshake

# --- 6.5: keepalives ---------------------------------------------------------------------------------------


def test_data_is_answered_by_a_keepalive_after_10_s_and_that_by_nothing() -> None:
    p = up()
    p.a.send(p.b)
    p.a.send(p.b)
    received = p.world.now + p.world.wire.delay
    p.world.run(60)
    keepalives = p.world.sent(4, p.b)
    assert [len(sent.data) for sent in keepalives] == [32]
    assert keepalives[0].when == pytest.approx(received + KEEPALIVE_TIMEOUT)
    assert len(p.world.sent(4, p.a)) == 2
    assert p.world.sent(1) == []


def test_data_the_other_way_makes_the_keepalive_needless() -> None:
    p = up()
    for _ in range(15):
        p.a.send(p.b)
        p.world.run(3)
        p.b.send(p.a)
        p.world.run(3)
    assert all(len(sent.data) > 32 for sent in p.world.sent(4))


def test_a_stream_one_way_is_answered_every_10_s() -> None:
    p = up()
    for _ in range(100):
        p.a.send(p.b)
        p.world.run(0.5)
    answers = p.world.sent(4, p.b)
    assert len(answers) == 4
    assert all(len(sent.data) == 32 for sent in answers)
    gaps = [later.when - earlier.when for earlier, later in pairwise(answers)]
    assert all(KEEPALIVE_TIMEOUT <= gap <= KEEPALIVE_TIMEOUT + 0.6 for gap in gaps)


def test_data_without_any_answer_starts_a_handshake_after_15_s() -> None:
    p = up()
    cut(p)
    p.a.send(p.b)
    start = p.world.now
    p.world.run(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT - 0.01)
    p.a.send(p.b)
    assert p.world.sent(1) == []
    p.world.run(0.4)
    (initiation,) = p.world.sent(1)
    assert 15 <= initiation.when - start <= 15 + JITTER_MAX
    assert p.a.events[-1] == WantHandshake(p.b.identity.public_key, "no_answer")


@pytest.mark.parametrize("interval", [1, 5, 10, 20])
def test_persistent_keepalive_counts_from_any_packet(interval: int) -> None:
    p = up()
    p.a.knows(p.b, keepalive=interval)
    p.world.run(0.05)
    p.world.log.clear()
    start = p.world.now
    p.world.run(interval * 4 - 0.1)
    first = [sent.when for sent in p.world.sent(4, p.a)]
    assert first == pytest.approx([start - 0.05 + interval * at for at in range(1, 4)], abs=0.01)
    assert p.world.sent(4, p.b) == []
    # A packet of theirs puts it off as well as one of ours.
    p.b.send(p.a)
    heard = p.world.now + p.world.wire.delay
    p.world.log.clear()
    p.world.run(interval + 0.05)
    (keepalive,) = p.world.sent(4, p.a)
    assert keepalive.when == pytest.approx(heard + min(interval, KEEPALIVE_TIMEOUT))


def test_persistent_keepalive_is_not_sent_while_traffic_flows() -> None:
    p = up()
    p.a.knows(p.b, keepalive=25)
    p.b.knows(p.a, keepalive=25)
    p.world.run(0.05)
    p.world.log.clear()
    for _ in range(100):
        p.a.send(p.b)
        p.b.send(p.a)
        p.world.run(1)
    assert all(len(sent.data) > 32 for sent in p.world.sent(4))


def test_persistent_keepalive_keeps_trying_a_peer_that_is_gone() -> None:
    p = pair(keepalive=25, b_knows_place=False)
    cut(p)
    p.world.run(1000)
    wants = [event.reason for event in p.a.events if isinstance(event, WantHandshake)]
    assert set(wants) == {"persistent"}
    assert len(p.world.sent(1)) > 100
    p.world.wire.loss = 0.0
    p.world.run(130)
    assert any(isinstance(event, SessionConfirmed) for event in p.b.events)


def test_persistent_keepalive_keeps_a_session_for_hours() -> None:
    p = pair(keepalive=25)
    p.world.run(3 * 3600)
    sent = p.world.sent(1)
    # The first keepalive after 120 s brings the rekey, be it only a keepalive.
    assert 3 * 3600 / 126 <= len(sent) <= 3 * 3600 / 120
    assert age(p, current(p.a, p.b)) < REJECT_AFTER_TIME
    numbers = p.a.send(p.b)
    p.world.run(0.02)
    assert numbers[0] in p.b.delivered


# --- silence -----------------------------------------------------------------------------------------------


def test_without_packets_there_is_silence() -> None:
    p = pair()
    p.world.run(1000)
    assert p.world.log == []
    p = up()
    p.world.run(10_000)
    assert p.world.log == []


def test_two_idle_hours_then_a_packet_costs_one_round_trip() -> None:
    p = up()
    p.world.run(7200)
    sent = p.world.now
    (number,) = p.a.send(p.b)
    p.world.run(1)
    assert p.b.delivered[number] - sent == pytest.approx(1.5 * RTT)


def test_traffic_for_an_hour_rekeys_every_120_s_and_loses_nothing() -> None:
    p = up()
    numbers = []
    for _ in range(3600):
        numbers += p.a.send(p.b)
        p.world.run(0.5)
        p.b.send(p.a)
        p.world.run(0.5)
    assert len(p.world.sent(1)) in (29, 30)
    assert {sent.sender for sent in p.world.sent(1)} == {p.a}
    assert all(number in p.b.delivered for number in numbers)
