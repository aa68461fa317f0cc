"""Session indices: unique, carrying their worker, and freed."""

import random
from collections.abc import Callable

import pytest

from stagewire.proto.index import IndexTable, worker_of


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def scripted(*values: bytes) -> Callable[[int], bytes]:
    remaining = list(values)

    def random_bytes(count: int) -> bytes:
        value = remaining.pop(0)
        assert len(value) == count
        return value

    return random_bytes


def test_layout() -> None:
    table = IndexTable(scripted(b"\x12\x34\x56"))
    index = table.allocate(0x9A)
    assert sorted(index.to_bytes(4)) == sorted(b"\x12\x34\x56\x9a")
    assert index & 0xFF == 0x9A
    assert worker_of(index) == 0x9A


@pytest.mark.parametrize("worker", [0, 1, 7, 128, 255])
def test_the_worker_is_in_the_index(worker: int) -> None:
    table = IndexTable(seeded(worker))
    for _ in range(50):
        index = table.allocate(worker)
        assert 0 <= index < 2**32
        assert worker_of(index) == worker


@pytest.mark.parametrize("worker", [-1, 256, 1000])
def test_no_such_worker(worker: int) -> None:
    table = IndexTable(seeded(0))
    with pytest.raises(ValueError, match="0 to 255"):
        table.allocate(worker)
    assert len(table._used) == 0


def test_a_collision_is_tried_again() -> None:
    table = IndexTable(scripted(b"aaa", b"aaa", b"aaa", b"bbb"))
    first = table.allocate(1)
    second = table.allocate(1)
    assert first != second
    assert len(table._used) == 2


def test_workers_do_not_collide() -> None:
    table = IndexTable(scripted(b"aaa", b"aaa"))
    assert table.allocate(1) != table.allocate(2)


def test_a_broken_source_of_randomness_does_not_hang() -> None:
    table = IndexTable(bytes)
    table.allocate(3)
    with pytest.raises(RuntimeError):
        table.allocate(3)


def test_many_are_unique_and_spread() -> None:
    table = IndexTable(seeded(11))
    indices = [table.allocate(5) for _ in range(20_000)]
    assert len(set(indices)) == len(table._used) == 20_000
    # Random in all 24 bits: of each, about half are set.
    for bit in range(8, 32):
        assert 9_000 < sum(index >> bit & 1 for index in indices) < 11_000


def test_claim_and_release() -> None:
    table = IndexTable(seeded(1))
    assert table.claim(0x01020304)
    assert not table.claim(0x01020304)
    assert 0x01020304 in table._used
    assert 0x01020305 not in table._used
    table.release(0x01020304)
    table.release(0x01020304)
    assert 0x01020304 not in table._used
    assert len(table._used) == 0
    assert table.claim(0x01020304)


def test_a_claimed_index_is_not_allocated_until_released() -> None:
    table = IndexTable(scripted(b"aaa", b"bbb", b"aaa"))
    taken = IndexTable(scripted(b"aaa")).allocate(4)
    assert table.claim(taken)
    assert table.allocate(4) != taken
    table.release(taken)
    assert table.allocate(4) == taken
