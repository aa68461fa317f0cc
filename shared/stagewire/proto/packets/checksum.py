"""Computes the Internet checksum (RFC 1071) by way of long integers.

The ones' complement sum of 16-bit words equals the long integer that they make, modulo 65,535: each word's weight is a
power of 65,536 and so 1. A sum of 65,535 then looks like 0; but only zeros add up to 0, and no header is all zeros.
"""

from typing import Final

from stagewire.proto.packets import fields as f

_MODULUS: Final = 0xFFFF
_CHUNK: Final = 256
"""Bytes, even. Chunks are added first, as the remainder of one long integer costs more than making it."""


def remainder(data: bytes | bytearray | memoryview) -> int:
    """Sums `data` as big-endian words, with zeros after the last: 0 to 65,534, where 0 stands for 65,535. hot"""
    length = len(data)
    if length <= _CHUNK:
        total = int.from_bytes(data)
        return (total << 8 if length % 2 else total) % _MODULUS
    whole = length - length % _CHUNK
    total = sum([int.from_bytes(data[at : at + _CHUNK]) for at in range(0, whole, _CHUNK)])
    rest = int.from_bytes(data[whole:])
    return (total + (rest << 8 if length % 2 else rest)) % _MODULUS


def of(total: int) -> int:
    """Returns the checksum of data whose words add up to `total`, without the checksum's own field.

    Never 0, which means no checksum in UDP; 65,535 is the same number.
    """
    return -total % _MODULUS or _MODULUS


def pseudo_header(packet: bytes | bytearray | memoryview, protocol: int, length: int) -> int:
    """Sums an IP packet's addresses, protocol and payload length, as the checksum of TCP or UDP needs them.

    RFC 9293, section 3.1, and RFC 8200, section 8.1.
    """
    addresses = packet[f.V4_SOURCE : f.V4_HEADER] if packet[0] >> 4 == 4 else packet[f.V6_SOURCE : f.V6_HEADER]
    return int.from_bytes(addresses) + protocol + length


def valid(packet: bytes | bytearray | memoryview, start: int, protocol: int) -> bool:
    """Tells whether the checksum of the TCP or UDP header at `start` is right. A UDP checksum of 0 is not."""
    total = remainder(packet[start:]) + pseudo_header(packet, protocol, len(packet) - start)
    return total % _MODULUS == 0
