"""The compiled admission: what `proto.admission` decides, message by message."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.proto import admission as plain

compiled = pytest.importorskip("stagewire.proto.kernel.admission")
SECRET, T = bytes(range(16)), 1000.0

SOURCES = st.one_of(
    st.builds(lambda last, port: bytes([192, 0, 2, last, 0, port]), st.integers(0, 3), st.integers(0, 2)),
    st.binary(min_size=6, max_size=6),
    st.builds(
        lambda network, host: b"\x20\x01" + bytes([network]) * 5 + bytes([host]) * 11,
        st.integers(0, 3),
        st.integers(0, 3),
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), SOURCES, st.integers(1, 300), st.booleans(), st.booleans(), st.booleans()),
        st.tuples(st.just("answered"), SOURCES, st.integers(1, 30)),
        st.tuples(st.just("wait"), st.floats(0, 1), st.integers(1, 12)),
        st.tuples(st.just("pass"), st.one_of(st.floats(0, 2), st.sampled_from([-0.5, 0.001, 1.0, 10.0, 25.0]))),
    ),
    max_size=25,
)


class Both:
    """Takes the same steps with both, and keeps what each said."""

    def __init__(self) -> None:
        self.sides: list[Any] = [plain.Admission(SECRET), compiled.Admission(SECRET)]
        self.said: list[list[int]] = [[], []]
        self.now, self.number = T, 0

    def ask(self, source: bytes, times: int, known: bool, again: bool, loaded: bool = False) -> None:
        for _ in range(times):
            self.number += not again
            message = bytes(116) + self.number.to_bytes(16, "little") + bytes(16)
            for side, said in zip(self.sides, self.said, strict=True):
                said.append(side.admit(message, source, self.now, known=known, loaded=loaded))

    def answered(self, source: bytes, times: int) -> None:
        for _ in range(times):
            for side in self.sides:
                side.answered(source)

    def wait(self, part: float, times: int) -> None:
        for _ in range(times):
            for side in self.sides:
                side.note_wait(part, self.now)

    def take(self, steps: list[Any]) -> None:
        for step, *given_with in steps:
            if step == "pass":
                self.now += given_with[0]
            else:
                getattr(self, step)(*given_with)
            assert self.said[0] == self.said[1]


@settings(deadline=None)
@given(STEPS)
def test_each_message_has_the_same_verdict(steps: list[Any]) -> None:
    Both().take(steps)


def test_floods_have_the_same_verdicts() -> None:
    """Each bound is reached: of a source, an address, a network, all strangers, idle processors and what is remembered."""
    both = Both()
    steps: list[Any] = [("wait", 0.0, 10)]
    for second in range(3):
        steps += [
            ("ask", bytes([10, number % 251, second, 7, 1, number % 199]), 1, False, False) for number in range(9000)
        ]
        steps += [("ask", bytes([192, 0, 2, 1, 0, number % 20]), 20, number % 2 == 0, False) for number in range(40)]
        steps += [("answered", number.to_bytes(3, "big") + bytes(3), 1) for number in range(5000)]
        steps += [("ask", number.to_bytes(3, "big") + bytes(3), 1, False, False) for number in range(700, 1200)]
        steps += [("pass", 0.7), ("ask", bytes(6), 1, True, True), ("wait", 1.0, second), ("pass", 0.4)]
    both.take([*steps, ("pass", 21.0), *steps[:2000]])
    assert set(both.said[0]) == {plain.ADMITTED, plain.REFUSED, plain.SEEN}


def test_only_bytes_are_taken() -> None:
    admission = compiled.Admission(SECRET)
    for message, source in ((None, bytes(6)), (bytes(148), None), (bytearray(148), bytes(6)), (bytes(148), "source")):
        with pytest.raises(TypeError):
            admission.admit(message, source, T, known=False)
    assert admission.admit(b"", b"", T, known=False) == plain.ADMITTED  # nothing beyond what is given is read
