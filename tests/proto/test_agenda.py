"""One next deadline of many: never late, and each owner asked once for each question."""

import random

from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.agenda import Agenda


def test_asks_in_order_of_time() -> None:
    agenda: Agenda[str] = Agenda()
    assert agenda.next_deadline() is None
    agenda.enter("b", 2.0)
    agenda.enter("a", 1.0)
    agenda.enter("c", 3.0)
    assert agenda.next_deadline() == 1.0
    assert agenda.due(0.9) == []
    assert agenda.due(2.0) == ["a", "b"]
    assert agenda.due(2.0) == []
    assert agenda.next_deadline() == 3.0


def test_earlier_replaces_later_and_not_the_other_way() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.enter("a", 5.0)
    agenda.enter("a", 3.0)
    agenda.enter("a", 9.0)
    agenda.enter("a", None)
    assert agenda.next_deadline() == 3.0
    assert agenda.due(10.0) == ["a"]
    assert agenda.next_deadline() is None


def test_forgotten_owners_are_not_asked_and_may_come_back() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.enter("a", 1.0)
    agenda.forget("a")
    agenda.forget("a")
    assert agenda.next_deadline() is None
    agenda.enter("a", 1.0)
    assert agenda.due(1.0) == ["a"]
    assert agenda.due(1.0) == []


def test_owners_need_not_be_comparable() -> None:
    agenda: Agenda[object] = Agenda()
    owners = [object() for _ in range(10)]
    for owner in owners:
        agenda.enter(owner, 1.0)
    assert agenda.due(1.0) == owners


def test_stale_entries_do_not_pile_up() -> None:
    agenda: Agenda[int] = Agenda()
    for turn in range(10_000):
        agenda.enter(1, turn + 10.0)
        for owner in agenda.due(float(turn)):
            agenda.enter(owner, turn + 10.0)
    assert len(agenda._heap) < 10


@given(st.integers(0, 2**32))
def test_is_never_late_whatever_is_entered(seed: int) -> None:
    rng = random.Random(seed)
    agenda: Agenda[int] = Agenda()
    earliest: dict[int, float] = {}
    now = 0.0
    for _ in range(200):
        owner, when = rng.randrange(5), now + rng.randrange(1, 20)
        match rng.randrange(4):
            case 0:
                agenda.forget(owner)
                earliest.pop(owner, None)
            case 1:
                now += rng.randrange(5)
                asked = agenda.due(now)
                assert len(asked) == len(set(asked))
                assert set(asked) == {owner for owner, when in earliest.items() if when <= now}
                for one in asked:
                    del earliest[one]
            case _:
                agenda.enter(owner, when)
                earliest[owner] = min(when, earliest.get(owner, when))
        assert agenda.next_deadline() == min(earliest.values(), default=None)
