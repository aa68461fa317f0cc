"""How many handshakes may be under way at once."""

from stagewire.proto.pace import Pace

T = 1000.0


def test_so_many_begin_and_the_next_when_one_is_answered_or_late() -> None:
    pace: Pace[int] = Pace()
    assert pace.next_place() == 0
    for owner in range(Pace.AT_ONCE):
        assert pace.places(T + owner / 1000) == Pace.AT_ONCE - owner
        pace.begin(owner, T + owner / 1000)
    assert pace.places(T + 0.1) == 0
    assert pace.next_place() == T + Pace.WINDOW
    pace.end(7)
    pace.end(7)
    assert pace.next_place() == 0
    assert pace.places(T + 0.1) == 1
    pace.begin(7, T + 0.1)
    assert pace.places(T + Pace.WINDOW - 1e-6) == 0
    assert pace.places(T + Pace.WINDOW) == 1
    assert pace.places(T + Pace.WINDOW + 0.1) == Pace.AT_ONCE


def test_one_that_begins_again_holds_one_place_from_then_on() -> None:
    pace: Pace[int] = Pace()
    pace.begin(1, T)
    pace.begin(1, T + 0.4)
    assert pace.places(T + 0.5) == Pace.AT_ONCE - 1
    assert pace.places(T + 0.9) == Pace.AT_ONCE
