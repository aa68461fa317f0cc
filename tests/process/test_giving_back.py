"""A process gives pages back as it rests, and ever more rarely."""

import sys

import pytest

from stagewire.loop import Loop, boot_time
from stagewire.process import giving_back
from stagewire.process.giving_back import APART, RESTED, WhileResting


class Sharer:
    """Notes each time that pages are given back."""

    def __init__(self) -> None:
        self.times = 0

    def give_back(self) -> int:
        self.times += 1
        return 7


@pytest.fixture
def sharer(monkeypatch: pytest.MonkeyPatch) -> Sharer:
    sharer = Sharer()
    monkeypatch.setitem(sys.modules, giving_back.SHARER, sharer)
    return sharer


def test_a_process_that_shares_nothing_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, giving_back.SHARER, raising=False)
    assert giving_back.give_back() == 0


def test_pages_are_given_back_only_after_a_rest_and_each_time_after_twice_as_long(sharer: Sharer) -> None:
    loop = Loop()
    resting, begun = WhileResting(loop), boot_time()
    looks = [0.0, RESTED / 2, RESTED]
    for after in looks:
        loop.worked += 1
        resting._look(begun + after)
    assert sharer.times == 0
    rested = begun + 2 * RESTED
    resting._look(rested)
    assert sharer.times == 1
    for after, times in ((RESTED, 1), (APART, 2), (2.9 * APART, 2), (3 * APART, 3), (6.9 * APART, 3), (7 * APART, 4)):
        loop.worked += 1
        resting._look(rested + after - RESTED)
        resting._look(rested + after)
        assert sharer.times == times


def test_nothing_is_given_back_twice_without_work_between(sharer: Sharer) -> None:
    loop = Loop()
    resting, now = WhileResting(loop), boot_time()
    for after in (0, RESTED, 100 * RESTED, 1000 * RESTED):
        resting._look(now + after)
    assert sharer.times == 1


def test_a_loop_that_only_just_came_to_rest_looks_again_when_it_has_rested(sharer: Sharer) -> None:
    loop = Loop()
    resting, now = WhileResting(loop), boot_time()
    loop.worked += 1
    resting._look(now)
    assert not sharer.times
    loop._paced.act(now + 0.001)
    assert resting._paced.next_deadline() <= now + 0.001 + RESTED
