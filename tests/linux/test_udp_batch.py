"""The compiled half of conn-service's handshakes receives and answers what Python does, on real sockets."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linux.udp_sides import HOSTS, opened

from conn_service.batch import MOST, Batch

compiled = pytest.importorskip("stagewire.linux.udp_batch")
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
PEERS = 3
LONGEST = 128 * 148
"""Bytes of a run that are kept."""

DATAGRAMS = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda fill, size: bytes([1, 0, 0, 0]) + bytes([fill]) * size, st.integers(0, 255), st.just(144)),
    st.builds(lambda fill, size: bytes([fill]) * size, st.integers(0, 255), st.integers(0, 1400)),
)
RUNS = st.tuples(st.lists(DATAGRAMS, min_size=1, max_size=12), st.booleans(), st.integers(0, PEERS - 1))
ANSWERS = st.lists(st.tuples(st.integers(0, 20), st.binary(min_size=64, max_size=64)), max_size=30)


class Side:
    """One Batch with a socket of its own, and the peers that send to it."""

    def __init__(self, batch: Any, family: int, stack: ExitStack) -> None:
        self.batch = batch
        self.socket = stack.enter_context(opened(family))
        self.socket.setsockopt(SOL_UDP, UDP_GRO, 1)

    def arrive(self, peers: Sequence[socket.socket], runs: list[Any]) -> None:
        target = self.socket.getsockname()
        for datagrams, whole, peer in runs:
            size = max(1, len(datagrams[0]))
            if whole and all(len(each) == size for each in datagrams[:-1]) and 0 < len(datagrams[-1]) <= size:
                note = (SOL_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))
                peers[peer].sendmsg([b"".join(datagrams)], [note], 0, target)
            else:
                for datagram in datagrams:
                    peers[peer].sendto(datagram, target)

    def receive(self, most: int = MOST) -> list[Any]:
        """All that is told of the arrivals."""
        found = self.batch.receive(self.socket, most)
        return [(data, size, source, self.batch.endpoint(number)) for number, (data, size, source) in enumerate(found)]


def took(peers: Sequence[socket.socket]) -> list[list[tuple[bytes, Any]]]:
    found: list[list[tuple[bytes, Any]]] = [[] for _ in peers]
    for number, each in enumerate(peers):
        while True:
            try:
                data, source = each.recvfrom(1 << 16)
            except BlockingIOError:
                break
            found[number].append((data, source[0]))
    return found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(HOSTS)), st.lists(st.tuples(st.lists(RUNS, max_size=8), ANSWERS), min_size=1, max_size=3))
def test_both_receive_and_answer_the_same(family: int, visits: list[Any]) -> None:
    with ExitStack() as stack:
        sides = [Side(Batch(), family, stack), Side(compiled.Batch(), family, stack)]
        peers = [stack.enter_context(opened(family)) for _ in range(PEERS)]
        for runs, answers in visits:
            found, sent, heard = [], [], []
            for side in sides:
                side.arrive(peers, runs)
                found.append(side.receive())
                for number, data in answers:
                    if number < len(found[-1]):
                        side.batch.answer(number, data)
                sent.append(side.batch.send(side.socket))
                heard.append(took(peers))
                assert side.batch.send(side.socket) == 0
            assert found[0] == found[1]
            assert sent[0] == sent[1] == sum(map(len, heard[0]))
            assert heard[0] == heard[1]


@pytest.mark.parametrize("family", sorted(HOSTS))
def test_no_more_is_taken_than_was_asked_for_and_nothing_where_nothing_is(family: int) -> None:
    with ExitStack() as stack:
        peer = stack.enter_context(opened(family))
        for batch in (Batch(), compiled.Batch()):
            side = Side(batch, family, stack)
            assert side.receive() == []
            side.arrive([peer], [([bytes([number])], False, 0) for number in range(MOST + 5)])
            assert [data for data, *_ in side.receive(3)] == [b"\0", b"\1", b"\2"]
            assert len(side.receive()) == MOST
            assert len(side.receive()) == 2
            assert side.receive() == []


def test_of_a_long_run_the_beginning_is_kept() -> None:
    with ExitStack() as stack:
        peer = stack.enter_context(opened(socket.AF_INET))
        sides = [Side(Batch(), socket.AF_INET, stack), Side(compiled.Batch(), socket.AF_INET, stack)]
        for side in sides:
            side.arrive([peer], [([bytes([number]) * 1400 for number in range(40)], True, 0)])
        first, second = (side.receive() for side in sides)
        assert [len(data) for data, *_ in first] == [LONGEST]
        assert first == second


def test_what_did_not_arrive_has_no_endpoint_and_no_answer() -> None:
    batch = compiled.Batch()
    with opened(socket.AF_INET) as ours, opened(socket.AF_INET) as peer:
        peer.sendto(b"1", ours.getsockname())
        assert len(batch.receive(ours)) == 1
        for number in (-1, 1, 64, 1 << 20):
            with pytest.raises(IndexError):
                batch.endpoint(number)
            with pytest.raises(ValueError, match="arrival"):
                batch.answer(number, bytes(64))
        for data in (b"", bytes(63), bytes(65)):
            with pytest.raises(ValueError, match="arrival"):
                batch.answer(0, data)
        with pytest.raises(TypeError):
            batch.answer(0, None)
        assert batch.send(ours) == 0
