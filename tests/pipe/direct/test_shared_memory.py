"""Memory that both ends of a pipe share: whose a slot is, and what neither end may be talked into."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewire.pipe.direct.shared_memory import SLOT, SLOTS, BadMemory, Memory


class Ends:
    """A pusher's and a reader's."""

    def __init__(self) -> None:
        self.pusher = Memory.make()
        self.reader = self.attach()

    def attach(self) -> Memory:
        return Memory(os.dup(self.pusher.descriptor))

    def lay(self, train: bytes) -> int | None:
        return self.pusher.lay([train[:10], memoryview(train)[10:]], len(train))

    def take(self, slot: int, length: int) -> bytes | None:
        found = self.reader.take_untrusted(slot, length)
        return None if found is None else found[0][found[1] : found[2]]

    def close(self) -> None:
        self.pusher.close()
        self.reader.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_a_train_arrives_as_it_was_and_its_slot_is_used_again(ends: Ends) -> None:
    ends.reader.begin()
    for _ in range(3):
        train = os.urandom(70_000)
        assert ends.lay(train) == 0
        assert ends.take(0, len(train)) == train
        ends.reader.release()


def test_nothing_is_laid_before_there_is_a_reader(ends: Ends) -> None:
    assert ends.lay(bytes(5000)) is None
    ends.reader.begin()
    assert ends.lay(bytes(5000)) == 0


def test_what_is_told_of_or_in_hand_is_left_alone(ends: Ends) -> None:
    ends.reader.begin()
    trains = [bytes([number]) * 5000 for number in range(SLOTS)]
    assert [ends.lay(train) for train in trains] == list(range(SLOTS))
    assert ends.lay(bytes(5000)) is None
    assert [ends.take(slot, 5000) for slot in range(SLOTS)] == trains
    assert ends.lay(bytes(5000)) is None
    ends.reader.release()
    assert ends.lay(bytes(5000)) == 0


def test_who_takes_over_finds_what_waits_and_frees_what_was_in_hand(ends: Ends) -> None:
    ends.reader.begin()
    for number in range(3):
        ends.lay(bytes([number]) * 5000)
    assert ends.take(0, 5000) == bytes(5000)
    ends.reader.close()
    ends.reader = ends.attach()
    ends.reader.begin()
    assert ends.lay(b"n" * 5000) == 0
    assert [ends.take(slot, 5000) for slot in (1, 2, 0)] == [b"\1" * 5000, b"\2" * 5000, b"n" * 5000]


def test_what_could_not_be_told_of_is_free_again(ends: Ends) -> None:
    ends.reader.begin()
    assert ends.lay(bytes(5000)) == 0
    ends.pusher.take_back(0)
    assert ends.lay(bytes(5000)) == 0


def test_a_train_longer_than_a_slot_is_not_laid(ends: Ends) -> None:
    ends.reader.begin()
    assert ends.lay(bytes(SLOT + 1)) is None
    assert ends.lay(bytes(SLOT)) == 0


@pytest.mark.parametrize(
    ("slot", "length"),
    [
        pytest.param(1, 5000, id="nothing was laid there"),
        pytest.param(SLOTS, 5000, id="no such slot"),
        pytest.param(255, 5000, id="far beyond"),
        pytest.param(0, SLOT + 1, id="longer than it"),
    ],
)
def test_a_pusher_that_tells_of_what_is_not_there_is_not_believed(ends: Ends, slot: int, length: int) -> None:
    ends.reader.begin()
    ends.lay(bytes(5000))
    assert ends.take(slot, length) is None
    assert ends.take(0, 5000) is not None
    assert ends.take(0, 5000) is None  # once


def test_a_slot_is_taken_once_a_turn_whatever_its_pusher_makes_of_the_state(ends: Ends) -> None:
    """Or one who sets it again and again has a reader handle gigabytes in a turn."""
    ends.reader.begin()
    assert ends.lay(bytes(5000)) == 0
    assert ends.take(0, 5000) is not None
    ends.pusher.map[0] = 1
    assert ends.take(0, 5000) is None
    ends.reader.release()
    assert ends.lay(bytes(5000)) == 0
    assert ends.take(0, 5000) is not None


def test_what_may_become_shorter_or_is_no_memory_is_not_taken(tmp_path: Path) -> None:
    """Whoever reads where a file has ended is killed by the kernel."""
    good = Memory.make()
    size = os.fstat(good.descriptor).st_size
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, size)
    plain = os.open(tmp_path / "plain", os.O_RDWR | os.O_CREAT)
    os.ftruncate(plain, size)
    short = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(short, fcntl.F_ADD_SEALS, fcntl.fcntl(good.descriptor, fcntl.F_GET_SEALS))
    good.close()
    reading, writing = os.pipe()
    device = os.open("/dev/null", os.O_RDWR)
    for descriptor in (unsealed, plain, short, reading, writing, device):
        with pytest.raises(BadMemory):
            Memory(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)  # closed
