"""Splits a super-packet into its packets.

Each packet gets of its own (as Linux does it: net/ipv4/tcp_offload.c, udp_offload.c, af_inet.c):

    IPv4          total length, identification (counted up), header checksum
    IPv6          payload length
    TCP           sequence number, FIN and PSH on the last alone, CWR on the first alone, checksum
    UDP           length, checksum

The rest is a copy of the super-packet's headers, options and extension headers included.
"""

import struct
from dataclasses import dataclass
from typing import Final

from stagewire.proto.constants import MAX_INNER
from stagewire.proto.packets import checksum, virtio
from stagewire.proto.packets import fields as f
from stagewire.proto.packets.virtio import BadSuperPacket, VirtioHeader

_PART: Final = f.MORE_FRAGMENTS | f.FRAGMENT_OFFSET
_OPTIONS: Final = frozenset({f.HOP_BY_HOP, f.DESTINATION_OPTIONS})
"""Extension headers that a super-packet may begin with; after ROUTING, checksums are those of another destination."""
_VERSIONS: Final = {f.GSO_TCPV4: (4,), f.GSO_TCPV6: (6,), f.GSO_UDP_L4: (4, 6)}


@dataclass(slots=True)
class SuperPacket:
    """Holds a super-packet that agrees with its virtio_net_hdr. Lengths are in bytes."""

    packet: bytes | memoryview
    transport: int
    """Start of the TCP or UDP header, and so length of the IP headers."""
    headers: int
    """Length of all headers; the payload begins here."""
    segment_size: int
    """Payload bytes of each packet but the last, which may have fewer."""
    protocol: int
    """TCP or UDP."""
    version: int
    """4 or 6, as checked: another process may change the packet in shared memory."""

    @property
    def count(self) -> int:
        """Counts the packets in it."""
        return -(-(len(self.packet) - self.headers) // self.segment_size)

    def packets(self) -> list[bytes]:
        return split(self)

    def first(self) -> bytes:
        return _Ends.of(self).made(
            self.packet[self.headers : self.headers + self.segment_size], 0, first=True, last=False
        )


def open_untrusted(header: bytes | memoryview, packet: bytes | memoryview) -> bytes | SuperPacket:
    """Opens an item of a TUN device: a packet with its checksum complete, or a super-packet. Raises BadSuperPacket."""
    if header == virtio.NONE:
        return bytes(packet)
    said = virtio.unpack_untrusted(header, len(packet))
    if said.kind == f.GSO_NONE:
        return _completed(said, packet) if said.flags & f.NEEDS_CSUM else bytes(packet)
    found = _judge(said, packet)
    # With one segment alone it is an ordinary packet.
    return found if len(packet) > found.headers + found.segment_size else _completed(said, packet)


def _completed(said: VirtioHeader, packet: bytes | memoryview) -> bytes:
    """Makes the checksum, whose field holds the pseudo-header's sum. hot"""
    made = checksum.of(checksum.remainder(packet[said.csum_start :]))
    place = said.csum_start + said.csum_offset
    return b"".join((packet[:place], made.to_bytes(2), packet[place + 2 :]))


def _judge(said: VirtioHeader, packet: bytes | memoryview) -> SuperPacket:
    """Checks that the packet agrees with its header. Raises BadSuperPacket. hot"""
    length, transport = len(packet), said.csum_start
    version = packet[0] >> 4 if length else 0
    if version not in _VERSIONS[said.kind]:
        raise BadSuperPacket("another version")
    udp = said.kind == f.GSO_UDP_L4
    protocol, place, least = (f.UDP, f.UDP_CHECKSUM, f.UDP_HEADER) if udp else (f.TCP, f.TCP_CHECKSUM, f.TCP_HEADER)
    if said.csum_offset != place or length < transport + least:
        raise BadSuperPacket("no whole header")
    if version == 4:
        fragment = (packet[f.V4_FRAGMENT] << 8 | packet[f.V4_FRAGMENT + 1]) & _PART
        if (
            (packet[0] & 0x0F) * 4 != transport
            or transport < f.V4_HEADER
            or packet[f.V4_PROTOCOL] != protocol
            or fragment
        ):
            raise BadSuperPacket("not the IPv4 packet that was said")
    elif transport < f.V6_HEADER or not (
        packet[f.V6_NEXT] == protocol if transport == f.V6_HEADER else packet[f.V6_NEXT] in _OPTIONS
    ):
        raise BadSuperPacket("not the IPv6 packet that was said")
    headers = transport + (least if udp else (packet[transport + f.TCP_DATA_OFFSET] >> 4) * 4)
    if headers < transport + least or headers >= length:
        raise BadSuperPacket("no payload")
    if headers + said.segment_size > MAX_INNER:
        raise BadSuperPacket("segments larger than a datagram carries")
    return SuperPacket(packet, transport, headers, said.segment_size, protocol, version)


def split(whole: SuperPacket) -> list[bytes]:
    """Splits a super-packet. hot with the plain kernel"""
    packet, headers, size = whole.packet, whole.headers, whole.segment_size
    ends = _Ends.of(whole)
    last = len(packet) - size
    return [
        ends.made(packet[at : at + size], position, first=position == 0, last=at >= last)
        for position, at in enumerate(range(headers, len(packet), size))
    ]


@dataclass(slots=True)
class _Ends:
    """Holds a super-packet's headers, cut where those of its packets differ, and the sums of the unchanged parts."""

    ip: tuple[bytes, ...]
    """IPv4: the parts before, between and after lengths and checksum. IPv6: those before and after the length."""
    ip_length: int
    transport: tuple[bytes, ...]
    """TCP: the parts around sequence number, flags and checksum. UDP: the ports."""
    transport_length: int
    version: int
    protocol: int
    identification: int
    sequence: int
    segment_size: int
    ip_sum: int
    transport_sum: int
    flags: int

    @classmethod
    def of(cls, whole: SuperPacket) -> "_Ends":
        packet, version, udp = whole.packet, whole.version, whole.protocol == f.UDP
        ip, rest = bytes(packet[: whole.transport]), bytes(packet[whole.transport : whole.headers])
        identification = int.from_bytes(ip[f.V4_IDENTIFICATION : f.V4_FRAGMENT]) if version == 4 else 0
        sequence = 0 if udp else int.from_bytes(rest[f.TCP_SEQUENCE : f.TCP_ACKNOWLEDGEMENT])
        flags = 0 if udp else rest[f.TCP_FLAGS]
        around = _around_v4(ip) if version == 4 else (ip[: f.V6_LENGTH], ip[f.V6_NEXT :])
        ip_sum = checksum.remainder(b"".join(around)) if version == 4 else 0
        fixed: tuple[bytes, ...]
        if udp:
            fixed, words = (rest[: f.PORTS_END],), rest[: f.PORTS_END]
        else:
            ports, middle, window, end = fixed = _around_tcp(rest)
            # A zero for the flags, so that the bytes after them keep their half of a word.
            words = b"%b%b\0%b%b" % (ports, middle, window, end)
        total = (checksum.remainder(words) + checksum.pseudo_header(packet, whole.protocol, 0)) % 0xFFFF
        return cls(
            ip=around, ip_length=len(ip), transport=fixed, transport_length=len(rest), version=version,
            protocol=whole.protocol, identification=identification, sequence=sequence, segment_size=whole.segment_size,
            ip_sum=ip_sum, transport_sum=total, flags=flags,
        )  # fmt: skip

    def made(self, payload: bytes | memoryview, position: int, *, first: bool, last: bool) -> bytes:
        length = self.transport_length + len(payload)
        total = self.transport_sum + length + checksum.remainder(payload)
        if self.protocol == f.UDP:
            made = checksum.of(total + length)
            return b"".join((self._ip(length, position), *self.transport, struct.pack("!HH", length, made), payload))
        sequence = (self.sequence + position * self.segment_size) & 0xFFFFFFFF
        flags = self.flags & ~((0 if last else f.TCP_FIN | f.TCP_PSH) | (0 if first else f.TCP_CWR))
        made = checksum.of(total + sequence + flags)
        ports, middle, window, end = self.transport
        tcp = b"%b%b%b%c%b%b%b" % (ports, sequence.to_bytes(4), middle, flags, window, made.to_bytes(2), end)
        return b"".join((self._ip(length, position), tcp, payload))

    def _ip(self, length: int, position: int) -> bytes:
        length += self.ip_length
        if self.version == 6:
            begin, end = self.ip
            return b"%b%b%b" % (begin, (length - f.V6_HEADER).to_bytes(2), end)
        identification = (self.identification + position) & 0xFFFF
        made = -(self.ip_sum + length + identification) % 0xFFFF
        begin, middle, end = self.ip
        return b"%b%b%b%b%b" % (begin, struct.pack("!HH", length, identification), middle, made.to_bytes(2), end)


def _around_v4(ip: bytes) -> tuple[bytes, bytes, bytes]:
    return ip[: f.V4_LENGTH], ip[f.V4_FRAGMENT : f.V4_CHECKSUM], ip[f.V4_SOURCE :]


def _around_tcp(tcp: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    middle, window = tcp[f.TCP_ACKNOWLEDGEMENT : f.TCP_FLAGS], tcp[f.TCP_WINDOW : f.TCP_CHECKSUM]
    return tcp[: f.PORTS_END], middle, window, tcp[f.TCP_URGENT :]
