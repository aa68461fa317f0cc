"""TCP and UDP packets made by hand, and a checksum that owes nothing to ours."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from stagewire.proto.packets import fields, split, virtio
from stagewire.proto.packets.merge import Item
from stagewire.proto.packets.split import SuperPacket

FIN, PSH, ACK, ECE, CWR = 1, 8, 16, 64, 128
TCP, UDP = 6, 17


def summed(data: bytes) -> int:
    """Word by word, as RFC 1071 tells it."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"))
        total = (total & 0xFFFF) + (total >> 16)
    return total


def sums_are_right(packet: bytes) -> bool:
    """Of the IPv4 header and of TCP or UDP; and the lengths that the headers tell are the packet's own."""
    version = packet[0] >> 4
    start = (packet[0] & 15) * 4 if version == 4 else 40
    protocol = packet[9] if version == 4 else packet[6]
    if version == 4 and (summed(packet[:start]) != 0xFFFF or int.from_bytes(packet[2:4]) != len(packet)):
        return False
    if version == 6 and int.from_bytes(packet[4:6]) != len(packet) - 40:
        return False
    if protocol == UDP and int.from_bytes(packet[start + 4 : start + 6]) != len(packet) - start:
        return False
    addresses = packet[12:20] if version == 4 else packet[8:40]
    pseudo = addresses + struct.pack("!II", len(packet) - start, protocol)
    return summed(pseudo + packet[start:]) == 0xFFFF


@dataclass(frozen=True)
class Shape:
    """One packet, or a super-packet if `size` is less than the payload."""

    version: int = 4
    protocol: int = TCP
    size: int = 100
    payload: bytes = b""
    options: bytes = b""
    flags: int = ACK
    sequence: int = 1000
    identification: int = 7
    dont_fragment: bool = True
    port: int = 1
    host: int = 1
    traffic_class: int = 0
    hops: int = 64
    acknowledged: int = 5
    window: int = 900

    def __str__(self) -> str:
        protocol = {TCP: "tcp", UDP: "udp"}[self.protocol]
        return f"{protocol}{self.version}-{len(self.payload)}-by-{self.size}-flags-{self.flags}"

    def addresses(self) -> bytes:
        """Source and destination."""
        if self.version == 4:
            return bytes([10, 0, 0, self.host, 10, 9, 9, 9])
        return b"\xfd".ljust(15, b"\0") + bytes([self.host]) + b"\xfd".ljust(16, b"\1")

    def headers(self) -> tuple[bytes, bytes]:
        """Those of IP and of the transport, with checksums of 0 and the whole's length."""
        if self.protocol == TCP:
            offset = (20 + len(self.options)) // 4 << 4
            fields = (self.port, 80, self.sequence, self.acknowledged, offset, self.flags, self.window, 0, 0)
            transport = struct.pack("!HHIIBBHHH", *fields) + self.options
        else:
            transport = struct.pack("!HHHH", self.port, 53, 8 + len(self.payload), 0)
        length = len(transport) + len(self.payload)
        if self.version == 4:
            fragment = 0x4000 if self.dont_fragment else 0
            fields4 = (
                0x45,
                self.traffic_class,
                20 + length,
                self.identification,
                fragment,
                self.hops,
                self.protocol,
                0,
            )
            return struct.pack("!BBHHHBBH", *fields4) + self.addresses(), transport
        first = 6 << 28 | self.traffic_class << 20 | 0xABCDE
        return struct.pack("!IHBB", first, length, self.protocol, self.hops) + self.addresses(), transport

    def packet(self) -> bytes:
        """Whole, every checksum right."""
        ip, transport = self.headers()
        if self.version == 4:
            ip = ip[:10] + (0xFFFF - summed(ip)).to_bytes(2) + ip[12:]
        pseudo = self.addresses() + struct.pack("!II", len(transport) + len(self.payload), self.protocol)
        made = 0xFFFF - summed(pseudo + transport + self.payload) or 0xFFFF
        place = 16 if self.protocol == TCP else 6
        return ip + transport[:place] + made.to_bytes(2) + transport[place + 2 :] + self.payload

    def as_read(self) -> tuple[bytes, bytes]:
        """(virtio header, packet) as the kernel gives a super-packet: with the pseudo-header's sum for a checksum."""
        ip, transport = self.headers()
        place = 16 if self.protocol == TCP else 6
        if self.version == 4:
            ip = ip[:10] + (0xFFFF - summed(ip)).to_bytes(2) + ip[12:]
        pseudo = self.addresses() + struct.pack("!II", len(transport) + len(self.payload), self.protocol)
        transport = transport[:place] + summed(pseudo).to_bytes(2) + transport[place + 2 :]
        kind = {(4, TCP): fields.GSO_TCPV4, (6, TCP): fields.GSO_TCPV6}.get(
            (self.version, self.protocol), fields.GSO_UDP_L4
        )
        one = len(self.payload) <= self.size
        said = virtio.VirtioHeader(
            fields.NEEDS_CSUM,
            fields.GSO_NONE if one else kind,
            0 if one else len(ip) + len(transport),
            0 if one else self.size,
            len(ip),
            place,
            ecn=not one and bool(self.flags & CWR),
        )
        return said.pack(), ip + transport + self.payload

    def train(self) -> list[bytes]:
        """The packets that this super-packet stands for, each made from scratch."""
        parts = [self.payload[at : at + self.size] for at in range(0, len(self.payload), self.size)]
        last = len(parts) - 1
        return [
            replace(
                self,
                payload=part,
                sequence=(self.sequence + at * self.size) & 0xFFFFFFFF,
                identification=(self.identification + at) & 0xFFFF,
                flags=self.flags & ~((0 if at == last else FIN | PSH) | (0 if at == 0 else CWR)),
            ).packet()
            for at, part in enumerate(parts)
        ]


