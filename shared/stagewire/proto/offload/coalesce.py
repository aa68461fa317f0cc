"""Packets of one flow that follow one another, made one super-packet.

By the rules of the kernel's GRO (net/ipv4/tcp_offload.c, tcp_gro_receive; af_inet.c, inet_gro_receive): the same addresses,
ports, time to live, type of service and don't-fragment bit; no IPv4 options, no IPv6 extension headers, no fragments; in
TCP the next sequence number, the same acknowledgement, window and options, and no flag but ACK, and PSH on the last; all of
one size but the last, which may be shorter; at most 65,535 bytes. IPv4 identifications count up, or don't-fragment says
that they mean nothing (RFC 6864). UDP of one flow and one size is merged where the OS takes it.

Every checksum is checked first, as nobody will after: the kernel takes a super-packet's for right. A packet whose checksum
is wrong is passed on as it came. Packets of one flow never overtake one another; flows do, by a few packets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from stagewire.proto.offload import checksum, virtio
from stagewire.proto.offload.segment import ACK, PSH, TCP, UDP

TAKES_TCP: Final = 1
TAKES_UDP: Final = 2
"""What super-packets a TUN device takes; bits, to be added up."""
MAX_BYTES: Final = 65535
MAX_SEGMENTS: Final = 64
"""Of one super-packet; Linux takes no more of UDP."""
_DONT_FRAGMENT: Final = 0x4000
_FRAGMENT_BITS: Final = 0xBFFF
"""Reserved, more fragments, offset."""


class Merged(NamedTuple):
    """A super-packet for a TUN device: the 10 bytes of `virtio_net_hdr`, the packet, and what it stands for."""

    header: bytes
    packet: bytes | memoryview
    segments: int


Item = bytes | Merged
"""A packet, or one that stands for several."""


@dataclass(slots=True)
class _Flow:
    """What a packet must be to go on where the one before it ended."""

    same: bytes
    size: int
    """Payload of each packet but the last."""
    transport: int
    headers: int
    next_sequence: int
    next_identification: int
    """-1 if it means nothing."""
    total: int
    parts: list[bytes] = field(default_factory=list)
    """The first packet whole, then payloads."""
    closed: bool = False
    checked: bool = False
    pushed: bool = False


def merge(packets: Sequence[Item], takes: int) -> list[Item]:
    """Packets in the order in which they came, each as long as it says, merged as far as they can be.

    Hot without NumPy, and for few: 4.5 us for each of 1,420 bytes that is merged, 1.5 us for another of TCP or UDP.
    """
    if len(packets) < 2 or not takes:
        return list(packets)
    flows: dict[bytes, _Flow] = {}
    found: list[Item | _Flow] = []
    for packet in packets:
        if isinstance(packet, Merged):
            flows.pop(bytes(packet.packet[12:24] if packet.packet[0] == 0x45 else packet.packet[8:44]), None)
            found.append(packet)
            continue
        transport, protocol = _transport(packet, takes)
        if not transport:
            # Of whatever flow it is: what comes after it must not be merged into what came before.
            flows.clear()
            found.append(packet)
            continue
        key = packet[12:24] if transport == 20 else packet[8:44]
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
    """(length of the IP header, protocol) of a packet that might be merged; 0 for another."""
    first = packet[0]
    if first == 0x45:
        protocol, length = packet[9], 20
        if (packet[6] << 8 | packet[7]) & _FRAGMENT_BITS:
            return 0, 0
    elif first >> 4 == 6:
        protocol, length = packet[6], 40
    else:
        return 0, 0
    if (protocol == TCP and takes & TAKES_TCP) or (protocol == UDP and takes & TAKES_UDP):
        least = length + (20 if protocol == TCP else 8)
        return (length, protocol) if len(packet) > least else (length, 0)
    return 0, 0


def _headers(packet: bytes, transport: int, protocol: int) -> int:
    """The length of all headers of a packet that may be part of a super-packet; 0 for another."""
    if protocol == TCP:
        headers = transport + (packet[transport + 12] >> 4) * 4
        plain = packet[transport + 13] & ~PSH == ACK and packet[transport + 12] & 0x0F == 0
        return headers if plain and transport + 20 <= headers < len(packet) else 0
    if protocol == UDP:
        length = packet[transport + 4] << 8 | packet[transport + 5]
        return (
            transport + 8
            if transport + length == len(packet) and packet[transport + 6 : transport + 8] != b"\0\0"
            else 0
        )
    return 0


def _same(packet: bytes, transport: int, protocol: int, headers: int) -> bytes:
    """What all packets of a super-packet have in common, beyond what tells its flow."""
    ip = packet[:2] + packet[6:10] if transport == 20 else packet[:4] + packet[6:8]
    if protocol == UDP:
        return ip
    return b"%b%b%b%b" % (
        ip,
        packet[transport + 8 : transport + 13],
        packet[transport + 14 : transport + 16],
        packet[transport + 18 : headers],
    )


def _begin(packet: bytes, transport: int, protocol: int, headers: int) -> _Flow:
    size = len(packet) - headers
    sequence = int.from_bytes(packet[transport + 4 : transport + 8]) + size if protocol == TCP else 0
    identification = -1
    if transport == 20 and not packet[6] & _DONT_FRAGMENT >> 8:
        identification = int.from_bytes(packet[4:6]) + 1
    pushed = protocol == TCP and packet[transport + 13] & PSH != 0
    same = _same(packet, transport, protocol, headers)
    return _Flow(
        same, size, transport, headers, sequence, identification, len(packet), [packet], closed=pushed, pushed=pushed
    )


def _continue(flow: _Flow, packet: bytes, protocol: int, headers: int) -> bool:
    """Takes the packet in, if it goes on where the flow's last one ended."""
    transport, size = flow.transport, len(packet) - headers
    if flow.closed or headers != flow.headers or size > flow.size or flow.total + size > MAX_BYTES:
        return False
    if protocol == TCP and int.from_bytes(packet[transport + 4 : transport + 8]) != flow.next_sequence & 0xFFFFFFFF:
        return False
    if flow.next_identification >= 0 and int.from_bytes(packet[4:6]) != flow.next_identification & 0xFFFF:
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
    flow.pushed = protocol == TCP and packet[transport + 13] & PSH != 0
    flow.closed = flow.pushed or size < flow.size
    return True


