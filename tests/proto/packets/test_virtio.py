"""The ten bytes before a packet: what goes in comes out, and nothing else gets through."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.packets import fields, virtio
from stagewire.proto.packets.virtio import BadSuperPacket, VirtioHeader

PLAIN = VirtioHeader(0, fields.GSO_NONE, 0, 0, 0, 0)
SUPER = VirtioHeader(fields.NEEDS_CSUM, fields.GSO_TCPV4, 52, 1368, 20, 16)


def test_it_is_laid_out_as_the_kernel_has_it() -> None:
    assert SUPER.pack() == struct.pack("=BBHHHH", 1, 1, 52, 1368, 20, 16)
    assert SUPER._replace(ecn=True).pack() == struct.pack("=BBHHHH", 1, 0x81, 52, 1368, 20, 16)
    assert PLAIN.pack() == virtio.NONE == bytes(10)


@pytest.mark.parametrize(
    "header",
    [
        PLAIN,
        SUPER,
        SUPER._replace(kind=fields.GSO_TCPV6, csum_start=40),
        SUPER._replace(kind=fields.GSO_UDP_L4, csum_offset=6),
        SUPER._replace(ecn=True),
        VirtioHeader(fields.NEEDS_CSUM, fields.GSO_NONE, 0, 0, 20, 6),
        VirtioHeader(fields.DATA_VALID, fields.GSO_NONE, 0, 0, 0, 0),
    ],
)
def test_what_goes_in_comes_out(header: VirtioHeader) -> None:
    assert virtio.unpack_untrusted(header.pack(), 3000) == header


@pytest.mark.parametrize(
    "header",
    [
        SUPER._replace(kind=2),
        SUPER._replace(kind=3),  # fragments of a UDP datagram: long gone
        SUPER._replace(flags=4 | 1),
        SUPER._replace(flags=0),
        SUPER._replace(segment_size=0),
        SUPER._replace(csum_offset=8),
        SUPER._replace(csum_start=2983),
        SUPER._replace(csum_start=0xFFFF),
        VirtioHeader(0, fields.GSO_NONE, 0, 0, 0, 0, ecn=True),
    ],
)
def test_what_makes_no_sense_is_refused(header: VirtioHeader) -> None:
    with pytest.raises(BadSuperPacket):
        virtio.unpack_untrusted(header.pack(), 3000)


def test_its_length_is_fixed() -> None:
    for length in (0, 9, 11):
        with pytest.raises(BadSuperPacket):
            virtio.unpack_untrusted(bytes(length), 3000)


@given(st.binary(min_size=10, max_size=10), st.integers(0, 0xFFFF))
def test_anything_is_a_header_or_a_bad_one(data: bytes, length: int) -> None:
    try:
        header = virtio.unpack_untrusted(data, length)
    except BadSuperPacket:
        return
    assert header.pack() == data
    assert header.csum_start + header.csum_offset + 2 <= length or not header.flags & fields.NEEDS_CSUM


@given(st.binary(min_size=10, max_size=10), st.integers(0, 0xFFFF))
def test_counting_never_fails(data: bytes, length: int) -> None:
    assert 1 <= virtio.count(data, length) <= max(1, length)


def test_packets_are_counted_by_the_hint() -> None:
    assert virtio.count(virtio.NONE, 1420) == 1
    assert virtio.count(SUPER.pack(), 52 + 1368) == 1
    assert virtio.count(SUPER.pack(), 52 + 1369) == 2
    assert virtio.count(SUPER.pack(), 52 + 43 * 1368) == 43
