"""What was said is found again, as far as it is whole."""

import os
from collections.abc import Iterator

import pytest

from stagewire.process import handed
from stagewire.process.hand_down import Said


@pytest.fixture
def said() -> Iterator[Said]:
    made = Said()
    yield made
    os.close(made.descriptor)


def test_who_comes_after_reads_it_and_goes_on_with_it(said: Said) -> None:
    said.add(b"one")
    said.add(b"")
    after = Said(said.descriptor)
    assert after.messages() == [b"one", b""]
    after.add(b"three")
    assert said.messages() == [b"one", b"", b"three"]
    after.begin()
    assert said.messages() == []


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_message_that_is_cut_off_is_none(said: Said, cut: int) -> None:
    said.add(b"one")
    said.add(b"two")
    os.ftruncate(said.descriptor, os.fstat(said.descriptor).st_size - cut)
    assert said.messages() == [b"one"]


def test_too_much_is_nothing_until_all_is_said_anew(said: Said) -> None:
    said.add(bytes(handed.MAX_SAID - 8))
    assert len(said.messages()) == 1
    said.add(bytes(8))
    said.add(b"more")
    assert said.messages() == []
    assert Said(said.descriptor).messages() == []
    said.begin()
    said.add(b"one")
    assert said.messages() == [b"one"]
