"""The rate limiter: the Linux kernel's self-test with a clock of our own, its capacity, and what it forgets."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.ratelimit import RateLimiter

# Milliseconds to wait, then whether the message is allowed.
SEQUENCE = [
    (0, True),
    (0, True),
    (0, True),
    (0, True),
    (0, True),
    (0, False),
    (50, True),
    (0, False),
    (100, True),
    (0, True),
    (0, False),
]


@pytest.mark.parametrize("start", [0.0, 0.1, 1.7, 12_345.678, 9_999_999.999])
def test_the_sequence(start: float) -> None:
    limiter = RateLimiter()
    now = start
    for step, (wait, expected) in enumerate(SEQUENCE):
        now += wait / 1000
        assert limiter.allow(ip_address("167.0.0.1").packed, now) is expected, f"step {step}"
        assert limiter.allow((0x0A000000 + step).to_bytes(4), now) is True


def test_an_ipv6_source_is_its_first_64_bits() -> None:
    limiter = RateLimiter()
    now = 5.0
    for step, (wait, expected) in enumerate(SEQUENCE):
        now += wait / 1000
        same = ip_address(f"2001:db8:1:2:{step * 4369:x}:1234:{step * 7:x}:{step + 9:x}").packed
        assert limiter.allow(same, now) is expected, f"step {step}"
        assert limiter.allow(ip_address(f"2001:db8:1:{step + 3:x}::1").packed, now) is True


def test_an_ipv4_source_is_all_its_bits() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        assert limiter.allow(b"\x0a\0\0\1", 1.0)
    assert not limiter.allow(b"\x0a\0\0\1", 1.0)
    assert limiter.allow(b"\x0a\0\0\2", 1.0)


def test_just_before_it_is_due() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        assert limiter.allow(b"abcd", 7.0)
    assert not limiter.allow(b"abcd", 7.0499)
    assert limiter.allow(b"abcd", 7.05)


def test_no_more_than_the_burst_is_saved() -> None:
    limiter = RateLimiter()
    assert limiter.allow(b"abcd", 0.0)
    assert [limiter.allow(b"abcd", 0.9) for _ in range(6)] == [True] * 5 + [False]


def test_capacity() -> None:
    limiter = RateLimiter(max_entries=500)
    assert all(limiter.allow(host.to_bytes(4), 3.0) for host in range(500))
    assert len(limiter._buckets) == 500
    assert not limiter.allow((500).to_bytes(4), 3.0)
    assert not limiter.allow((500).to_bytes(4), 4.0)
    assert limiter.allow((0).to_bytes(4), 4.0)  # those it knows are served
    assert len(limiter._buckets) == 500


def test_idle_sources_are_forgotten_after_a_second() -> None:
    limiter = RateLimiter(max_entries=2)
    assert limiter.allow(b"aaaa", 10.0)
    assert limiter.allow(b"bbbb", 10.0)
    assert limiter.allow(b"aaaa", 10.9)
    assert not limiter.allow(b"cccc", 11.0)  # bbbb is idle for a second, no more
    assert not limiter.allow(b"cccc", 11.999)  # it was looked into less than a second ago
    assert limiter.allow(b"cccc", 12.0)
    assert len(limiter._buckets) == 1


def test_an_idle_source_is_found_behind_a_busy_one() -> None:
    limiter = RateLimiter(max_entries=2)
    assert limiter.allow(b"busy", 10.0)
    assert limiter.allow(b"idle", 10.0)
    assert limiter.allow(b"busy", 10.9)
    assert limiter.allow(b"cccc", 11.5)
    assert len(limiter._buckets) == 2


def test_a_source_that_goes_on_asking_is_kept() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        limiter.allow(b"abcd", 0.0)
    allowed = sum(limiter.allow(b"abcd", step / 1000) for step in range(1, 5001))
    assert allowed == 100  # 20 a second, for 5 s
    assert len(limiter._buckets) == 1


def test_forgetting_gives_nothing_away() -> None:
    limiter = RateLimiter()
    for _ in range(8):
        limiter.allow(b"abcd", 0.0)
    limiter.allow(b"efgh", 2.5)
    assert len(limiter._buckets) == 1
    assert [limiter.allow(b"abcd", 2.5) for _ in range(6)] == [True] * 5 + [False]


def test_a_clock_that_goes_back_neither_gives_nor_takes() -> None:
    limiter = RateLimiter()
    for _ in range(5):
        limiter.allow(b"abcd", 5.0)
    assert not limiter.allow(b"abcd", 4.0)
    assert not limiter.allow(b"abcd", 4.01)
    assert limiter.allow(b"abcd", 4.05)


@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 2)), max_size=60))
def test_against_exact_buckets(steps: list[tuple[int, int]]) -> None:
    limiter = RateLimiter()
    buckets: dict[int, tuple[int, int]] = {}
    now = 0
    for wait, source in steps:
        now += wait
        last, tokens = buckets.get(source, (now, 250_000))
        tokens = min(250_000, tokens + now - last)
        expected = tokens >= 50_000
        buckets[source] = (now, tokens - 50_000 * expected)
        assert limiter.allow(bytes([source] * 4), now / 1e6) is expected
