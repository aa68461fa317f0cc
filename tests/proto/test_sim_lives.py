"""Replays, workers and key services that die and come back, and keys that change, on whole gateways."""

import random
from collections.abc import Iterable

import pytest
from tests.proto.sim import Gateway, Pair, Sent, Wire, World, pair
from tests.proto.test_sim_network import ATTACKER, flows, up

from stagewire.proto import endpoint as places
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import InstallSession, SendHandshake, SessionConfirmed
from stagewire.proto.gate import LOADED_AT


def state(one: Gateway, other: Gateway) -> tuple[object, ...]:
    """All that a replay must not change."""
    peer, tunnel = one.handshaker.peers[other.identity.public_key], one.tunnel(other)
    return (
        len(one.world.log), dict(one.delivered), peer.endpoint, tunnel.endpoint, peer.rx_bytes, tunnel.rx_bytes,
        peer.latest_initiation, list(tunnel.slots), len(one.handshaker._indices._used),
    )  # fmt: skip


def replay(world: World, recorded: Iterable[Sent], source: Endpoint = ATTACKER) -> None:
    """Delivers what had arrived, from elsewhere, to whom it was sent; asserts that nothing follows."""
    for sent in recorded:
        target = next(g for g in world.gateways if places.same_place(g.place.pack(), sent.place))
        before = state(target, sent.sender)
        target.receive(sent.data, source)
        assert state(target, sent.sender) == before, sent


# --- replays -----------------------------------------------------------------------------------------------


def recorded_life(*, forced_load: bool = True) -> Pair:
    """A session that came about through a cookie; the log has all four types."""
    p = pair(5)
    if forced_load:
        p.b.gate.note_queue(LOADED_AT)
    p.a.send(p.b)
    p.world.run(6)
    p.b.gate.note_queue(0)
    p.b.send(p.a)
    p.world.run(1)
    assert {sent.kind for sent in p.world.log} == {1, 2, 3, 4}
    return p


def test_replays_after_the_fact_change_nothing() -> None:
    p = recorded_life()
    replay(p.world, list(p.world.arrived.values()))
    flows(p.a, p.b)


def test_replays_after_a_rekey_change_nothing() -> None:
    p = recorded_life()
    recorded = list(p.world.arrived.values())
    p.world.run(130)
    p.a.send(p.b)
    p.world.run(1)
    replay(p.world, recorded + list(p.world.arrived.values()))
    flows(p.a, p.b)


def test_replays_after_the_end_of_the_session_change_nothing() -> None:
    p = recorded_life()
    p.world.run(1000)
    replay(p.world, list(p.world.arrived.values()))
    p.a.send(p.b)
    p.world.run(1)
    flows(p.a, p.b)


def test_replays_after_key_service_restarted_change_nothing() -> None:
    p = recorded_life()
    p.a.restart_key_service()
    p.b.restart_key_service()
    replay(p.world, list(p.world.arrived.values()))
    flows(p.a, p.b)


def test_replays_after_everything_restarted_change_nothing() -> None:
    p = recorded_life()
    recorded = list(p.world.arrived.values())
    for gateway in (p.a, p.b):
        gateway.kill_worker(0)
        gateway.restart_key_service()
        gateway.start_worker(0)
    replay(p.world, recorded)
    p.a.send(p.b)
    p.world.run(1)
    flows(p.a, p.b)


# --- lives -------------------------------------------------------------------------------------------------


def test_a_response_leaves_only_when_its_session_is_installed() -> None:
    p = pair()
    p.b.pipe_delay = 0.5
    p.a.send(p.b)
    p.world.run(0.4)
    assert p.world.sent(2) == []
    assert [type(effect) for effect in p.b.effects][-1] is InstallSession
    p.world.run(0.2)
    assert len(p.world.sent(2)) == 1
    assert len(p.b.delivered) == 1


def test_a_worker_too_slow_for_its_session_costs_the_handshake_only() -> None:
    p = pair()
    p.b.pipe_delay = 2.0
    p.a.send(p.b)
    p.world.run(4)
    assert p.world.sent(2) == []
    p.b.pipe_delay = 0.0
    p.world.run(2)
    assert len(p.b.delivered) == 1


def test_a_worker_that_dies_is_back_with_a_session_at_once() -> None:
    for one_is_initiator in (True, False):
        p = up()
        one, other = (p.a, p.b) if one_is_initiator else (p.b, p.a)
        recorded = list(p.world.arrived.values())
        one.kill_worker(0)
        (lost,) = other.send(one)
        p.world.run(0.05)
        assert lost not in one.delivered
        since = p.world.now
        one.start_worker(0)
        p.world.run(0.05)
        assert [sent.sender for sent in p.world.sent(1, since=since)] == [one]
        flows(one, other, within=0.0101)
        replay(p.world, recorded)


