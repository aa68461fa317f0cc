"""Whole gateways on bad networks: loss, reordering, duplicates, both sides at once, roaming and load.

The mistakes that other implementations made, and where a test of ours would show them:

    a cookie without the source port              test_gate: a_cookie_is_good_for_its_address_and_port_alone
    one host can force cookies on all             test_gate: under_load_a_proven_source_has_twenty_a_second...
    the endpoint isn't moved by data              here: roaming...
    no padding                                    test_session: padding_goes_to_16...
    sequential session indices                    here: indices_are_random...
    rekeying too often                            test_sim_keepalive: traffic_for_an_hour...
    an early response is lost                     test_sim_lives: a_response_leaves_only_when...
    a partial send loses the rest                 (of the services)
    a counter in 32 bits                          here: counters_beyond_32_bits
    keepalives answer keepalives                  test_sim_keepalive: data_is_answered_by_a_keepalive...
    keepalive counts from the last packet sent    test_sim_keepalive: persistent_keepalive_counts_from_any_packet
    persistent keepalives while traffic flows     test_sim_keepalive: persistent_keepalive_is_not_sent_while...
    a changed pre-shared key isn't used           test_sim_lives: a_changed_preshared_key...
    an oversized datagram ends receiving          here: oversized_datagrams...
    the source is checked in its own prefixes     test_device: source_must_be_the_peers_by_the_longest_prefix_of_all
    an IPv6 source is read wrongly                test_device: an_ipv6_source_is_read_where_it_is
    no jitter                                     test_sim_timers: twenty_initiations_5_s_and_some_apart...
    a race in binding IPv6                        (of the services)
    a cookie reply moves the endpoint             test_handshaker: cookie_replies_move_nothing_but_the_cookie
    REJECT_AFTER_MESSAGES isn't enforced          test_sim_timers: at_the_last_counter...
    a replay window of 1024                       here: packets_8000_out_of_order
"""

import pytest
from tests.proto.sim import Gateway, Pair, Wire, pair

from stagewire.proto import endpoint as places
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import EndpointMoved
from stagewire.proto.gate import LOADED_AT

ATTACKER = Endpoint(bytes([203, 0, 113, 66]), 6666)
TERRIBLE = Wire(loss=0.2, duplicate=0.1, delay=0.02, delay_spread=0.3)


def up(seed: int = 1) -> Pair:
    """Two gateways with a session that `a` initiated, and one packet each way."""
    p = pair(seed)
    p.a.send(p.b)
    p.world.run(0.1)
    p.b.send(p.a)
    p.world.run(0.1)
    assert (len(p.a.delivered), len(p.b.delivered)) == (1, 1)
    return p


def flows(one: Gateway, other: Gateway, within: float = 0.05) -> None:
    """A packet sent now arrives in both directions."""
    (there,), (back,) = one.send(other), other.send(one)
    one.world.run(within)
    assert there in other.delivered
    assert back in one.delivered


# --- a terrible network ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_terrible_network_delays_but_never_corrupts(seed: int) -> None:
    """Some hundred handshakes each: an idle time long enough for a new session follows each burst."""
    p = pair(seed, TERRIBLE)
    sent: dict[Gateway, list[int]] = {p.a: [], p.b: []}
    for _ in range(250):
        one, other = p.world.rng.sample([p.a, p.b], 2)
        for _ in range(p.world.rng.randrange(1, 6)):
            sent[one] += one.send(other, 3)
            if p.world.rng.random() < 0.5:
                sent[other] += other.send(one, 2)
            p.world.run(p.world.rng.random() * 4)
        p.world.run(p.world.rng.choice([20, 181]))
    assert len(p.world.sent(1)) > 200
    for one, other in ((p.a, p.b), (p.b, p.a)):
        assert set(other.delivered) <= set(sent[one])
        assert len(other.delivered) > 0.7 * len(sent[one])
        assert not one.drops["inner_malformed"]
        assert not one.drops["inner_source_not_allowed"]
        assert not one.drops["transport_not_authentic"]
        assert one.drops["replayed"] > 0
    p.world.wire = Wire()
    p.world.run(200)
    p.a.send(p.b)
    p.world.run(1)
    flows(p.a, p.b)


def test_packets_8000_out_of_order_arrive_all_and_once() -> None:
    p = up()
    p.world.log.clear()
    p.world.wire.loss = 1.0
    numbers = p.a.send(p.b, 8000)
    datagrams = [sent.data for sent in p.world.sent(4, p.a)]
    for datagram in [datagrams[-1], *datagrams, *reversed(datagrams)]:
        p.b.receive(datagram, p.a.place)
    assert all(number in p.b.delivered for number in numbers)
    assert p.b.drops["replayed"] == 8001


def test_counters_beyond_32_bits() -> None:
    p = up()
    session = p.a.tunnel(p.b).slots.current
    assert session is not None
    for counter in (2**32 - 1, 2**40):
        session.send_counter = counter
        numbers = p.a.send(p.b, 3)
        p.world.run(0.1)
        assert all(number in p.b.delivered for number in numbers)


def test_oversized_datagrams_do_no_harm() -> None:
    p = up()
    for kind in range(6):
        for size in (1501, 9000, 65507, 70000):
            p.b.receive(bytes([kind, 0, 0, 0]) + bytes(size), ATTACKER)
    flows(p.a, p.b)


