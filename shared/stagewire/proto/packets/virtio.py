"""Reads and makes `struct virtio_net_hdr`, which stands before each packet of a TUN device with IFF_VNET_HDR.

Linux, include/uapi/linux/virtio_net.h; VIRTIO 1.2, section 5.1.6. Integers are in the host's own byte order, the
default of a TUN device.
"""

import struct
from typing import Final, NamedTuple

from stagewire.proto.packets import fields as f

NONE: Final = bytes(f.VNET_HEADER)
"""The header of a lone packet with a complete checksum."""
_KINDS: Final = frozenset({f.GSO_NONE, f.GSO_TCPV4, f.GSO_TCPV6, f.GSO_UDP_L4})
_CHECKSUMS: Final = frozenset({f.UDP_CHECKSUM, f.TCP_CHECKSUM})

_HEADER: Final = struct.Struct("=BBHHHH")


class BadSuperPacket(Exception):  # noqa: N818 - it is the sender's error
    """Refuses a header that makes no sense, or doesn't fit its packet."""


class VirtioHeader(NamedTuple):
    """Holds a header. Lengths and offsets are in bytes from the start of the packet. `header_length` is only a hint."""

    flags: int
    kind: int
    """GSO_*, without GSO_ECN."""
    header_length: int
    segment_size: int
    """Payload bytes of each packet in a super-packet, the last may have fewer; 0 for a lone packet."""
    csum_start: int
    csum_offset: int
    ecn: bool = False

    def pack(self) -> bytes:
        flags, kind, *rest, ecn = self
        return _HEADER.pack(flags, kind | f.GSO_ECN if ecn else kind, *rest)


def unpack_untrusted(header: bytes | memoryview, length: int) -> VirtioHeader:
    """Reads the header of a packet of `length` bytes. Raises BadSuperPacket.

    Afterwards the kind is known, and all offsets are inside the packet. Whether the packet agrees with its header, its
    reader must check. A plain packet's header is NONE and needs no parsing. hot
    """
    if len(header) != f.VNET_HEADER:
        raise BadSuperPacket("no header")
    flags, kind, header_length, segment_size, csum_start, csum_offset = _HEADER.unpack(header)
    ecn = bool(kind & f.GSO_ECN)
    kind &= ~f.GSO_ECN
    if kind not in _KINDS or flags & ~(f.NEEDS_CSUM | f.DATA_VALID):
        raise BadSuperPacket("of no known kind")
    if flags & f.NEEDS_CSUM:
        if csum_offset not in _CHECKSUMS or csum_start + csum_offset + 2 > length:
            raise BadSuperPacket("a checksum outside")
    elif kind != f.GSO_NONE:
        # Each of its packets needs a checksum, made from the incomplete one.
        raise BadSuperPacket("a super-packet with a complete checksum")
    if kind != f.GSO_NONE and segment_size == 0:
        raise BadSuperPacket("segments of no size")
    if kind == f.GSO_NONE and ecn:
        raise BadSuperPacket("of no known kind")
    return VirtioHeader(flags, kind, header_length, segment_size, csum_start, csum_offset, ecn)


def count(header: bytes | memoryview, length: int) -> int:
    """Counts the packets in an item of `length` bytes, by the header's own hint; never less than 1.

    Only for counters: the hint is not checked against the packet.
    """
    if header == NONE:
        return 1
    _, kind, header_length, segment_size, _, _ = _HEADER.unpack(header)
    if not kind or not segment_size or length <= header_length:
        return 1
    return int(-(-(length - header_length) // segment_size))