def test_only_the_peers_of_the_dead_worker_notice() -> None:
    world = World()
    a, b, c = (Gateway(world, number, workers=2) for number in (1, 2, 3))
    a.knows(b, worker=0)
    a.knows(c, worker=1)
    for other in (b, c):
        other.knows(a)
        a.send(other)
    world.run(1)
    a.kill_worker(0)
    a.start_worker(0)
    since = world.now
    flows(a, c)
    world.run(1)
    assert [sent.sender for sent in world.sent(1) if sent.when > since] == []
    assert {sent.sender for sent in world.sent(4, since=since)} == {a, c}
    flows(a, b)


def test_sessions_outlive_key_service_and_are_rekeyed_by_the_next() -> None:
    p = up()
    p.a.restart_key_service()
    p.b.restart_key_service()
    assert len(p.a.handshaker._indices._used) == len(p.b.handshaker._indices._used) == 1
    flows(p.a, p.b)
    assert len(p.world.sent(1)) == 1
    p.world.run(125)
    flows(p.a, p.b)
    assert len(p.world.sent(1)) == 2
    p.world.run(1)
    assert len(p.a.handshaker._indices._used) == len(p.a.workers[0].sessions()) == 2


def test_key_service_restarting_in_the_middle_of_a_handshake() -> None:
    p = pair()
    for step in range(10):
        p.a.send(p.b)
        p.world.run(step * 0.004)
        p.a.restart_key_service()
        p.world.run(step * 0.003)
        p.b.restart_key_service()
        p.world.run(6)
        flows(p.a, p.b)
        p.world.run(600)


@pytest.mark.parametrize("seed", range(3))
def test_lives_that_end_at_random_on_a_bad_network(seed: int) -> None:
    p = pair(seed, Wire(loss=0.1, duplicate=0.1, delay=0.01, delay_spread=0.1), keepalive=25)
    rng = random.Random(seed)
    for _ in range(150):
        one, other = rng.sample([p.a, p.b], 2)
        match rng.randrange(6):
            case 0:
                one.kill_worker(0)
                p.world.run(rng.random())
                one.start_worker(0)
            case 1:
                one.restart_key_service()
            case 2:
                one.place = Endpoint(bytes([198, 51, 100, rng.randrange(1, 250)]), rng.randrange(1024, 65535))
            case 3:
                p.world.run(rng.choice([10, 121, 166, 181]))
        one.send(other, 5)
        other.send(one, 5)
        p.world.run(rng.random() * 10)
        one.pipe_delay = rng.choice([0, 0, 0.01, 0.5])
    p.world.wire = Wire()
    p.world.run(60)
    p.a.send(p.b)
    p.world.run(1)
    flows(p.a, p.b, within=6)
    replay(p.world, [sent for sent in p.world.arrived.values() if places.same_place(sent.place, p.a.place.pack())])


# --- pre-shared keys, stamped responses --------------------------------------------------------------------


def test_a_preshared_key_on_one_side_only_lets_nothing_through() -> None:
    p = pair()
    p.a.knows(p.b, psk=bytes(range(32)))
    p.a.send(p.b)
    p.world.run(30)
    p.b.send(p.a)
    p.world.run(30)
    assert p.a.delivered == p.b.delivered == {}
    assert p.a.failures["response_not_authentic"] > 0
    assert not any(isinstance(event, SessionConfirmed) for event in p.a.events + p.b.events)


def test_a_changed_preshared_key_leaves_the_session_alone_and_holds_for_the_next() -> None:
    p = up()
    p.a.knows(p.b, psk=bytes(range(32)))
    flows(p.a, p.b)
    p.world.run(190)
    p.a.send(p.b)
    p.world.run(1)
    assert p.a.failures["response_not_authentic"] == 1
    p.b.knows(p.a, psk=bytes(range(32)))
    p.world.run(5)
    flows(p.a, p.b)


def test_stamped_responses_end_to_end() -> None:
    p = pair(stamped=True)
    for _ in range(3):
        flows(p.a, p.b, within=0.1)
        p.world.run(300)
    assert {len(sent.data) for sent in p.world.sent(2)} == {104}
    skew = p.a.handshaker.peers[p.b.identity.public_key].skew_ns
    assert skew is not None
    assert abs(skew) < 20_000_000
    handshakes = [effect for effect in p.a.effects if isinstance(effect, SendHandshake) and effect.initiation]
    assert handshakes
