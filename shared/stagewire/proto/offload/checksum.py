"""The Internet checksum (RFC 1071), by way of long integers.

The ones' complement sum of 16-bit words is the number they make together, modulo 65,535, as the words' weights are powers
of 65,536 and so all 1. That doesn't tell a sum of 65,535 from one of 0, which only zeros have; and no header is all zeros.
"""

from typing import Final

_MODULUS: Final = 0xFFFF
_CHUNK: Final = 256
"""Bytes, even. The remainder of a long integer costs twice as much as making it of bytes, so a few are added before."""


def remainder(data: bytes | bytearray | memoryview) -> int:
    """The sum of `data` as big-endian words, the last one filled up with zeros: 0 to 65,534, where 0 stands for 65,535.

    Hot: 0.2 us for 60 bytes, 1.9 us for 1,420.
    """
    length = len(data)
    if length <= _CHUNK:
        total = int.from_bytes(data)
        return (total << 8 if length % 2 else total) % _MODULUS
    whole = length - length % _CHUNK
    total = sum([int.from_bytes(data[at : at + _CHUNK]) for at in range(0, whole, _CHUNK)])
    rest = int.from_bytes(data[whole:])
    return (total + (rest << 8 if length % 2 else rest)) % _MODULUS


def of(total: int) -> int:
    """The checksum of data whose words (the checksum's own field left out, or 0) add up to `total`.

    Never 0, which in UDP says that there is none; 65,535 is the same number.
    """
    return -total % _MODULUS or _MODULUS


def pseudo_header(packet: bytes | bytearray | memoryview, protocol: int, length: int) -> int:
    """What an IP packet's addresses, protocol and length of payload add to the checksum of TCP or UDP, as a sum.

    RFC 9293, section 3.1, and RFC 8200, section 8.1.
    """
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return int.from_bytes(addresses) + protocol + length


def valid(packet: bytes | bytearray | memoryview, start: int, protocol: int) -> bool:
    """Whether the checksum of TCP or UDP, whose header is at `start`, is right. A UDP checksum of 0 is not."""
    total = remainder(packet[start:]) + pseudo_header(packet, protocol, len(packet) - start)
    return total % _MODULUS == 0
