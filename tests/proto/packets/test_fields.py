"""Offsets, lengths and flags, found again in what scapy and the kernel's layout make of a packet."""

import struct

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6

from stagewire.proto.packets import fields as f
from stagewire.proto.packets.virtio import VirtioHeader


def number(packet: bytes, start: int, end: int) -> int:
    return int.from_bytes(packet[start:end])


def test_ipv4() -> None:
    packet = bytes(
        IP(tos=3, len=1000, id=77, flags="DF", frag=5, ttl=9, proto=17, chksum=99, src="1.2.3.4", dst="5.6.7.8")
    )
    assert len(packet) == f.V4_HEADER
    assert packet[0] == f.V4_FIRST
    assert number(packet, f.V4_LENGTH, f.V4_IDENTIFICATION) == 1000
    assert number(packet, f.V4_IDENTIFICATION, f.V4_FRAGMENT) == 77
    assert number(packet, f.V4_FRAGMENT, f.V4_FRAGMENT + 2) == f.DONT_FRAGMENT | 5
    assert packet[f.V4_PROTOCOL] == f.UDP
    assert number(packet, f.V4_CHECKSUM, f.V4_SOURCE) == 99
    assert packet[f.V4_SOURCE : f.V4_DESTINATION] == bytes([1, 2, 3, 4])
    assert packet[f.V4_DESTINATION : f.V4_HEADER] == bytes([5, 6, 7, 8])


def test_every_bit_of_the_fragment_field_has_one_name() -> None:
    bits = (f.RESERVED_BIT, f.DONT_FRAGMENT, f.MORE_FRAGMENTS, f.FRAGMENT_OFFSET)
    assert sum(bits) == 0xFFFF
    for flag, bit in (("evil", f.RESERVED_BIT), ("DF", f.DONT_FRAGMENT), ("MF", f.MORE_FRAGMENTS)):
        assert number(bytes(IP(flags=flag)), f.V4_FRAGMENT, f.V4_FRAGMENT + 2) == bit


def test_ipv6() -> None:
    packet = bytes(IPv6(plen=1000, nh=58, hlim=9, src="fd00::1", dst="fd00::2"))
    assert len(packet) == f.V6_HEADER
    assert number(packet, f.V6_LENGTH, f.V6_NEXT) == 1000
    assert packet[f.V6_NEXT] == f.ICMPV6
    assert packet[f.V6_SOURCE : f.V6_DESTINATION] == b"\xfd" + bytes(14) + b"\1"
    assert packet[f.V6_DESTINATION : f.V6_HEADER] == b"\xfd" + bytes(14) + b"\2"


def test_tcp() -> None:
    segment = bytes(TCP(sport=1, dport=2, seq=3, ack=4, dataofs=5, flags="FPAC", window=6, chksum=7, urgptr=8))
    assert len(segment) == f.TCP_HEADER
    assert segment[: f.PORTS_END] == struct.pack("!HH", 1, 2)
    assert number(segment, f.TCP_SEQUENCE, f.TCP_ACKNOWLEDGEMENT) == 3
    assert number(segment, f.TCP_ACKNOWLEDGEMENT, f.TCP_DATA_OFFSET) == 4
    assert segment[f.TCP_DATA_OFFSET] >> 4 == 5
    assert segment[f.TCP_FLAGS] == f.TCP_FIN | f.TCP_PSH | f.TCP_ACK | f.TCP_CWR
    assert number(segment, f.TCP_WINDOW, f.TCP_CHECKSUM) == 6
    assert number(segment, f.TCP_CHECKSUM, f.TCP_URGENT) == 7
    assert number(segment, f.TCP_URGENT, f.TCP_HEADER) == 8


def test_udp_and_icmp() -> None:
    datagram = bytes(UDP(sport=1, dport=2, len=3, chksum=4))
    assert len(datagram) == f.UDP_HEADER
    assert number(datagram, f.UDP_LENGTH, f.UDP_CHECKSUM) == 3
    assert number(datagram, f.UDP_CHECKSUM, f.UDP_HEADER) == 4
    error = bytes(ICMP(type="dest-unreach", code="host-unreachable"))
    assert len(error) == f.ICMP_HEADER
    assert error[:2] == bytes([f.V4_UNREACHABLE, f.V4_HOST_UNREACHABLE])
    error = bytes(ICMPv6DestUnreach(code=3))
    assert len(error) == f.ICMP_HEADER
    assert error[:2] == bytes([f.V6_UNREACHABLE, f.V6_ADDRESS_UNREACHABLE])


def test_virtio_net_hdr() -> None:
    packed = VirtioHeader(f.NEEDS_CSUM, f.GSO_TCPV6, 60, 1000, 40, f.TCP_CHECKSUM, ecn=True).pack()
    assert packed == struct.pack("=BBHHHH", 1, 0x84, 60, 1000, 40, 16)
    assert len(packed) == f.VNET_HEADER
