"""Answers a packet by an ICMP error: "destination unreachable".

RFC 792, RFC 1122 and RFC 1812 for IPv4, RFC 4443 for IPv6.
"""

import struct
from typing import Final

from stagewire.limits import MIN_MTU_IPV6
from stagewire.proto.packets import checksum
from stagewire.proto.packets import fields as f
from stagewire.proto.packets.ip import inner_length

_EXTENSIONS: Final = frozenset(
    {f.HOP_BY_HOP, f.ROUTING, f.FRAGMENT, f.AUTHENTICATION, f.DESTINATION_OPTIONS, f.MOBILITY, f.HOST_IDENTITY, f.SHIM6}
)
_MAX_V4_ERROR: Final = 576
_HOPS: Final = 64
_MESSAGE: Final = struct.Struct("!BBH4x")
"""(type, code, checksum)."""
_INTERNETWORK_CONTROL: Final = 0xC0


def unreachable(packet: bytes, source: bytes | None = None) -> bytes | None:
    """Makes the answer that the destination of `packet` can't be reached; None if no answer may be sent.

    IPv4: ICMP type 3 code 1, at most 576 bytes (RFC 1812, section 4.3.2.3). IPv6: ICMPv6 type 1 code 3, at most 1280
    (RFC 4443, section 3.1). No answer goes to an ICMP error, a malformed packet, or a fragment other than the first.
    Nor to a packet to many hosts, or from a source that isn't one host's (RFC 1122, section 3.2.2; RFC 4443, section
    2.4).

    The answer comes from `source` (packed, of the packet's own version, else ValueError), or without it from the
    destination of `packet`.
    """
    length = inner_length(packet)
    if length == 0:
        return None
    packet = packet[:length]
    if packet[0] >> 4 == 4:
        sender, receiver = packet[f.V4_SOURCE : f.V4_DESTINATION], packet[f.V4_DESTINATION : f.V4_HEADER]
    else:
        sender, receiver = packet[f.V6_SOURCE : f.V6_DESTINATION], packet[f.V6_DESTINATION : f.V6_HEADER]
    # Not from an address of ours: the kernel drops a packet from the TUN with one of the host's addresses as its
    # source (a martian). The destination is routed to the TUN, so an answer from it may come in.
    if source is None:
        source = receiver
    if len(source) != len(receiver):
        raise ValueError(f"a source of {len(source)} bytes for an answer to a packet with {len(receiver)}")
    if len(receiver) == 4:
        return _icmpv4(source, sender, packet) if _v4_may_be_answered(packet) else None
    return _icmpv6(source, sender, packet) if _v6_may_be_answered(packet) else None


def _v4_may_be_answered(packet: bytes) -> bool:
    # This network (0/8), loopback (127/8), or multicast, class E and broadcast (224/3).
    if packet[f.V4_SOURCE] in (0, 127) or packet[f.V4_SOURCE] >= 224:
        return False
    if 224 <= packet[f.V4_DESTINATION] < 240 or packet[f.V4_DESTINATION : f.V4_HEADER] == b"\xff\xff\xff\xff":
        return False
    if (packet[f.V4_FRAGMENT] << 8 | packet[f.V4_FRAGMENT + 1]) & f.FRAGMENT_OFFSET:
        return False
    if packet[f.V4_PROTOCOL] != f.ICMP:
        return True
    header = (packet[0] & 0x0F) * 4
    return header < len(packet) and packet[header] not in f.V4_ERRORS


def _v6_may_be_answered(packet: bytes) -> bool:
    sender = packet[f.V6_SOURCE : f.V6_DESTINATION]
    # Unspecified (::), loopback (::1), multicast (ff00::/8).
    if not any(sender[:15]) and sender[15] < 2:
        return False
    if sender[0] == 0xFF or packet[f.V6_DESTINATION] == 0xFF:
        return False
    protocol, at = packet[f.V6_NEXT], f.V6_HEADER
    while protocol in _EXTENSIONS:
        # Behind headers that are cut off there may be an ICMP error.
        if at + f.EXTENSION_LEAST > len(packet):
            return False
        if protocol == f.FRAGMENT:
            if (
                int.from_bytes(packet[at + f.V6_FRAGMENT_OFFSET : at + f.V6_FRAGMENT_OFFSET + 2])
                & f.V6_FRAGMENT_OFFSET_BITS
            ):
                return False
            size = f.EXTENSION_LEAST
        elif protocol == f.AUTHENTICATION:
            size = (packet[at + f.EXTENSION_LENGTH] + 2) * 4
        else:
            size = (packet[at + f.EXTENSION_LENGTH] + 1) * 8
        protocol = packet[at]
        at += size
    if protocol != f.ICMPV6:
        return True
    return at < len(packet) and packet[at] >= f.V6_FIRST_QUERY and packet[at] != f.V6_REDIRECT


def _icmpv4(source: bytes, target: bytes, about: bytes) -> bytes:
    quote = about[: _MAX_V4_ERROR - f.V4_HEADER - f.ICMP_HEADER]
    kind = f.V4_UNREACHABLE, f.V4_HOST_UNREACHABLE
    made = _checksum(_MESSAGE.pack(*kind, 0) + quote)
    message = _MESSAGE.pack(*kind, made) + quote
    # Precedence by RFC 1812, section 4.3.2.5. A packet that must not be cut needs no identification (RFC 6864).
    ip = (f.V4_FIRST, _INTERNETWORK_CONTROL, f.V4_HEADER + len(message), 0, f.DONT_FRAGMENT, _HOPS, f.ICMP)
    made = _checksum(struct.pack("!BBHHHBBH", *ip, 0) + source + target)
    return struct.pack("!BBHHHBBH", *ip, made) + source + target + message


def _icmpv6(source: bytes, target: bytes, about: bytes) -> bytes:
    quote = about[: MIN_MTU_IPV6 - f.V6_HEADER - f.ICMP_HEADER]
    length = f.ICMP_HEADER + len(quote)
    kind = f.V6_UNREACHABLE, f.V6_ADDRESS_UNREACHABLE
    pseudo_header = source + target + struct.pack("!II", length, f.ICMPV6)
    made = _checksum(pseudo_header + _MESSAGE.pack(*kind, 0) + quote)
    header = struct.pack("!IHBB", 6 << 28, length, f.ICMPV6, _HOPS) + source + target
    return header + _MESSAGE.pack(*kind, made) + quote


def _checksum(data: bytes) -> int:
    return -checksum.remainder(data) % 0xFFFF
