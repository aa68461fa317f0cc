"""Merges packets of one flow that follow one another into super-packets.

By the rules of the kernel's GRO (net/ipv4/tcp_offload.c, tcp_gro_receive; af_inet.c, inet_gro_receive):

- Addresses, ports, time to live, type of service and don't-fragment bit are the same.
- There are no IPv4 options, no IPv6 extension headers and no fragments.
- In TCP the sequence numbers follow; acknowledgement, window and options are the same. ACK is the only flag, with PSH
  on the last packet.
- All packets have one size, but the last may be shorter. A super-packet has at most 65,535 bytes.
- IPv4 identifications count up, unless don't-fragment makes them meaningless (RFC 6864).

UDP of one flow and one size is merged if the OS takes it.

Every checksum is checked first, because the kernel trusts a super-packet's. A packet with a wrong checksum passes as it
came. Packets of one flow never overtake one another; flows overtake flows by a few packets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from stagewire.limits import MAX_PACKET, MAX_SEGMENTS
from stagewire.proto.packets import checksum, virtio
from stagewire.proto.packets import fields as f
from stagewire.proto.packets.ip import V4_FLOW, V6_FLOW

TAKES_TCP: Final = 1
TAKES_UDP: Final = 2
"""Kinds of super-packets that a TUN device takes; bits."""
NOT_WHOLE: Final = f.RESERVED_BIT | f.MORE_FRAGMENTS | f.FRAGMENT_OFFSET
"""Any of these bits keeps an IPv4 packet from being merged."""
DONT_FRAGMENT_HIGH: Final = f.DONT_FRAGMENT >> 8
"""Bit of the field's first byte."""


class Merged(NamedTuple):
    """Holds a super-packet for a TUN device, after the 10 bytes of its `virtio_net_hdr`; `segments` counts its packets."""

    header: bytes
    packet: bytes | memoryview
    segments: int


Item = bytes | Merged
"""A packet or a super-packet."""


@dataclass(slots=True)
class _Flow:
    """Holds a super-packet in the making, with the properties that its next packet must have."""

    same: bytes
    size: int
    """Payload bytes of each packet but the last."""
    transport: int
    headers: int
    next_sequence: int
    next_identification: int
    """-1 if identifications mean nothing."""
    total: int
    parts: list[bytes] = field(default_factory=list)
    """The first packet whole, then the payloads of the others."""
    closed: bool = False
    checked: bool = False
    pushed: bool = False


def merge(packets: Sequence[bytes], takes: int) -> list[Item]:
    """Merges packets as far as possible, in their order. Each packet is as long as its header says.

    hot with the plain kernel
    """
    if len(packets) < 2 or not takes:
        return list(packets)
    flows: dict[bytes, _Flow] = {}
    found: list[bytes | _Flow] = []
    for packet in packets:
        transport, protocol = _transport(packet, takes)
        if not transport:
            # It may be of any flow: later packets must not be merged into earlier ones across it.
            flows.clear()
            found.append(packet)
            continue
        key = packet[V4_FLOW if transport == f.V4_HEADER else V6_FLOW]
        headers = _headers(packet, transport, protocol)
        flow = flows.get(key)
        if not headers:
            flows.pop(key, None)
            found.append(packet)
        elif flow is None or not _continue(flow, packet, protocol, headers):
            flows[key] = flow = _begin(packet, transport, protocol, headers)
            found.append(flow)
    return [_whole(each) if isinstance(each, _Flow) else each for each in found]


def _transport(packet: bytes, takes: int) -> tuple[int, int]:
    """Returns (length of the IP header, protocol) of a packet that may be merged; length 0 for another packet."""
    first = packet[0]
    if first == f.V4_FIRST:
        protocol, length = packet[f.V4_PROTOCOL], f.V4_HEADER
        if (packet[f.V4_FRAGMENT] << 8 | packet[f.V4_FRAGMENT + 1]) & NOT_WHOLE:
            return 0, 0
    elif first >> 4 == 6:
        protocol, length = packet[f.V6_NEXT], f.V6_HEADER
    else:
        return 0, 0
    if (protocol == f.TCP and takes & TAKES_TCP) or (protocol == f.UDP and takes & TAKES_UDP):
        least = length + (f.TCP_HEADER if protocol == f.TCP else f.UDP_HEADER)
        return (length, protocol) if len(packet) > least else (length, 0)
    return 0, 0


def _headers(packet: bytes, transport: int, protocol: int) -> int:
    """Returns the length of all headers of a packet that may be merged; 0 for another packet."""
    if protocol == f.TCP:
        headers = transport + (packet[transport + f.TCP_DATA_OFFSET] >> 4) * 4
        plain = (
            packet[transport + f.TCP_FLAGS] & ~f.TCP_PSH == f.TCP_ACK
            and packet[transport + f.TCP_DATA_OFFSET] & 0x0F == 0
        )
        return headers if plain and transport + f.TCP_HEADER <= headers < len(packet) else 0
    if protocol == f.UDP:
        payload, place = transport + f.UDP_HEADER, transport + f.UDP_CHECKSUM
        length = int.from_bytes(packet[transport + f.UDP_LENGTH : place])
        return payload if transport + length == len(packet) and packet[place:payload] != b"\0\0" else 0
    return 0


def _same(packet: bytes, transport: int, protocol: int, headers: int) -> bytes:
    """Returns all header bytes that the packets of a super-packet share, beyond those that tell the flow."""
    ip = (
        packet[: f.V4_LENGTH] + packet[f.V4_FRAGMENT : f.V4_CHECKSUM]
        if transport == f.V4_HEADER
        else packet[: f.V6_LENGTH] + packet[f.V6_NEXT : f.V6_SOURCE]
    )
    if protocol == f.UDP:
        return ip
    return b"%b%b%b%b" % (
        ip,
        packet[transport + f.TCP_ACKNOWLEDGEMENT : transport + f.TCP_FLAGS],
        packet[transport + f.TCP_WINDOW : transport + f.TCP_CHECKSUM],
        packet[transport + f.TCP_URGENT : headers],
    )


