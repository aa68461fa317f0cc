"""A run of datagrams in one piece of memory reads as a sequence of them."""

import pytest

from stagewire.proto.packets.block import Block


def test_a_block_is_a_sequence_of_datagrams() -> None:
    block = Block(b"aabbc", 2)
    assert list(block) == [b"aa", b"bb", b"c"]
    assert (len(block), block[1], block[1:]) == (3, b"bb", [b"bb", b"c"])
    assert block == [b"aa", b"bb", b"c"]
    assert block != [b"aa"]
    assert repr(block) == "Block(3 x 2)"


@pytest.mark.parametrize("data", [b"aabb", memoryview(b"aabb")])
def test_the_last_may_be_whole(data: bytes | memoryview) -> None:
    block = Block(data, 2)
    assert (len(block), list(block)) == (2, [b"aa", b"bb"])
    assert all(type(datagram) is bytes for datagram in block)


def test_a_block_follows_its_memory() -> None:
    memory = bytearray(b"aabb")
    block = Block(memoryview(memory), 2)
    memory[:2] = b"zz"
    assert block[0] == b"zz"
    with pytest.raises(TypeError):
        hash(block)
