"""Deadlines that are met again and again, once, and only while there is work."""

from dataclasses import dataclass
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from stagewire.deadlines import IDLE_INTERVAL, Alarm, AllPaced, Every, Paced
from stagewire.loop import Loop, boot_time


@dataclass
class Work:
    worked: int = 0


def test_every_comes_at_once_and_then_in_intervals() -> None:
    calls = list[float]()
    every = Every(10.0, calls.append)
    start = boot_time()
    assert every.next_deadline() <= start
    every.act(start)
    assert every.next_deadline() == start + 10
    every.act(start + 35)  # late: the calls missed are not made up for
    assert every.next_deadline() == start + 45
    assert calls == [start, start + 35]


def test_an_alarm_is_in_the_loop_only_while_it_is_set() -> None:
    loop, calls = Loop(), list[float]()
    empty = len(loop._timed)
    alarm = Alarm(loop, calls.append)
    alarm.set(None)
    assert len(loop._timed) == empty
    alarm.set(boot_time() + 60)
    alarm.set(when := boot_time() + 0.002)
    assert len(loop._timed) == empty + 1
    while not calls:
        loop._turn()
    assert calls[0] >= when
    assert alarm.next_deadline() is None
    assert len(loop._timed) == empty


def test_an_alarm_may_be_set_again_and_others_cleared_while_it_rings() -> None:
    loop, calls = Loop(), list[str]()
    other = Alarm(loop, lambda _now: calls.append("other"))

    def ring(now: float) -> None:
        calls.append("first")
        other.set(None)
        if len(calls) < 3:
            first.set(now)

    first = Alarm(loop, ring)
    first.set(now := boot_time())
    other.set(now)
    while len(calls) < 3:
        loop._turn()
    assert calls == ["first"] * 3


def test_what_is_paced_comes_rarely_without_work_and_soon_with_it() -> None:
    calls, work = list[float](), Work()
    paced = Paced(work, 0.5, calls.append, phase=0.25)
    paced.act(100.0)
    assert paced.next_deadline() == 100.25
    paced.act(100.25)
    assert paced.next_deadline() == 100.25 + IDLE_INTERVAL
    paced.act(100.0)
    work.worked += 1
    assert paced.next_deadline() == 100.5
    paced.act(103.0)
    assert paced.next_deadline() == 105.25
    paced.at(104.0)
    paced.at(104.5)
    assert paced.next_deadline() == 104.0
    paced.act(104.0)
    assert paced.next_deadline() == 105.25
    assert calls == [100.0, 100.25, 100.0, 103.0, 104.0]


def test_an_action_may_bring_about_work_for_its_next_call() -> None:
    loop = Loop()

    def act(_now: float) -> None:
        loop.worked += 1

    paced = loop.add_paced(0.5, act)
    assert paced.next_deadline() < boot_time()  # first at once
    paced.act(100.0)
    assert paced.next_deadline() == 100.5


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("work"), st.integers(1, 3)),
        st.tuples(st.just("pass"), st.sampled_from((0.001, 0.05, 0.3, 1.0, 7.0))),
        st.tuples(st.just("at"), st.tuples(st.integers(0, 3), st.sampled_from((0.0, 0.02, 2.0)))),
        st.tuples(st.just("add"), st.sampled_from((0.1, 0.5, 1.0))),
    ),
    max_size=40,
)


@given(STEPS)
def test_together_they_are_called_as_each_would_be_alone(steps: list[tuple[str, object]]) -> None:
    together, alone = Work(), Work()
    group, members, singles = AllPaced(together), list[Paced](), list[Paced]()
    heard: tuple[list[object], list[object]] = ([], [])

    def add(interval: float) -> None:
        number = len(members)
        for work, found, paced in ((together, heard[0], members), (alone, heard[1], singles)):

            def act(now: float, work: Work = work, found: list[object] = found) -> None:
                found.append((number, now))
                work.worked += number == 1  # its calls bring about work

            paced.append(Paced(work, interval, act))
        group.add(members[-1])

    add(0.2)
    now = 100.0
    for kind, value in steps:
        if kind == "add":
            add(value)  # type: ignore[arg-type]
        elif kind == "work":
            together.worked += value  # type: ignore[operator]
            alone.worked += value  # type: ignore[operator]
        elif kind == "at":
            number, after = cast("tuple[int, float]", value)
            for each in (members, singles):
                each[number % len(each)].at(now + after)
        else:
            now += value  # type: ignore[operator]
        assert group.next_deadline() == min(each.next_deadline() for each in singles)
        if group.next_deadline() <= now:
            group.act(now)
            for single in singles:
                if single.next_deadline() <= now:
                    single.act(now)
        assert heard[0] == heard[1]