def _begin(packet: bytes, transport: int, protocol: int, headers: int) -> _Flow:
    size = len(packet) - headers
    sequence = _sequence(packet, transport) + size if protocol == f.TCP else 0
    identification = -1
    if transport == f.V4_HEADER and not packet[f.V4_FRAGMENT] & DONT_FRAGMENT_HIGH:
        identification = int.from_bytes(packet[f.V4_IDENTIFICATION : f.V4_FRAGMENT]) + 1
    pushed = protocol == f.TCP and packet[transport + f.TCP_FLAGS] & f.TCP_PSH != 0
    same = _same(packet, transport, protocol, headers)
    return _Flow(
        same, size, transport, headers, sequence, identification, len(packet), [packet], closed=pushed, pushed=pushed
    )


def _continue(flow: _Flow, packet: bytes, protocol: int, headers: int) -> bool:
    """Takes the packet in, if it goes on where the flow's last packet ended."""
    transport, size = flow.transport, len(packet) - headers
    if flow.closed or headers != flow.headers or size > flow.size or flow.total + size > MAX_PACKET:
        return False
    if protocol == f.TCP and _sequence(packet, transport) != flow.next_sequence & 0xFFFFFFFF:
        return False
    if flow.next_identification >= 0:
        found = int.from_bytes(packet[f.V4_IDENTIFICATION : f.V4_FRAGMENT])
        if found != flow.next_identification & 0xFFFF:
            return False
    if _same(packet, transport, protocol, headers) != flow.same or len(flow.parts) >= MAX_SEGMENTS:
        return False
    if not flow.checked:
        if not _valid(flow.parts[0], transport, protocol):
            return False
        flow.checked = True
    if not _valid(packet, transport, protocol):
        return False
    flow.parts.append(packet[headers:])
    flow.total += size
    flow.next_sequence += size
    flow.next_identification += flow.next_identification >= 0
    flow.pushed = protocol == f.TCP and packet[transport + f.TCP_FLAGS] & f.TCP_PSH != 0
    flow.closed = flow.pushed or size < flow.size
    return True


def _sequence(packet: bytes, transport: int) -> int:
    return int.from_bytes(packet[transport + f.TCP_SEQUENCE : transport + f.TCP_ACKNOWLEDGEMENT])


def _valid(packet: bytes, transport: int, protocol: int) -> bool:
    if transport == f.V4_HEADER and checksum.remainder(packet[: f.V4_HEADER]):
        return False
    return checksum.valid(packet, transport, protocol)


def _whole(flow: _Flow) -> Item:
    first = flow.parts[0]
    if len(flow.parts) == 1:
        return first
    headers = joined_headers(first[: flow.headers], flow.transport, flow.total, pushed=flow.pushed)
    packet = b"".join((headers, first[flow.headers :], *flow.parts[1:]))
    protocol = first[f.V4_PROTOCOL] if flow.transport == f.V4_HEADER else first[f.V6_NEXT]
    return Merged(header(protocol, flow.transport, flow.headers, flow.size), packet, len(flow.parts))


def joined_headers(headers: bytes, transport: int, total: int, *, pushed: bool) -> bytes:
    """Makes the headers of a super-packet of `total` bytes out of the first packet's.

    The checksum's field holds the pseudo-header's sum: the kernel computes the rest if needed.
    """
    length = total - transport
    if transport == f.V4_HEADER:
        before = headers[: f.V4_LENGTH] + total.to_bytes(2) + headers[f.V4_IDENTIFICATION : f.V4_CHECKSUM]
        addresses = headers[f.V4_SOURCE : f.V4_HEADER]
        made = -checksum.remainder(before + addresses) % 0xFFFF
        ip = b"%b%b%b" % (before, made.to_bytes(2), addresses)
        protocol = headers[f.V4_PROTOCOL]
    else:
        ip = b"%b%b%b" % (headers[: f.V6_LENGTH], length.to_bytes(2), headers[f.V6_NEXT : f.V6_HEADER])
        protocol = headers[f.V6_NEXT]
    # Never 0: a sum of numbers that aren't all 0 isn't 0 either.
    pseudo = (checksum.pseudo_header(headers, protocol, length) % 0xFFFF or 0xFFFF).to_bytes(2)
    if protocol == f.UDP:
        return b"%b%b%b%b" % (ip, headers[transport : transport + f.PORTS_END], length.to_bytes(2), pseudo)
    flags = headers[transport + f.TCP_FLAGS] | (f.TCP_PSH if pushed else 0)
    before = headers[transport : transport + f.TCP_FLAGS]
    window = headers[transport + f.TCP_WINDOW : transport + f.TCP_CHECKSUM]
    return b"%b%b%c%b%b%b" % (ip, before, flags, window, pseudo, headers[transport + f.TCP_URGENT :])


@lru_cache(64)
def header(protocol: int, transport: int, headers: int, size: int) -> bytes:
    """Makes the `virtio_net_hdr` of a super-packet of packets with `size` bytes of payload."""
    if protocol == f.UDP:
        kind, place = f.GSO_UDP_L4, f.UDP_CHECKSUM
    else:
        kind, place = f.GSO_TCPV4 if transport == f.V4_HEADER else f.GSO_TCPV6, f.TCP_CHECKSUM
    return virtio.VirtioHeader(f.NEEDS_CSUM, kind, headers, size, transport, place).pack()
