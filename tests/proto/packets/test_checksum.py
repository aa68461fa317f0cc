"""The Internet checksum: word by word it comes to the same."""

from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as by_scapy
from tests.proto.packets.flows import Shape, sums_are_right

from stagewire.proto.packets import checksum


@given(st.binary(max_size=2000) | st.integers(0, 3000).map(bytes) | st.integers(0, 3000).map(lambda n: b"\xff" * n))
def test_it_is_what_others_make_it(data: bytes) -> None:
    for given_as in (data, bytearray(data), memoryview(data)):
        assert checksum.remainder(given_as) == (0xFFFF - by_scapy(data)) % 0xFFFF
        assert checksum.of(checksum.remainder(given_as)) % 0xFFFF == by_scapy(data) % 0xFFFF


def test_it_is_never_zero() -> None:
    assert checksum.of(0) == 0xFFFF
    assert checksum.of(0xFFFF) == 0xFFFF
    assert checksum.of(1) == 0xFFFE


@given(st.sampled_from([4, 6]), st.sampled_from([6, 17]), st.binary(max_size=300), st.integers(0, 2**32))
def test_right_and_wrong_packets_are_told_apart(version: int, protocol: int, payload: bytes, at: int) -> None:
    packet = bytearray(Shape(version, protocol, payload=payload).packet())
    start = 20 if version == 4 else 40
    assert checksum.valid(packet, start, protocol)
    assert sums_are_right(bytes(packet))
    packet[start + at % (len(packet) - start)] ^= 1 + at % 255
    assert not checksum.valid(packet, start, protocol)
    assert not sums_are_right(bytes(packet))
