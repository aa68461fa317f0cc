"""`struct virtio_net_hdr`, which stands before each packet of a TUN device with IFF_VNET_HDR.

Linux, include/uapi/linux/virtio_net.h; VIRTIO 1.2, section 5.1.6. Its integers are in the host's own byte order, as a TUN
device has them unless told otherwise.
"""

import struct
from typing import Final, NamedTuple

LENGTH: Final = 10
NONE: Final = bytes(LENGTH)
"""Of a packet like any other: one packet, its checksum complete."""

NEEDS_CSUM: Final = 1
"""The 16 bits at `csum_start + csum_offset` are still to be made, of all that follows `csum_start`."""
DATA_VALID: Final = 2
"""The checksum was found right already."""

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80
"""Added to the type: congestion window reduced is set in the TCP header."""
_KINDS: Final = frozenset({GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4})
_PLACES: Final = frozenset({6, 16})
"""Where UDP and TCP have their checksum."""

_HEADER: Final = struct.Struct("=BBHHHH")


class BadSuperPacket(Exception):  # noqa: N818 - it is the sender's error
    """A header that makes no sense, or doesn't fit its packet."""


class VirtioHeader(NamedTuple):
    """Lengths and offsets in bytes, from the start of the packet. `header_length` is only a hint."""

    flags: int
    kind: int
    """GSO_*, without GSO_ECN."""
    header_length: int
    segment_size: int
    """Payload of each packet it stands for, the last may have less; 0 if it stands for itself."""
    csum_start: int
    csum_offset: int
    ecn: bool = False

    def pack(self) -> bytes:
        """The 10 bytes."""
        flags, kind, *rest, ecn = self
        return _HEADER.pack(flags, kind | GSO_ECN if ecn else kind, *rest)


def unpack_untrusted(header: bytes | memoryview, length: int) -> VirtioHeader:
    """The header of a packet of `length` bytes. Raises BadSuperPacket.

    What it has is of a known kind, and what it points at is inside the packet; whether the packet is what the header says,
    is for who reads the packet. Hot for super-packets, 1.3 us; a plain packet's header is NONE, and needs no parsing.
    """
    if len(header) != LENGTH:
        raise BadSuperPacket("no header")
    flags, kind, header_length, segment_size, csum_start, csum_offset = _HEADER.unpack(header)
    ecn = bool(kind & GSO_ECN)
    kind &= ~GSO_ECN
    if kind not in _KINDS or flags & ~(NEEDS_CSUM | DATA_VALID):
        raise BadSuperPacket("of no known kind")
    if flags & NEEDS_CSUM:
        if csum_offset not in _PLACES or csum_start + csum_offset + 2 > length:
            raise BadSuperPacket("a checksum outside")
    elif kind != GSO_NONE:
        # Every packet it stands for has a checksum of its own, to be made of it.
        raise BadSuperPacket("a super-packet with a complete checksum")
    if kind != GSO_NONE and segment_size == 0:
        raise BadSuperPacket("segments of no size")
    if kind == GSO_NONE and ecn:
        raise BadSuperPacket("of no known kind")
    return VirtioHeader(flags, kind, header_length, segment_size, csum_start, csum_offset, ecn)


def count(header: bytes | memoryview, length: int) -> int:
    """How many packets a packet of `length` bytes stands for, by the header's own hint; never less than 1.

    For counters alone: it is not checked against the packet.
    """
    if header == NONE:
        return 1
    _, kind, header_length, segment_size, _, _ = _HEADER.unpack(header)
    if not kind or not segment_size or length <= header_length:
        return 1
    return int(-(-(length - header_length) // segment_size))