def _valid(packet: bytes, transport: int, protocol: int) -> bool:
    if transport == 20 and checksum.remainder(packet[:20]):
        return False
    return checksum.valid(packet, transport, protocol)


def _whole(flow: _Flow) -> Item:
    first = flow.parts[0]
    if len(flow.parts) == 1:
        return first
    headers = joined_headers(first[: flow.headers], flow.transport, flow.total, pushed=flow.pushed)
    packet = b"".join((headers, first[flow.headers :], *flow.parts[1:]))
    protocol = first[9] if flow.transport == 20 else first[6]
    return Merged(header(protocol, flow.transport, flow.headers, flow.size), packet, len(flow.parts))


def joined_headers(headers: bytes, transport: int, total: int, *, pushed: bool) -> bytes:
    """The headers of a super-packet of `total` bytes, made of those of the first of its packets.

    The checksum's field holds what the pseudo-header adds up to: the kernel makes the rest if it needs one.
    """
    length = total - transport
    if transport == 20:
        made = (
            -checksum.remainder(b"%b%b%b%b" % (headers[:2], total.to_bytes(2), headers[4:10], headers[12:20])) % 0xFFFF
        )
        ip = b"%b%b%b%b%b" % (headers[:2], total.to_bytes(2), headers[4:10], made.to_bytes(2), headers[12:20])
        protocol = headers[9]
    else:
        ip = b"%b%b%b" % (headers[:4], length.to_bytes(2), headers[6:40])
        protocol = headers[6]
    # Never 0, like a sum of numbers that aren't all 0.
    pseudo = (checksum.pseudo_header(headers, protocol, length) % 0xFFFF or 0xFFFF).to_bytes(2)
    if protocol == UDP:
        return b"%b%b%b%b" % (ip, headers[transport : transport + 4], length.to_bytes(2), pseudo)
    flags = headers[transport + 13] | (PSH if pushed else 0)
    before, window = headers[transport : transport + 13], headers[transport + 14 : transport + 16]
    return b"%b%b%c%b%b%b" % (ip, before, flags, window, pseudo, headers[transport + 18 :])


@lru_cache(64)
def header(protocol: int, transport: int, headers: int, size: int) -> bytes:
    """The `virtio_net_hdr` of a super-packet of packets with `size` bytes of payload."""
    if protocol == UDP:
        return virtio.VirtioHeader(virtio.NEEDS_CSUM, virtio.GSO_UDP_L4, headers, size, transport, 6).pack()
    kind = virtio.GSO_TCPV4 if transport == 20 else virtio.GSO_TCPV6
    return virtio.VirtioHeader(virtio.NEEDS_CSUM, kind, headers, size, transport, 16).pack()
