"""Inner packets: addresses, lengths and flows, for which scapy is the reference."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import example, given, settings
from tests.proto.packets.by_scapy import CHAINED, PACKETS, v4, v6

from stagewire.proto.packets import ip


def test_addresses() -> None:
    for packet in (v4(), memoryview(v4())):
        assert ip.source(packet) == bytes([10, 1, 2, 3])
        assert ip.destination(packet) == bytes([10, 9, 8, 7])
        assert type(ip.source(packet)) is type(ip.destination(packet)) is bytes
    for packet in (v6(), memoryview(v6())):
        assert ip.source(packet) == b"\xfd" + bytes(14) + b"\3"
        assert ip.destination(packet) == b"\xfd" + bytes(14) + b"\7"
        assert type(ip.source(packet)) is type(ip.destination(packet)) is bytes


@pytest.mark.parametrize(
    ("address", "for_many"),
    [
        ("ff02::2", True), ("ff02::16", True), ("224.0.0.251", True), ("239.255.255.250", True), ("255.255.255.255", True),
        ("fe80::1", False), ("fd00::1", False), ("10.0.0.255", False), ("240.0.0.1", False), ("223.255.255.255", False),
    ],
)  # fmt: skip
def test_an_address_of_many(address: str, for_many: bool) -> None:
    assert ip.is_for_many(ip_address(address).packed) is for_many


@pytest.mark.parametrize(("packet", "header"), [(v4(), 20), (v6(), 40)])
def test_no_address_without_a_whole_header(packet: bytes, header: int) -> None:
    for length in range(len(packet) + 1):
        assert (ip.source(packet[:length]) is None) is (length < header)
        assert (ip.destination(packet[:length]) is None) is (length < header)


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 8, 15])
def test_other_versions(version: int) -> None:
    packet = bytes([version << 4 | 5, 0, 0, 60]) + bytes(96)
    assert ip.source(packet) is None
    assert ip.destination(packet) is None
    assert ip.inner_length(packet) == 0


@pytest.mark.parametrize("packet", [v4(), v6()], ids=["IPv4", "IPv6"])
def test_length(packet: bytes) -> None:
    assert ip.inner_length(packet) == len(packet)
    assert ip.inner_length(packet + bytes(15)) == len(packet)
    for length in range(len(packet)):
        assert ip.inner_length(packet[:length]) == 0


def test_ipv4_lengths() -> None:
    def packet(ihl: int, total: int, size: int = 60) -> bytes:
        return (bytes([0x40 | ihl, 0]) + struct.pack("!H", total) + bytes(100))[:size]

    assert ip.inner_length(packet(5, 20, 20)) == 20
    assert ip.inner_length(packet(5, 60)) == 60
    assert ip.inner_length(packet(15, 60)) == 60
    for ihl, total in [(4, 60), (0, 60), (5, 19), (5, 0), (6, 23), (15, 59), (5, 61), (5, 65535)]:
        assert ip.inner_length(packet(ihl, total)) == 0, (ihl, total)
    assert ip.inner_length(packet(6, 24, 20)) == 0


def test_ipv6_lengths() -> None:
    def packet(payload: int, next_header: int, size: int = 60) -> bytes:
        return (b"\x60\0\0\0" + struct.pack("!HB", payload, next_header) + bytes(100))[:size]

    assert ip.inner_length(packet(0, 59)) == 40
    assert ip.inner_length(packet(20, 17)) == 60
    assert ip.inner_length(packet(8, 0)) == 48
    for payload, next_header in [(0, 0), (21, 17), (65535, 17)]:
        assert ip.inner_length(packet(payload, next_header)) == 0


@settings(max_examples=300)
@given(PACKETS | CHAINED)
@example(b"")
def test_no_bytes_raise(packet: bytes) -> None:
    assert len(ip.source(packet) or bytes(4)) in (4, 16)
    assert ip.source(memoryview(packet)) == ip.source(packet)
    assert ip.destination(memoryview(packet)) == ip.destination(packet)
    assert 0 <= ip.inner_length(packet) <= len(packet)


def test_a_flow_is_addresses_and_ports() -> None:
    four = bytes([0x45]) + bytes(8) + b"\x06" + bytes(2) + bytes(range(1, 9)) + b"\x14\x51\x9c\x40" + bytes(16)
    assert ip.flow(four) == bytes(range(1, 9)) + b"\x14\x51\x9c\x40"
    assert ip.flow(memoryview(four)) == ip.flow(four[:9] + b"\x11" + four[10:]) == ip.flow(four)
    assert ip.flow(four[:6] + b"\x40" + four[7:]) == ip.flow(four)  # it may not be cut
    assert ip.flow(four[:9] + b"\x01" + four[10:]) == b""
    six = bytes([0x60]) + bytes(5) + b"\x06\x40" + bytes(range(32)) + b"\x14\x51\x9c\x40" + bytes(16)
    assert ip.flow(six) == bytes(range(32)) + b"\x14\x51\x9c\x40"
    assert ip.flow(six[:6] + b"\x3a" + six[7:]) == b""


def test_of_fragments_options_and_extension_headers_no_flow_can_be_told() -> None:
    four = bytes([0x45]) + bytes(8) + b"\x11" + bytes(40)
    for place, value in ((0, 0x46), (6, 0x20), (6, 0x01), (7, 0x09)):
        changed = bytearray(four)
        changed[place] = value
        assert ip.flow(bytes(changed)) is None
    assert ip.flow(bytes([0x60]) + bytes(5) + b"\x2c\x40" + bytes(60)) is None
    assert ip.flow(bytes(40)) is None
