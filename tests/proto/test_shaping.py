"""A limited peer's packets pass at its rate, in order, within bounds of time and memory; and stop at its quota."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proto.byhand import PEER, PLACE, T, facts, install, new_session, ours, receive, tunnel_of, v4, worker

from stagewire.proto import shaping
from stagewire.proto.shaping import Limits, Shaper
from stagewire.proto.tunnel import Output
from stagewire.proto.worker import PeerFacts, Worker
from stagewire.reasons import Reasons

RATE = 2_000_000
"""Bits/s."""
SIZE = 1000


def flood(shaper: Shaper, seconds: float, offered: float, *, step: float = 0.01) -> int:
    """Offers packets at a rate (bytes/s) and returns the bytes that passed, looking every `step` seconds."""
    passed, due, at = 0, 0.0, T
    while at < T + seconds:
        due += offered * step
        packets = [bytes(SIZE)] * int(due // SIZE)
        due -= len(packets) * SIZE
        found, _ = shaper.pass_on(packets, at)
        passed += sum(map(len, found))
        at += step
    return passed


@pytest.mark.parametrize("rate", [64_000, RATE, 50_000_000, 1_000_000_000])
def test_what_comes_faster_passes_at_the_rate(rate: int) -> None:
    shaper, seconds = Shaper(rate, T), 10
    passed = flood(shaper, seconds, rate / 8 * 2)
    assert rate / 8 * seconds * 0.99 < passed <= rate / 8 * seconds + shaper.burst


def test_what_comes_slower_passes_at_once() -> None:
    shaper = Shaper(RATE, T)
    assert flood(shaper, 5, RATE / 8 * 0.9) == pytest.approx(RATE / 8 * 0.9 * 5, abs=2 * SIZE)
    assert shaper.next_deadline() is None


def test_the_queue_lets_packets_go_by_its_deadlines_alone_and_in_order() -> None:
    shaper = Shaper(RATE, T)
    packets = [number.to_bytes(2) + bytes(SIZE) for number in range(60)]
    found, dropped = shaper.pass_on(packets, T)
    while (at := shaper.next_deadline()) is not None:
        more = shaper.release(at)
        assert more, "a deadline without a packet would turn the loop for nothing"
        found += more
    assert dropped == []
    assert found == packets


def test_an_idle_peer_saves_up_one_burst_and_no_more() -> None:
    shaper = Shaper(RATE, T)
    found, _ = shaper.pass_on([bytes(SIZE)] * 200, T + 1e9)
    assert shaper.burst - SIZE < len(found) * SIZE <= shaper.burst


def test_a_queue_is_bounded_also_for_the_smallest_packets() -> None:
    for rate in (64_000, RATE, 10**12):
        shaper = Shaper(rate, T)
        shaper.pass_on([bytes(20)] * 200_000, T)
        assert len(shaper._queue) * (20 + 64) <= shaping.MAX_HELD
        assert bool(shaper.clear()) == (rate <= RATE)
        assert shaper.next_deadline() is None


def test_a_packet_larger_than_the_bucket_passes_and_leaves_a_debt() -> None:
    shaper = Shaper(64_000, T)
    huge = bytes(65_000)
    assert shaper.pass_on([huge], T) == ([huge], [])
    assert shaper.pass_on([bytes(20)], T + 6) == ([], [])
    assert shaper.release(T + 9) == [bytes(20)]


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    shaper = Shaper(RATE, T)
    first, _ = shaper.pass_on([bytes(SIZE)] * 30, T)
    assert shaper.release(T) == shaper.release(T - 100) == []
    assert len(first) == int(shaper.burst // SIZE)


STEPS = st.lists(st.tuples(st.integers(20, 3000), st.integers(0, 40), st.floats(0, 0.5)), max_size=40)
"""Size of packets, their number, and the pause after them."""


@given(STEPS, st.integers(64_000, 10**8))
def test_no_window_ever_carries_more_than_rate_and_burst(steps: list[tuple[int, int, float]], rate: int) -> None:
    shaper, at = Shaper(rate, T), T
    passed: list[tuple[float, int]] = []
    for size, count, pause in steps:
        found, _ = shaper.pass_on([bytes(size)] * count, at)
        passed.append((at, sum(map(len, found))))
        at += pause
    for first, (begin, _) in enumerate(passed):
        total = 0
        for end, amount in passed[first:]:
            total += amount
            assert total <= (end - begin) * rate / 8 + shaper.burst + 1


# --- in a worker -------------------------------------------------------------------------------------------


def limited(*, rate: int = 0, cap: int | None = None) -> Worker:
    one = worker()
    limit(one, rate=rate, cap=cap)
    install(one, new_session())
    return one


def limit(one: Worker, *, rate: int = 0, cap: int | None = None) -> Output:
    return one.set_peer(
        PeerFacts(PEER, facts(PEER, "10.1.0.0/16").allowed_ips, True, 0, PLACE, rates=(rate, rate), cap=cap), T
    )


def outbound(count: int) -> list[bytes]:
    return [v4("10.9.9.9", "10.1.0.5", size=SIZE) for _ in range(count)]


def test_a_worker_lets_a_flood_to_a_peer_pass_at_the_rate_and_counts_the_rest() -> None:
    one, sent, now = limited(rate=RATE), 0, T
    while now < T + 2:
        for out in (one.outbound(outbound(10), now), one.act(now + 0.004)):
            sent += sum(len(ours(datagram)) for _, run in out.runs for datagram in run)
        now += 0.005
    assert RATE / 8 * 2 * 0.95 < sent <= RATE / 8 * 2 * 1.05 + RATE / 8 * shaping.BURST
    assert one.drops["rate_exceeded"] > 100
    assert set(one.drops) == {"rate_exceeded"}


def test_a_worker_lets_a_flood_from_a_peer_pass_at_the_rate() -> None:
    one = limited(rate=RATE)
    inner = v4("10.1.0.5", size=SIZE)
    first = receive(one, *[inner] * 200).packets
    assert len(first) * SIZE <= RATE / 8 * shaping.BURST
    held, late = one.drops["rate_exceeded"], 0
    while (at := one.next_deadline()) is not None and at < T + 1:
        late += len(one.act(at).packets)
    assert len(first) + late + held == 200
    assert late > 0


@pytest.mark.parametrize("rate", [0, RATE])
def test_what_a_limit_drops_uses_up_no_quota(rate: int) -> None:
    one, passed, now = limited(rate=rate, cap=100_000), 0, T
    inner = v4("10.1.0.5", size=SIZE)
    while now < T + 3:
        passed += len(receive(one, *[inner] * 20, now=now).packets) + len(one.act(now + 0.004).packets)
        now += 0.01
    tunnel = tunnel_of(one)
    train = 20 * (SIZE + 48)
    assert tunnel.rx_bytes > 3 * 100_000
    assert 100_000 <= tunnel.traffic <= 100_000 + train
    waited = rate / 8 * shaping.HELD
    assert 100_000 - train - waited <= passed * SIZE <= 100_000 + train
    assert set(one.drops) <= {"quota_reached", "rate_exceeded"}
    limit(one)
    assert tunnel.traffic <= 100_000 + train, "what was dropped stays uncounted"


def test_other_peers_notice_nothing() -> None:
    one = limited(rate=64_000)
    limit(one)
    assert receive(one, *[v4("10.1.0.5")] * 2000).packets == [v4("10.1.0.5")] * 2000
    assert tunnel_of(one).limits is None
    assert not one._diverted


def test_a_quota_stops_both_ways_at_its_bytes_and_a_higher_one_lets_them_go_on() -> None:
    one = limited(cap=50_000)
    sent = 0
    for _ in range(100):
        sent += sum(len(run) for _, run in one.outbound(outbound(1), T).runs)
    tunnel = tunnel_of(one)
    assert 50_000 <= tunnel.traffic < 50_000 + SIZE + 100
    assert receive(one, v4("10.1.0.5")).packets == []
    assert one.drops == {"quota_reached": 100 - sent + 1}
    limit(one, cap=60_000)
    assert receive(one, v4("10.1.0.5")).packets
    assert one.outbound(outbound(1), T).runs


def test_what_waits_goes_on_waiting_for_another_cap_or_rate_within_its_room() -> None:
    one = limited(rate=RATE, cap=10**9)
    begun = len(one.outbound(outbound(60), T).runs[0][1])
    for rate in (RATE, 2 * RATE, 64_000):
        limit(one, rate=rate, cap=10**8)
        assert (one.drops["rate_exceeded"] > 0) == (rate == 64_000)
        assert tunnel_of(one).next_deadline() is not None
    later = 0
    while (at := one.next_deadline()) is not None and at < T + 9:
        later += sum(len(run) for _, run in one.act(at).runs)
    assert later > 5
    assert begun + later + one.drops["rate_exceeded"] == 60


def test_what_waits_passes_at_once_when_the_rate_ends() -> None:
    one = limited(rate=RATE)
    sent = len(one.outbound(outbound(40), T).runs[0][1])
    came = len(receive(one, *[v4("10.1.0.5", size=SIZE)] * 40).packets)
    out = limit(one)
    assert sent + sum(len(run) for _, run in out.runs) == 40
    assert came + len(out.packets) == 40
    assert one.drops == {}
    assert tunnel_of(one).limits is None


def test_what_waits_is_dropped_when_the_rate_ends_beyond_the_quota() -> None:
    one = limited(rate=RATE, cap=10**9)
    sent = len(one.outbound(outbound(40), T).runs[0][1])
    limit(one, cap=1)
    assert one.drops == {"quota_reached": 40 - sent}


def test_no_report_says_less_than_the_one_before() -> None:
    """The largest packets must make room for the smallest ones."""
    one, now, seen, refused = limited(rate=64_000, cap=10**9), T, 0, 0
    tunnel = tunnel_of(one)
    for turn in range(60):
        limit(one, rate=64_000 + turn % 2 * 10**6, cap=10**9)
        big, small = v4("10.1.0.5", size=1400), v4("10.1.0.6", size=40)
        receive(one, *([big] * 3 if turn % 3 == 0 else [small] * 20), now=now)
        assert tunnel.traffic >= seen
        seen, now = tunnel.traffic, now + 0.01
        refused = max(refused, tunnel.refused)
    assert one.drops["rate_exceeded"] > 0
    assert refused > 0


def test_a_peer_that_goes_takes_what_waits_with_it() -> None:
    one = limited(rate=RATE)
    one.outbound(outbound(40), T)
    one.remove_peer(PEER)
    assert not one._diverted
    assert one.next_deadline() is None or one.act(one.next_deadline() or 0).runs == []


def test_what_waits_is_dropped_when_the_quota_ends() -> None:
    drops = Reasons()
    limits = Limits((RATE, RATE), 1000, drops, T)
    passed = limits.to_peer([bytes(SIZE)] * 40, 0, T)
    assert limits.to_peer((), 1000, T + 60) == []
    assert drops == {"quota_reached": 40 - len(passed)}


def test_mixed_sizes_keep_their_order() -> None:
    rng, shaper = random.Random(5), Shaper(RATE, T)
    packets = [rng.randbytes(rng.choice((40, 400, 1400))) for _ in range(50)]
    found, _ = shaper.pass_on(packets, T)
    while (at := shaper.next_deadline()) is not None:
        found += shaper.release(at)
    assert found == packets[: len(found)]
