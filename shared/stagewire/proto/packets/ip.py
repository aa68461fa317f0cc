"""Reads an inner packet as far as a tunnel must: addresses, flow and length (RFC 791, RFC 8200)."""

from typing import Final

from stagewire.proto.packets import fields as f
from stagewire.proto.packets.fields import (  # by name: the functions below are hot
    V4_FIRST,
    V4_FRAGMENT,
    V4_HEADER,
    V4_LENGTH,
    V4_PROTOCOL,
    V6_HEADER,
    V6_LENGTH,
    V6_NEXT,
)

_PORTS: Final = frozenset({f.TCP, f.UDP})
_FRAGMENT_HIGH: Final = (f.MORE_FRAGMENTS | f.FRAGMENT_OFFSET) >> 8
"""Bits of the field's first byte."""
_SOURCE_4: Final = slice(f.V4_SOURCE, f.V4_DESTINATION)
_SOURCE_6: Final = slice(f.V6_SOURCE, f.V6_DESTINATION)
_DESTINATION_4: Final = slice(f.V4_DESTINATION, V4_HEADER)
_DESTINATION_6: Final = slice(f.V6_DESTINATION, V6_HEADER)
V4_FLOW: Final = slice(f.V4_SOURCE, V4_HEADER + f.PORTS_END)
V6_FLOW: Final = slice(f.V6_SOURCE, V6_HEADER + f.PORTS_END)
"""Addresses and ports of a packet without options or extension headers."""


def source(packet: bytes | memoryview) -> bytes | None:
    """Returns the packed source address (4 or 16 bytes) of an IP packet; None without a whole header. hot"""
    length = len(packet)
    if length >= V4_HEADER:
        version = packet[0] >> 4
        if version == 4:
            return bytes(packet[_SOURCE_4])
        if version == 6 and length >= V6_HEADER:
            return bytes(packet[_SOURCE_6])
    return None


def destination(packet: bytes | memoryview) -> bytes | None:
    """Returns the packed destination address (4 or 16 bytes) of an IP packet; None without a whole header. hot"""
    length = len(packet)
    if length >= V4_HEADER:
        version = packet[0] >> 4
        if version == 4:
            return bytes(packet[_DESTINATION_4])
        if version == 6 and length >= V6_HEADER:
            return bytes(packet[_DESTINATION_6])
    return None


def is_for_many(address: bytes) -> bool:
    """Tells whether an address (4 or 16 bytes) is a multicast address, or the broadcast address."""
    first = address[0]
    return first == 0xFF if len(address) == 16 else 224 <= first < 240 or address == b"\xff\xff\xff\xff"


def flow(packet: bytes | memoryview) -> bytes | None:
    """Returns a TCP or UDP flow's addresses and ports. None if they can't be read, b"" for other protocols.

    There must be a whole IP header. hot
    """
    if packet[0] == V4_FIRST:
        if packet[V4_FRAGMENT] & _FRAGMENT_HIGH or packet[V4_FRAGMENT + 1]:  # a fragment may lack the ports
            return None
        return bytes(packet[V4_FLOW]) if packet[V4_PROTOCOL] in _PORTS else b""
    if packet[0] >> 4 == 6:
        if packet[V6_NEXT] in _PORTS:
            return bytes(packet[V6_FLOW])
        return b"" if packet[V6_NEXT] == f.ICMPV6 else None
    return None


def inner_length(packet: bytes) -> int:
    """Counts the bytes of the IP packet in `packet`, by its own header; the rest is padding.

    0 for a malformed packet: no whole header of version 4 or 6, or a length less than the header or more than `packet`.
    An IPv6 jumbogram (RFC 2675) counts as malformed. hot
    """
    length = len(packet)
    if length < V4_HEADER:
        return 0
    first = packet[0]
    if first >> 4 == 4:
        total = packet[V4_LENGTH] << 8 | packet[V4_LENGTH + 1]
        header = (first & 0x0F) * 4
        return total if V4_HEADER <= header <= total <= length else 0
    if first >> 4 == 6 and length >= V6_HEADER:
        total = V6_HEADER + (packet[V6_LENGTH] << 8 | packet[V6_LENGTH + 1])
        if total > length or (total == V6_HEADER and packet[V6_NEXT] == f.HOP_BY_HOP):
            return 0
        return total
    return 0
