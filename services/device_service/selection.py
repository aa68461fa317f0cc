"""Decides which packets a capture takes, and how much of each. Pure."""

from typing import Final, NamedTuple

from stagewire.control.capture import Order
from stagewire.proto.packets import fields as f
from stagewire.proto.packets import ip

_ICMPS: Final = frozenset({f.ICMP, f.ICMPV6})
_SKIPPED: Final = frozenset({f.HOP_BY_HOP, f.ROUTING, f.FRAGMENT, f.DESTINATION_OPTIONS})
"""Extension headers behind which the transport header is looked for."""
_MOST_EXTENSIONS: Final = 8


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
    if packet[0] >> 4 == 4:
        begin, protocol = (packet[0] & 0x0F) * 4, packet[f.V4_PROTOCOL]
        later = int.from_bytes(packet[f.V4_FRAGMENT : f.V4_FRAGMENT + 2]) & f.FRAGMENT_OFFSET
    else:
        begin, protocol, later = _behind_extensions(packet)
    begin = min(begin, len(packet))
    behind = packet[begin:]
    if later or len(behind) < f.PORTS_END:
        return Look(protocol, (), begin)
    if protocol in _ICMPS:
        return Look(protocol, (), min(begin + f.ICMP_HEADER, len(packet)))
    if protocol not in (f.TCP, f.UDP):
        return Look(protocol, (), begin)
    length = f.UDP_HEADER
    if protocol == f.TCP:
        length = (behind[f.TCP_DATA_OFFSET] >> 4) * 4 if len(behind) > f.TCP_DATA_OFFSET else f.TCP_HEADER
    ports = int.from_bytes(behind[:2]), int.from_bytes(behind[2:4])
    return Look(protocol, ports, min(begin + length, len(packet)))


def _behind_extensions(packet: bytes) -> tuple[int, int, int]:
    """Returns where an IPv6 packet's transport header begins, its protocol, and whether it lies in an earlier fragment."""
    begin, protocol = f.V6_HEADER, packet[f.V6_NEXT]
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _SKIPPED or len(packet) < begin + f.EXTENSION_LEAST:
            break
        length = f.EXTENSION_LEAST + (8 * packet[begin + f.EXTENSION_LENGTH] if protocol != f.FRAGMENT else 0)
        place = begin + f.V6_FRAGMENT_OFFSET
        later = protocol == f.FRAGMENT and int.from_bytes(packet[place : place + 2]) & f.V6_FRAGMENT_OFFSET_BITS
        protocol, begin = packet[begin], begin + length
        if later:
            return begin, protocol, 1
    return begin, protocol, 0
