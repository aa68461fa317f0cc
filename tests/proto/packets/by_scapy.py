"""Packets made by scapy, which is the reference for ours, and bytes that look like packets."""

import struct

from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

V4 = {"src": "10.1.2.3", "dst": "10.9.8.7"}
V6 = {"src": "fd00::3", "dst": "fd00::7"}


def raw(packet: Packet) -> bytes:
    return bytes(packet)


def v4(**fields: object) -> bytes:
    return raw(IP(**{**V4, **fields}) / UDP(sport=1, dport=2) / Raw(b"hello"))


def v6(**fields: object) -> bytes:
    return raw(IPv6(**{**V6, **fields}) / UDP(sport=1, dport=2) / Raw(b"hello"))


def headed(first: int, rest: bytes) -> bytes:
    """Bytes that look like a packet of their own length, so that more than the length is reached."""
    data = bytearray(bytes([first]) + rest)
    if first >> 4 == 4 and len(data) >= 20:
        data[2:4] = struct.pack("!H", len(data))
    elif first >> 4 == 6 and len(data) >= 40:
        data[4:6] = struct.pack("!H", len(data) - 40)
    return bytes(data)


PACKETS = st.binary(max_size=120) | st.builds(
    headed, st.sampled_from([0x45, 0x46, 0x4F, 0x60]), st.binary(max_size=120)
)
# Extension headers upon extension headers.
CHAINED = st.builds(
    lambda first, rest: headed(0x60, bytes(5) + bytes([first]) + bytes([64]) + b"\xfd" * 32 + rest),
    st.sampled_from([0, 43, 44, 51, 60, 135, 58]),
    st.lists(st.sampled_from([0, 1, 2, 43, 44, 51, 58, 60, 135, 255]), max_size=80).map(bytes),
)
