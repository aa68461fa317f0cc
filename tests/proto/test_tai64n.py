"""Time stamps: their bytes, their order, and that a clock that stands still or goes back can't stop them."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.messages import BadMessage
from stagewire.proto.tai64n import MAX_JUMP_NS, STEP_NS, UNSET_BEFORE_NS, Anchor, Stamper, decode_untrusted, encode

SECOND = 10**9
TIMES = st.integers(0, 2**62 * SECOND)


def test_layout() -> None:
    assert encode(0).hex() == "400000000000000a00000000"
    assert encode(1 * SECOND + STEP_NS).hex() == "400000000000000b01000000"
    # 59 * 2**24 is the greatest multiple below a second.
    assert encode(2 * SECOND - 1).hex() == "400000000000000b3b000000"


@given(TIMES)
def test_nanoseconds_are_rounded_down(unix_ns: int) -> None:
    stamp = encode(unix_ns)
    assert len(stamp) == 12
    assert int.from_bytes(stamp[8:]) % STEP_NS == 0
    assert 0 <= unix_ns - decode_untrusted(stamp) < STEP_NS


@given(TIMES, TIMES)
def test_bytes_compare_as_times(a: int, b: int) -> None:
    earlier, later = sorted((a, b))
    assert encode(earlier) <= encode(later)


@pytest.mark.parametrize("unix_ns", [-1, -(10**20), (2**62 + 1) * SECOND])
def test_no_stamp_outside_the_range(unix_ns: int) -> None:
    with pytest.raises(ValueError, match="no time stamp"):
        encode(unix_ns)


@pytest.mark.parametrize(
    "stamp",
    [
        b"",
        encode(0)[:-1],
        encode(0) + b"\0",
        bytes(12),
        bytes.fromhex("4000000000000009") + bytes(4),
        bytes.fromhex("ffffffffffffffff") + bytes(4),
        ((2**62 + 10) + 2**62 + 1).to_bytes(8) + bytes(4),
        encode(0)[:8] + SECOND.to_bytes(4),
        encode(0)[:8] + b"\xff" * 4,
    ],
)
def test_bad_stamps(stamp: bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        decode_untrusted(stamp)
    assert caught.value.reason == "bad_timestamp"


def test_limits_are_good_stamps() -> None:
    assert decode_untrusted(encode(0)[:8] + (SECOND - 1).to_bytes(4)) == SECOND - 1
    assert decode_untrusted(encode(2**62 * SECOND)) == 2**62 * SECOND


@given(st.binary(max_size=16))
def test_nothing_but_bad_message_is_raised(stamp: bytes) -> None:
    with suppress(BadMessage):
        assert decode_untrusted(stamp) >= 0


def test_a_clock_that_stands_still_or_goes_back() -> None:
    stamper = Stamper()
    now = 1_700_000_000 * SECOND
    stamps = [stamper.next(now, 0.0) for _ in range(200)]
    stamps += [stamper.next(now - i * SECOND, 0.0) for i in range(200)]
    stamps += [stamper.next(-5, 0.0)]
    assert all(a < b for a, b in pairwise(stamps))
    assert all(int.from_bytes(stamp[8:]) % STEP_NS == 0 for stamp in stamps)
    assert stamper.last == stamps[-1]
    # 60 steps a second, so that the stamps do not run far ahead: 401 stamps, less than 7 s.
    assert decode_untrusted(stamper.last) - now < 7 * SECOND


def test_a_clock_that_goes_on_is_followed() -> None:
    stamper = Stamper()
    assert stamper.next(5 * SECOND, 0.0) == encode(5 * SECOND)
    assert stamper.next(9 * SECOND, 0.0) == encode(9 * SECOND)


@given(TIMES, st.lists(st.integers(-(10**12), 10**12), max_size=30))
def test_stamps_only_grow(start: int, steps: list[int]) -> None:
    floor = encode(min(start, 10**18))
    stamper = Stamper(floor)
    last, now = floor, 10**18
    for step in steps:
        now += step
        stamp = stamper.next(now, 0.0)
        assert stamp > last
        assert stamp >= encode(now)
        assert int.from_bytes(stamp[8:]) % STEP_NS == 0
        last = stamp


@pytest.mark.parametrize("nanoseconds", [0, 1, STEP_NS - 1, STEP_NS, 59 * STEP_NS, 999_999_999])
def test_a_floor_that_is_not_rounded_is_passed(nanoseconds: int) -> None:
    floor = encode(0)[:8] + nanoseconds.to_bytes(4)
    stamper = Stamper(floor)
    assert stamper.last == floor
    stamp = stamper.next(0, 0.0)
    assert stamp > floor
    assert int.from_bytes(stamp[8:]) % STEP_NS == 0


@pytest.mark.parametrize("floor", [b"", bytes(11) + b"\1", b"\xff" * 12])
def test_a_floor_that_is_no_stamp(floor: bytes) -> None:
    with pytest.raises(BadMessage):
        Stamper(floor)


TODAY, YEAR = 1_800_000_000 * SECOND, 365 * 86_400 * SECOND


def test_a_jump_ahead_is_not_followed() -> None:
    """Peers that have seen a stamp of ten years ahead answer no other for ten years."""
    stamper = Stamper()
    assert stamper.next(TODAY, 100.0) == encode(TODAY)
    assert stamper.next(TODAY + 10 * YEAR, 160.0) == encode(TODAY + 60 * SECOND)
    assert stamper.jump(TODAY + 10 * YEAR, 160.0) == 10 * YEAR - 60 * SECOND
    assert stamper.next(TODAY + 90 * SECOND, 190.0) == encode(TODAY + 90 * SECOND)
    assert stamper.jump(TODAY + 90 * SECOND, 190.0) == 0


def test_a_jump_back_is_not_followed_either() -> None:
    stamper = Stamper(anchor=Anchor(TODAY, 100.0))
    assert stamper.next(0, 200.0) == encode(TODAY + 100 * SECOND)
    assert stamper.next(0, 300.0) == encode(TODAY + 200 * SECOND)


@given(st.integers(-2 * MAX_JUMP_NS, 2 * MAX_JUMP_NS), st.floats(0, 10**8))
def test_up_to_a_day_is_followed(ahead: int, later: float) -> None:
    anchor = Anchor(TODAY, 100.0)
    unix_ns = TODAY + int(later * SECOND) + ahead
    followed = anchor.jump(unix_ns, 100.0 + later) == 0
    assert followed or abs(ahead) > MAX_JUMP_NS - 1000 * SECOND
    assert not followed or abs(ahead) < MAX_JUMP_NS + 1000 * SECOND


def test_a_clock_that_was_never_set_is_followed_to_its_first_time() -> None:
    """Some machines know the time only once the network has told them."""
    stamper = Stamper()
    assert stamper.next(5 * SECOND, 5.0) == encode(5 * SECOND)
    assert stamper.next(UNSET_BEFORE_NS + YEAR, 60.0) == encode(UNSET_BEFORE_NS + YEAR)
    assert stamper.next(UNSET_BEFORE_NS + 9 * YEAR, 61.0) == encode(UNSET_BEFORE_NS + YEAR + SECOND)


def test_the_floor_of_a_clock_that_was_ahead_is_passed() -> None:
    floor = encode(TODAY + 10 * YEAR)
    stamper = Stamper(floor, Anchor(TODAY, 100.0))
    assert stamper.next(TODAY + SECOND, 101.0) == encode(TODAY + 10 * YEAR + STEP_NS)
