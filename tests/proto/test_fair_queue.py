"""Flows take turns by bytes, keep their own order, and share a bounded room."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.fair_queue import MAX_FLOWS, OVERHEAD, QUANTUM, FairQueue

ROOM = 64 * 1024
HEADERS = 28


def packet(flow: int, number: int, size: int) -> bytes:
    """An IPv4 packet of UDP, with its number inside."""
    head = b"\x45" + bytes(8) + b"\x11" + bytes(10) + flow.to_bytes(2) * 2 + bytes(4) + number.to_bytes(4)
    return head + bytes(max(0, size - len(head)))


def flow_of(found: bytes) -> int:
    return int.from_bytes(found[20:22])


def number_of(found: bytes) -> int:
    return int.from_bytes(found[28:32])


PACKETS = st.lists(st.tuples(st.integers(0, 2 * MAX_FLOWS), st.integers(32, 3000), st.integers(0, 2)), max_size=200)
"""Each packet's flow and size, and how many are taken after it."""


@given(PACKETS)
def test_each_packet_leaves_once_and_a_flow_keeps_its_order(packets: list[tuple[int, int, int]]) -> None:
    queue, taken, gone, waits = FairQueue(ROOM), list[bytes](), list[bytes](), 0
    for number, (flow, size, takes) in enumerate(packets):
        made_room = queue.add(packet(flow, number, size))
        gone += made_room
        waits += 1 - len(made_room)
        for _ in range(min(takes, waits)):
            following = queue.next_size()
            taken.append(queue.take())
            assert len(taken[-1]) == following
            waits -= 1
        assert len(queue) == waits
        assert queue._size <= ROOM
        assert len(queue._flows) <= MAX_FLOWS + 1
    taken += queue.take_all()
    assert not queue
    assert sorted(map(number_of, taken + gone)) == list(range(len(packets)))
    for flow in range(MAX_FLOWS):
        numbers = [number_of(each) for each in taken if flow_of(each) == flow]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("sizes", [(1400, 1400), (1400, 100), (9000, 500), (64, 1500)])
def test_two_full_flows_share_by_bytes(sizes: tuple[int, int]) -> None:
    queue, numbers, passed = FairQueue(ROOM), count(), [0, 0]
    for _ in range(2000):
        for flow, size in enumerate(sizes):
            while queue._flows == {} or sum(flow_of(each) == flow for each in _held(queue)) < 3:
                queue.add(packet(flow, next(numbers), size))
        found = queue.take()
        passed[flow_of(found)] += len(found)
    assert abs(passed[0] - passed[1]) <= QUANTUM + max(sizes)


def _held(queue: FairQueue) -> list[bytes]:
    return [each for flow in queue._flows.values() for each in flow.packets]


def test_a_flow_that_has_just_begun_comes_first_but_only_for_a_turn() -> None:
    queue = FairQueue(ROOM)
    for number in range(20):
        queue.add(packet(1, number, 1000))
    queue.take()
    queue.take()  # its first turn is over
    for number in range(100, 110):
        queue.add(packet(2, number, 1000))
    assert [flow_of(queue.take()) for _ in range(7)] == [2, 2, 1, 2, 1, 1, 2]


def test_a_flow_of_few_bytes_comes_first_each_time() -> None:
    queue = FairQueue(ROOM)
    for number in range(40):
        queue.add(packet(1, number, 1000))
    for _ in range(2):  # its first turn
        queue.take()
    for number in range(16):
        queue.add(packet(2, number, 100))
        assert [flow_of(queue.take()) for _ in range(2)] == [2, 1]


def test_the_longest_flow_makes_room_from_its_front() -> None:
    queue = FairQueue(20 * (1000 + OVERHEAD))
    for number in range(19):
        assert queue.add(packet(1, number, 1000)) == []
    assert queue.add(packet(2, 100, 1000)) == []
    assert [number_of(each) for each in queue.add(packet(2, 101, 1000))] == [0]
    assert [number_of(each) for each in queue.add(packet(3, 102, 1000))] == [1]


def test_a_packet_larger_than_the_room_goes_alone() -> None:
    queue = FairQueue(20_000)
    queue.add(packet(1, 1, 1000))
    assert [number_of(each) for each in queue.add(packet(2, 2, 60_000))] == [2]
    assert number_of(queue.take()) == 1


def test_packets_without_a_flow_share_one() -> None:
    queue = FairQueue(ROOM)
    for first in (b"\x45", b"\x60"):
        for _ in range(3):
            queue.add(first + bytes(60))
    assert len(queue.take_all()) == 6
