"""Decides which packets a capture takes, and how much of each. Pure.

Headers are those of IP, with options and extension headers, and of the protocol inside: TCP, UDP, UDP-Lite, DCCP, SCTP,
ICMP, IGMP, GRE and ESP. Of the packet in an ICMP error its headers count as well. All else is payload, also a packet in a
packet, and whatever a protocol carries that is not in this list.
"""

from typing import Final, NamedTuple

from stagewire.control.capture import Order
from stagewire.proto.packets import fields as f
from stagewire.proto.packets import ip

_SKIPPED: Final = frozenset(
    {f.HOP_BY_HOP, f.ROUTING, f.FRAGMENT, f.AUTHENTICATION, f.DESTINATION_OPTIONS, f.MOBILITY, f.HOST_IDENTITY, f.SHIM6}
)
"""Extension headers behind which the transport header is looked for."""
_MOST_EXTENSIONS: Final = 8
_FIXED: Final = {f.UDP: f.UDP_HEADER, f.UDP_LITE: f.UDP_HEADER, f.SCTP: 12, f.ESP: 8, f.IGMP: 8}
"""Headers (bytes) of one length."""
_DCCP_DATA_OFFSET: Final = 4
_DCCP_LEAST: Final = 12
_GRE_LEAST: Final = 4
_GRE_CHECKSUM_OR_ROUTING, _GRE_KEY, _GRE_SEQUENCE = 0xC0, 0x20, 0x10
_GRE_VERSION, _GRE_POINT_TO_POINT, _GRE_ACKNOWLEDGEMENT = 0x07, 1, 0x80
_ICMP_LEAST: Final = 4
"""What all types of ICMP have in common (bytes)."""
_ERRORS: Final = {f.ICMP: frozenset({3, 4, 5, 11, 12}), f.ICMPV6: frozenset({1, 2, 3, 4})}
"""Types of ICMP behind whose header stands the packet that they are about."""
_QUESTIONS: Final = {
    f.ICMP: {0: 8, 8: 8, 9: 8, 10: 8, 13: 20, 14: 20, 15: 8, 16: 8, 17: 12, 18: 12, 42: 8, 43: 8},
    f.ICMPV6: {
        128: 8,
        129: 8,
        130: 24,
        131: 24,
        132: 24,
        133: 8,
        134: 16,
        135: 24,
        136: 24,
        137: 40,
        143: 8,
        160: 8,
        161: 8,
    },
}
"""Headers (bytes) of the other types of ICMP: echoes, routers, timestamps, neighbours, listeners."""


class Look(NamedTuple):
    """Holds what a packet's headers say. `ports` are those of TCP and UDP; `headers` is the length of all of them."""

    protocol: int
    ports: tuple[int, ...]
    headers: int


class Selection:
    """Holds one capture's filter: a packet must match one of each list that isn't empty."""

    def __init__(self, order: Order) -> None:
        self._whole = order.whole
        self._hosts, self._ports = frozenset(order.hosts), frozenset(order.ports)
        self._protocols = frozenset(order.protocols)

    def kept(self, packet: bytes) -> int:
        """Returns how many bytes of a whole IP packet to keep; 0 for a packet that the filter leaves out."""
        if self._hosts and self._hosts.isdisjoint((ip.source(packet), ip.destination(packet))):
            return 0
        seen = look(packet)
        if self._protocols and seen.protocol not in self._protocols:
            return 0
        if self._ports and self._ports.isdisjoint(seen.ports):
            return 0
        return len(packet) if self._whole else seen.headers


def look(packet: bytes) -> Look:
    """Reads the headers of a whole IP packet. What stands behind a later fragment's header counts as payload."""
    begin, protocol, later = _behind_ip(packet)
    behind = packet[begin:]
    if later:
        return Look(protocol, (), begin)
    ports: tuple[int, ...] = ()
    if protocol in (f.TCP, f.UDP) and len(behind) >= f.PORTS_END:
        ports = int.from_bytes(behind[:2]), int.from_bytes(behind[2:4])
    return Look(protocol, ports, begin + _header(behind, protocol, packet[0] >> 4, whole=True))


