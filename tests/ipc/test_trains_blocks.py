"""Cipher trains of blocks: they and what comes between them arrive in order, and a shorter datagram ends a run."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.ipc import trains
from stagewire.proto import endpoint as places
from stagewire.proto.offload.block import Block

NOW = 1000.0
PLACES = [bytes([4, 0]) + bytes([number]) * (places.LENGTH - 2) for number in range(3)]

blocks = st.builds(
    lambda size, count, cut: (
        Block(bytes(range(1, 1 + count)) * size, size) if not cut else Block(bytes(size * count - 1), size)
    ),
    st.sampled_from([2, 33, 96, 1452]),
    st.integers(1, 45),
    st.booleans(),
)
singles = st.lists(st.sampled_from([31, 32, 33, 64, 96, 1452]).map(bytes), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(PLACES), blocks | singles), max_size=8))
def test_blocks_and_what_comes_between_them_arrive_in_order(train: list[tuple[bytes, Sequence[bytes]]]) -> None:
    arrived = trains.unpack_cipher_untrusted(trains.pack_cipher(train, NOW), NOW)
    flat = [(place, datagram) for place, datagrams in train for datagram in datagrams]
    assert [(place, datagram) for place, datagrams in arrived for datagram in datagrams] == flat
    for _, block in arrived:
        assert len(block) <= trains.MAX_PACKETS
        assert len(block.data) <= trains.MAX_RUN


@pytest.mark.parametrize(
    ("block", "then", "ends_it"),
    [
        (Block(bytes(3 * 1452), 1452), [bytes(96)], True),
        (Block(bytes(3 * 1452), 1452), [bytes(1452)], True),
        (Block(bytes(3 * 1452), 1452), [bytes(96), bytes(96)], True),
        (Block(bytes(3 * 1452), 1452), [bytes(32)], False),  # an empty packet
        (Block(bytes(3 * 96), 96), [bytes(97)], False),
        (Block(bytes(3 * 1452 - 1), 1452), [bytes(96)], False),  # has an end
        (Block(bytes(64 * 96), 96), [bytes(96)], False),
        (Block(bytes(45 * 1452), 1452), [bytes(168)], False),  # 65,508
    ],
)
def test_a_shorter_datagram_ends_the_run_before_it(block: Block, then: list[bytes], ends_it: bool) -> None:
    for place in PLACES[:2]:
        arrived = trains.unpack_cipher_untrusted(trains.pack_cipher([(PLACES[0], block), (place, then)], NOW), NOW)
        joined = ends_it and place == PLACES[0]
        assert len(arrived[0][1]) == len(block) + joined
        assert sum(len(run) for _, run in arrived) == len(block) + len(then)