def test_indices_are_random_but_for_the_worker() -> None:
    indices = []
    for seed in range(64):
        p = pair(seed, worker=0)
        p.a.send(p.b)
        p.world.run(0.1)
        indices.append(int.from_bytes(p.world.sent(1)[0].data[4:8], "little"))
    assert all(index & 0xFF == 0 for index in indices)
    assert len(set(indices)) == 64
    # Each of the 24 bits is set about half the time.
    for bit in range(8, 32):
        assert 16 <= sum(index >> bit & 1 for index in indices) <= 48


# --- both sides at once ------------------------------------------------------------------------------------


def test_both_sides_at_once_a_thousand_times() -> None:
    p = pair(7)
    numbers: dict[Gateway, list[int]] = {p.a: [], p.b: []}
    for _ in range(1000):
        p.world.log.clear()
        numbers[p.a] += p.a.send(p.b)
        numbers[p.b] += p.b.send(p.a)
        p.world.run(0.0301)  # initiation, response, packet: 10 ms each
        assert numbers[p.a][-1] in p.b.delivered
        assert numbers[p.b][-1] in p.a.delivered
        assert len(p.world.sent(1)) == len(p.world.sent(2)) == 2
        flows(p.a, p.b, within=0.0101)
        # One session is used, the same by both, and one of them is its initiator.
        mine, theirs = p.a.tunnel(p.b).slots.current, p.b.tunnel(p.a).slots.current
        assert mine is not None
        assert theirs is not None
        assert (mine.index, mine.remote_index) == (theirs.remote_index, theirs.index)
        assert mine.initiator != theirs.initiator
        p.world.run(600)
        p.world._counters.clear()


@pytest.mark.parametrize("seed", range(300))
def test_both_sides_at_once_with_delays_and_loss(seed: int) -> None:
    """Whatever is lost or overtaken, traffic flows both ways after the first retransmission that arrives."""
    p = pair(seed, Wire(loss=0.3, delay=0.01, delay_spread=0.05))
    p.a.send(p.b)
    p.world.run(p.world.rng.random() * 0.05)
    p.b.send(p.a)
    p.world.run(0.2)
    p.world.wire = Wire()
    p.world.run(11)
    p.a.send(p.b)
    p.b.send(p.a)
    p.world.run(0.05)
    flows(p.a, p.b)


@pytest.mark.parametrize("gap", [0.0, 0.004, 0.009, 0.011, 0.019])
def test_both_sides_rekeying_at_once_lose_nothing_for_an_hour(gap: float) -> None:
    p = pair(3)
    sent: list[tuple[Gateway, int]] = []
    p.a.send(p.b)
    p.world.run(gap)
    p.b.send(p.a)
    for _ in range(3600):
        sent += [(p.b, number) for number in p.a.send(p.b)] + [(p.a, number) for number in p.b.send(p.a)]
        p.world.run(1.0)
    assert [number for target, number in sent if number not in target.delivered] == []
    # At most two in the beginning; then one side rekeys and the other doesn't.
    assert len(p.world.sent(1)) <= 31 + 1


# --- roaming -----------------------------------------------------------------------------------------------


def test_roaming_behind_a_nat() -> None:
    p = up()
    for port in (1024, 2048, 4096):
        p.a.place = Endpoint(bytes([198, 51, 100, 7]), port)
        p.a.send(p.b)
        p.world.run(0.0101)
        # The very next answer goes to the new place.
        (number,) = p.b.send(p.a)
        p.world.run(0.0101)
        assert number in p.a.delivered
        moved = p.b.events[-1]
        assert isinstance(moved, EndpointMoved)
        assert places.same_place(moved.endpoint, p.a.place.pack())
        known = p.b.handshaker.peers[p.a.identity.public_key].endpoint
        assert known == moved.endpoint


def test_roaming_from_ipv4_to_ipv6_by_a_handshake() -> None:
    p = up()
    p.world.run(200)
    p.a.place = Endpoint(bytes.fromhex("20010db8000000000000000000000007"), 51820)
    flows(p.a, p.b, within=5.5)


def test_a_copy_that_comes_first_moves_the_endpoint_until_the_next_genuine_packet() -> None:
    p = up()
    p.world.wire.loss = 1.0
    p.a.send(p.b)
    p.world.wire.loss = 0.0
    genuine = p.world.log[-1].data
    p.b.receive(genuine, ATTACKER)
    p.b.receive(genuine, p.a.place)
    assert isinstance(p.b.events[-1], EndpointMoved)  # seen, and for the log
    p.a.send(p.b)
    p.world.run(0.0101)
    flows(p.a, p.b)


# --- load --------------------------------------------------------------------------------------------------


def test_under_load_a_handshake_takes_a_cookie_and_one_retransmission() -> None:
    p = pair()
    for tenth in range(100):
        p.world.at(p.world.now + tenth / 10, lambda: p.b.gate.note_queue(LOADED_AT))
    p.a.send(p.b)
    p.world.run(5)
    assert [sent.kind for sent in p.world.log] == [1, 3]
    assert p.b.effects == []
    p.world.run(1)
    first, second = p.world.sent(1)
    assert first.data[-16:] == bytes(16)
    assert second.data[-16:] != bytes(16)
    assert len(p.b.delivered) == 1


def test_the_answer_to_our_own_initiation_needs_no_cookie() -> None:
    p = pair()
    for tenth in range(20):
        p.world.at(p.world.now + tenth / 10, lambda: p.a.gate.note_queue(LOADED_AT))
    p.a.send(p.b)
    p.world.run(1)
    assert [sent.kind for sent in p.world.log[:2]] == [1, 2]
    assert len(p.b.delivered) == 1