@st.composite
def supers(draw: st.DrawFn, flags: st.SearchStrategy[int] | None = None, most: int = 80) -> Shape:
    """Super-packets of all kinds: two to `most` packets, the last one shorter or not."""
    size = draw(st.integers(1, 40) | st.sampled_from([100, 101, 536, 1200, 1368, 1367]))
    count = draw(st.integers(2, max(2, min(most, 60000 // size))))
    length = (count - 1) * size + draw(st.integers(1, size) | st.just(size))
    seed = draw(st.binary(min_size=1, max_size=40))
    payload = (seed * (length // len(seed) + 1))[:length]
    return Shape(
        version=draw(st.sampled_from([4, 6])),
        protocol=draw(st.sampled_from([TCP, UDP])),
        size=size,
        payload=payload,
        options=draw(st.sampled_from([b"", bytes(range(1, 13)), bytes(range(40))])),
        flags=draw(flags if flags is not None else st.integers(0, 255)),
        sequence=draw(st.sampled_from([0, 1, 2**32 - 1]) | st.integers(0, 2**32 - 1)),
        identification=draw(st.sampled_from([0, 0xFFFF]) | st.integers(0, 0xFFFF)),
        dont_fragment=draw(st.booleans()),
        traffic_class=draw(st.integers(0, 255)),
        host=draw(st.integers(0, 3)),
    )


def whole(shape: Shape) -> SuperPacket:
    """Opens a super-packet as a TUN device hands it over."""
    found = split.open_untrusted(*shape.as_read())
    assert isinstance(found, SuperPacket)
    return found


def apart(items: Sequence[Item]) -> list[bytes]:
    """Returns the packets that the items stand for."""
    found: list[bytes] = []
    for item in items:
        if isinstance(item, bytes):
            found.append(item)
            continue
        opened = split.open_untrusted(item.header, item.packet)
        assert isinstance(opened, SuperPacket)
        train = split.split(opened)
        assert len(train) == item.segments
        found += train
    return found
