"""A super-packet cut is what its packets would have been had they been made one by one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto.packets.flows import ACK, CWR, FIN, PSH, TCP, UDP, Shape, sums_are_right, supers, whole

from stagewire.proto.packets import fields, split, virtio
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.packets.virtio import BadSuperPacket


@given(supers())
def test_cut_it_is_what_it_stands_for(shape: Shape) -> None:
    found = whole(shape)
    train = split.split(found)
    assert train == shape.train()
    assert (len(train), train[0]) == (found.count, found.first())
    assert all(map(sums_are_right, train))


def test_flags_that_belong_to_an_end_are_there_alone() -> None:
    found = whole(Shape(payload=bytes(350), flags=ACK | PSH | FIN | CWR))
    assert [packet[33] for packet in split.split(found)] == [ACK | CWR, ACK, ACK, ACK | PSH | FIN]


@given(supers(most=2).map(lambda shape: replace(shape, payload=shape.payload[: shape.size])))
def test_a_lone_packets_checksum_is_made(shape: Shape) -> None:
    header, packet = shape.as_read()
    assert split.open_untrusted(header, memoryview(packet)) == shape.packet()
    # The same in a super-packet's clothes.
    place = 16 if shape.protocol == TCP else 6
    kind = fields.GSO_UDP_L4 if shape.protocol == UDP else fields.GSO_TCPV4 if shape.version == 4 else fields.GSO_TCPV6
    start = 20 if shape.version == 4 else 40
    dressed = virtio.VirtioHeader(fields.NEEDS_CSUM, kind, 0, shape.size, start, place)
    assert split.open_untrusted(dressed.pack(), packet) == shape.packet()


def test_a_packet_like_any_other_is_left_alone() -> None:
    for packet in (b"", b"\x45", Shape().packet()):
        assert split.open_untrusted(virtio.NONE, packet) == packet
        assert split.open_untrusted(virtio.NONE, memoryview(packet)) == packet


def test_ipv6_extension_headers_are_copied() -> None:
    header, packet = Shape(6, payload=bytes(250)).as_read()
    extension = bytes([TCP, 0, 1, 4, 0, 0, 0, 0])
    packet = packet[:6] + b"\0" + packet[7:40] + extension + packet[40:]
    said = virtio.unpack_untrusted(header, len(packet))._replace(csum_start=48)
    whole = split.open_untrusted(said.pack(), packet)
    assert isinstance(whole, SuperPacket)
    for cut in split.split(whole):
        assert cut[40:48] == extension
        plain = cut[:4] + (len(cut) - 48).to_bytes(2) + bytes([TCP]) + cut[7:40] + cut[48:]
        assert sums_are_right(plain)


WHOLE = Shape(payload=bytes(300)).as_read()


@pytest.mark.parametrize(
    ("change", "at", "value"),
    [
        ({"kind": fields.GSO_TCPV6}, 0, 0x45),
        ({"kind": fields.GSO_UDP_L4, "csum_offset": 6}, 0, 0x45),  # the protocol says TCP
        ({"csum_offset": 6}, 0, 0x45),
        ({"csum_start": 24}, 0, 0x45),
        ({}, 0, 0x46),
        ({}, 0, 0x44),
        ({}, 6, 0x20),  # more fragments
        ({}, 7, 0x01),
        ({}, 9, UDP),
        ({}, 32, 0x40),  # a TCP header shorter than one
        ({"segment_size": 0xFFF0}, 0, 0x45),
    ],
)
def test_a_packet_that_isnt_what_its_header_says_is_refused(change: dict[str, int], at: int, value: int) -> None:
    header, packet = WHOLE
    said = virtio.unpack_untrusted(header, len(packet))._replace(**change)  # type: ignore[arg-type]
    changed = bytearray(packet)
    changed[at] = value
    with pytest.raises(BadSuperPacket):
        split.open_untrusted(said.pack(), bytes(changed))


def test_every_cut_is_a_packet_or_refused() -> None:
    header, packet = WHOLE
    for length in range(len(packet)):
        if length <= 40:
            with pytest.raises(BadSuperPacket):
                split.open_untrusted(header, packet[:length])
        else:
            split.open_untrusted(header, packet[:length])


@settings(max_examples=300)
@given(
    st.binary(min_size=10, max_size=10) | st.just(WHOLE[0]),
    supers(most=5).map(lambda shape: shape.as_read()[1]),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=4),
)
def test_anything_is_a_packet_a_super_packet_or_refused(
    header: bytes, packet: bytes, damage: list[tuple[int, int]]
) -> None:
    changed = bytearray(packet)
    for at, value in damage:
        changed[at % len(changed)] = value
    try:
        whole = split.open_untrusted(header, bytes(changed))
    except BadSuperPacket:
        return
    if isinstance(whole, SuperPacket):
        train = split.split(whole)
        assert b"".join(cut[whole.headers :] for cut in train) == changed[whole.headers :]