def _behind_ip(packet: bytes) -> tuple[int, int, int]:
    """Returns where a packet's transport header begins, its protocol, and whether it lies in an earlier fragment."""
    if packet[0] >> 4 == 4:
        begin, protocol = (packet[0] & 0x0F) * 4, packet[f.V4_PROTOCOL]
        later = int.from_bytes(packet[f.V4_FRAGMENT : f.V4_FRAGMENT + 2]) & f.FRAGMENT_OFFSET
        skipped = frozenset({f.AUTHENTICATION})
    else:
        begin, protocol, later, skipped = f.V6_HEADER, packet[f.V6_NEXT], 0, _SKIPPED
    for _ in range(_MOST_EXTENSIONS):
        if later or protocol not in skipped or len(packet) < begin + f.EXTENSION_LEAST:
            break
        place = begin + f.V6_FRAGMENT_OFFSET
        if protocol == f.FRAGMENT:
            later = int.from_bytes(packet[place : place + 2]) & f.V6_FRAGMENT_OFFSET_BITS
        protocol, begin = packet[begin], begin + _extension(packet[begin + f.EXTENSION_LENGTH], protocol)
    return min(begin, len(packet)), protocol, later


def _extension(length: int, protocol: int) -> int:
    match protocol:
        case f.FRAGMENT:
            return f.EXTENSION_LEAST
        case f.AUTHENTICATION:
            return f.EXTENSION_LEAST + 4 * length
    return f.EXTENSION_LEAST + 8 * length


def _header(behind: bytes, protocol: int, version: int, *, whole: bool) -> int:
    """Returns the length of the header behind IP's. The packet in an ICMP error is not `whole`, and has no such packet."""
    length = _FIXED.get(protocol, 0)
    match protocol:
        case f.TCP:
            length = max(f.TCP_HEADER, _words(behind, f.TCP_DATA_OFFSET) >> 4 << 2)
        case f.DCCP:
            length = max(_DCCP_LEAST, _words(behind, _DCCP_DATA_OFFSET) << 2)
        case f.GRE:
            length = _gre(behind)
        case f.ICMP | f.ICMPV6 if (protocol == f.ICMP) == (version == 4):
            length = _icmp(behind, protocol, version, whole=whole)
    return min(length, len(behind))


def _words(behind: bytes, place: int) -> int:
    return behind[place] if len(behind) > place else 0


def _gre(behind: bytes) -> int:
    """Returns the length of GRE's header (RFC 2784, 2890), or of PPTP's (RFC 2637)."""
    flags, more = _words(behind, 0), _words(behind, 1)
    length = _GRE_LEAST + 4 * bool(flags & _GRE_KEY) + 4 * bool(flags & _GRE_SEQUENCE)
    if more & _GRE_VERSION == _GRE_POINT_TO_POINT:
        return length + 4 * bool(more & _GRE_ACKNOWLEDGEMENT)
    return length + 4 * bool(flags & _GRE_CHECKSUM_OR_ROUTING)


def _icmp(behind: bytes, protocol: int, version: int, *, whole: bool) -> int:
    kind = _words(behind, 0)
    if kind not in _ERRORS[protocol]:
        return _QUESTIONS[protocol].get(kind, _ICMP_LEAST)
    inner = behind[f.ICMP_HEADER :]
    least = f.V4_HEADER if version == 4 else f.V6_HEADER
    if not whole or len(inner) < least or inner[0] >> 4 != version:
        return f.ICMP_HEADER
    begin, of, later = _behind_ip(inner)
    if begin < least:
        return f.ICMP_HEADER
    return f.ICMP_HEADER + begin + (0 if later else _header(inner[begin:], of, version, whole=False))
