"""The replay window: the known vectors, a plain set as the model, and jumps."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.proto.constants import REJECT_AFTER_MESSAGES as REJECT
from stagewire.proto.constants import WINDOW_SIZE
from stagewire.proto.replay import ReplayWindow

REACH = WINDOW_SIZE - 64
LIMIT = REACH + 1

# The steps of the Linux kernel's self-test, one window.
STEPS = [
    (0, True),
    (1, True),
    (1, False),
    (9, True),
    (8, True),
    (7, True),
    (7, False),
    (LIMIT, True),
    (LIMIT - 1, True),
    (LIMIT - 1, False),
    (LIMIT - 2, True),
    (2, True),
    (2, False),
    (LIMIT + 16, True),
    (3, False),
    (LIMIT + 16, False),
    (LIMIT * 4, True),
    (LIMIT * 4 - (LIMIT - 1), True),
    (10, False),
    (LIMIT * 4 - LIMIT, False),
    (LIMIT * 4 - (LIMIT + 1), False),
    (LIMIT * 4 - (LIMIT - 2), True),
    (LIMIT * 4 + 1 - LIMIT, False),
    (0, False),
    (REJECT, False),
    (REJECT - 1, True),
    (REJECT, False),
    (REJECT - 1, False),
    (REJECT - 2, True),
    (REJECT + 1, False),
    (REJECT + 2, False),
    (REJECT - 2, False),
    (REJECT - 3, True),
    (0, False),
]


def test_the_steps() -> None:
    window = ReplayWindow()
    assert len(STEPS) == 34
    for number, (counter, expected) in enumerate(STEPS, 1):
        assert window.accept(counter) is expected, f"step {number}"


@pytest.mark.parametrize(
    ("accepted", "then"),
    [
        (range(1, REACH + 1), [(0, True), (0, False)]),
        (range(2, REACH + 2), [(1, True), (0, False)]),
        (range(REACH, -1, -1), []),
        (range(REACH + 1, 0, -1), [(0, False)]),
        (range(REACH, 0, -1), [(REACH + 1, True), (0, False)]),
        (range(REACH, 0, -1), [(0, True), (REACH + 1, True)]),
    ],
)
def test_the_bulk_cases(accepted: Iterable[int], then: list[tuple[int, bool]]) -> None:
    window = ReplayWindow()
    assert all(window.accept(counter) for counter in accepted)
    for counter, expected in then:
        assert window.accept(counter) is expected


class Model:
    """A window that forgets nothing."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.newest = -1

    def accept(self, counter: int) -> bool:
        if counter >= REJECT or self.newest - counter > REACH or counter in self.seen:
            return False
        self.seen.add(counter)
        self.newest = max(self.newest, counter)
        return True


def compare(counters: Iterable[int]) -> None:
    window, model = ReplayWindow(), Model()
    for counter in counters:
        assert window.accept(counter) is model.accept(counter), counter


NEAR = st.integers(-70, 70)
EDGES = st.sampled_from(
    [0, 64, REACH, WINDOW_SIZE, WINDOW_SIZE + 64, 2 * WINDOW_SIZE, 2**30, 2**40, 2**63, REJECT, 2**64 - 71]
)


@settings(max_examples=150)
@given(st.lists(st.builds(lambda a, b: max(0, a + b), EDGES, NEAR), max_size=60))
def test_counters_at_the_edges(counters: list[int]) -> None:
    compare(counters)


@settings(max_examples=150)
@given(
    st.integers(0, REJECT - 1),
    st.lists(
        st.integers(-10, 10)
        | st.sampled_from([-REACH - 1, -REACH, 1 - REACH, -WINDOW_SIZE, 63, 64, 65, REACH, WINDOW_SIZE])
        | st.integers(-3 * WINDOW_SIZE, 3 * WINDOW_SIZE),
        max_size=60,
    ),
)
def test_steps_from_the_newest(start: int, steps: list[int]) -> None:
    window, model = ReplayWindow(), Model()
    for step in [0, *steps]:
        counter = max(0, start if model.newest < 0 else model.newest + step)
        assert window.accept(counter) is model.accept(counter), counter


@pytest.mark.parametrize("start", [0, 1, 63, 64, 8191, 2**40 + 17])
@pytest.mark.parametrize("jump", [1, 63, 64, 65, 8127, 8128, 8129, 8191, 8192, 8193, 16384, 2**32, 2**63])
def test_a_jump_leaves_nothing_and_forgets_nothing(start: int, jump: int) -> None:
    window, model = ReplayWindow(), Model()
    newest = start + jump
    around = [*range(start, max(-1, start - 300), -1), newest, *range(newest, max(0, newest - 8300), -1)]
    for counter in [*around, *around]:
        assert window.accept(counter) is model.accept(counter), counter


def test_a_long_run_in_order_wraps_the_ring() -> None:
    window = ReplayWindow()
    for counter in range(3 * WINDOW_SIZE):
        assert window.accept(counter)
        assert not window.accept(counter)


@pytest.mark.parametrize("lag", [1, 63, 64, 1000, REACH])
def test_late_ones_wrap_the_ring_too(lag: int) -> None:
    """Every second counter comes late, when its place in the ring has been used before."""
    window = ReplayWindow()
    for counter in range(1, 3 * WINDOW_SIZE, 2):
        assert window.accept(counter)
        late = (counter - lag) // 2 * 2
        if late >= max(0, counter - REACH):
            assert window.accept(late)
            assert not window.accept(late)


def test_the_last_counters() -> None:
    window = ReplayWindow()
    assert all(window.accept(counter) for counter in range(REJECT - 200, REJECT))
    assert not any(window.accept(counter) for counter in range(REJECT - 200, REJECT + 200))
    assert not window.accept(2**64 - 1)


def test_a_rejected_counter_changes_nothing() -> None:
    window = ReplayWindow()
    assert not window.accept(REJECT)
    assert not window.accept(2**64 - 1)
    assert window.accept(0)
