"""Which of our messages may still be answered."""

from stagewire.proto.awaited import AWAITED_FOR, MAX_ANSWERS, Awaited

T = 1000.0


def test_an_index_is_awaited_for_a_while() -> None:
    awaited = Awaited(T)
    assert not awaited.answered(7)
    awaited.sent(7, T)
    assert awaited.answered(7)
    assert not awaited.answered(8)
    awaited.sent(8, T + AWAITED_FOR)
    assert not awaited.answered(7)
    assert len(awaited) == 1


def test_a_few_answers_to_each() -> None:
    awaited = Awaited(T)
    for index in (7, 8):
        awaited.sent(index, T)
    assert [awaited.answered(7) for _ in range(MAX_ANSWERS + 1)] == [True] * MAX_ANSWERS + [False]
    assert awaited.answered(8)


def test_it_settles_once_every_message_before_it_has_had_its_time() -> None:
    awaited = Awaited(T)
    assert not awaited.settled(T + AWAITED_FOR - 1)
    assert awaited.settled(T + AWAITED_FOR)


def test_it_holds_no_more_than_we_sent_lately() -> None:
    awaited = Awaited(T)
    for number in range(10_000):
        awaited.sent(number, T + number / 100)
    assert len(awaited) <= AWAITED_FOR * 100 + 1
