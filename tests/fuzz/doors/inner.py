"""Doors for inner packets: of an authentic peer, of the TUN device, and of a stage that lies. scapy is the reference."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from scapy.layers.inet import IP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, in6_chksum
from scapy.utils import checksum as by_scapy
from tests.fuzz.doors.door import Given, door, only
from tests.proto import byhand
from tests.proto.packets.flows import ACK, CWR, FIN, PSH, TCP, UDP, Shape, apart, summed

from stagewire.proto.constants import MAX_INNER
from stagewire.proto.packets import checksum, icmp, ip, merge, split, virtio
from stagewire.proto.packets import fields as f
from stagewire.proto.packets.merge import Merged
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.packets.virtio import BadSuperPacket

BOTH = merge.TAKES_TCP | merge.TAKES_UDP
SHAPES = [
    Shape(version, protocol, payload=bytes(range(40)), size=size, flags=flags)
    for version in (4, 6)
    for protocol in (TCP, UDP)
    for size, flags in ((9, ACK), (20, ACK | PSH | CWR | FIN), (100, ACK))
]


def _packets() -> list[bytes]:
    return [shape.packet() for shape in SHAPES] + [byhand.v4("10.1.0.1"), b"\x60" + bytes(79), b"\x4f" + bytes(79)]


@door(seeds=_packets)
def inner_packets(data: bytes) -> None:
    """Reads addresses, length and flow as scapy does, and answers by what scapy finds in order."""
    length = ip.inner_length(data)
    assert 0 <= length <= len(data)
    for reader in (ip.source, ip.destination):
        assert len(reader(data) or b"") in (0, 4, 16)
    if ip.source(data) is not None:
        ip.flow(data)
    answer = icmp.unreachable(data)
    if not length:
        assert answer is None
        return
    if data[0] >> 4 == 4:
        theirs = IP(data[:20])
        assert length == theirs.len
    else:
        theirs = IPv6(data[:40])
        assert length == theirs.plen + 40
    assert (ip.source(data), ip.destination(data)) == (ip_address(theirs.src).packed, ip_address(theirs.dst).packed)
    if answer is not None:
        _is_in_order(answer, data[:length])


def _is_in_order(answer: bytes, about: bytes) -> None:
    assert ip.inner_length(answer) == len(answer) <= 1280
    if answer[0] >> 4 == 4:
        assert len(answer) <= 576
        assert by_scapy(answer[:20]) == 0
        assert by_scapy(answer[20:]) == 0
        assert about.startswith(answer[28:])
    else:
        read = IPv6(answer)
        assert isinstance(read.payload, ICMPv6DestUnreach)
        assert in6_chksum(f.ICMPV6, read, answer[40:]) == 0
        assert about.startswith(answer[48:])


@door(seeds=lambda: [*_packets(), b"", b"\xff" * 600, b"\xff" * 255])
def checksums(data: bytes) -> None:
    """Sums as scapy does, and as RFC 1071 tells it."""
    total = checksum.remainder(data)
    assert total == (0xFFFF - by_scapy(data)) % 0xFFFF == summed(data) % 0xFFFF
    assert checksum.of(total) % 0xFFFF == by_scapy(data) % 0xFFFF
    if len(data) >= 40 and data[0] == 0x45 and ip.inner_length(data) == len(data):
        pseudo = data[12:20] + bytes([0, data[9]]) + (len(data) - 20).to_bytes(2)
        assert checksum.valid(data, 20, data[9]) == (summed(pseudo + data[20:]) % 0xFFFF == 0)


def _read_from_tun() -> Iterator[bytes]:
    for shape in SHAPES:
        header, packet = shape.as_read()
        yield header + packet
    yield virtio.NONE + byhand.v4("10.1.0.1")


@door(virtio.unpack_untrusted, split.open_untrusted, seeds=_read_from_tun)
def super_packets(data: bytes) -> None:
    """Splits a super-packet into packets in order, whose payloads are the super-packet's."""
    header, packet = data[: f.VNET_HEADER], data[f.VNET_HEADER :]
    said = only(BadSuperPacket, virtio.unpack_untrusted, header, len(packet))
    if said is not None:
        assert virtio.unpack_untrusted(said.pack(), len(packet)) == said
    if len(header) == f.VNET_HEADER:
        assert virtio.count(header, len(packet)) >= 1
    found = only(BadSuperPacket, split.open_untrusted, header, packet)
    assert found is None or said is not None or header == virtio.NONE
    if isinstance(found, bytes):
        assert len(found) == len(packet)
    if not isinstance(found, SuperPacket):
        return
    parts = split.split(found)
    assert found.first() == parts[0]
    assert len(parts) == found.count
    assert b"".join(part[found.headers :] for part in parts) == packet[found.headers :]
    for part in parts:
        assert len(part) <= min(found.headers + found.segment_size, MAX_INNER)
        if found.version == 4:
            assert by_scapy(part[: found.transport]) == 0
            assert int.from_bytes(part[2:4]) == len(part)
        assert checksum.valid(part, found.transport, found.protocol)


def _shaped(given: Given) -> list[bytes]:
    """Makes the packets of some flows out of bytes; each may be spoilt, but is as long as it says."""
    packets: list[bytes] = []
    for _ in range(6):
        if not given.left:
            break
        kind, size = given.number(), given.number() + 1
        shape = Shape(
            version=6 if kind & 1 else 4,
            protocol=UDP if kind & 2 else TCP,
            size=size,
            payload=given.take(given.number()),
            options=bytes(12) if kind & 4 else b"",
            flags=ACK | (PSH if kind & 8 else 0),
            sequence=2**32 - 50 if kind & 16 else 1000,
            identification=0xFFFF if kind & 16 else 7,
            dont_fragment=not kind & 32,
            port=kind >> 6,
        )
        train = shape.train()
        if given.number() & 1 and train:
            spoilt = bytearray(train[given.number() % len(train)])
            at = given.number() % len(spoilt)
            spoilt[at] = given.number()
            train.insert(given.number() % len(train), bytes(spoilt))
        packets[len(packets) // 2 if kind & 128 else len(packets) :] = train
    return [packet for packet in packets[:64] if ip.inner_length(packet) == len(packet)]


def _named(packet: bytes) -> bytes:
    """Leaves out an IPv4 packet's identification and header checksum where it must not be cut (RFC 6864)."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet


def _by_flow(packets: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    flows = defaultdict(list)
    for packet in packets:
        flows[packet[12:24] if packet[0] == 0x45 else packet[8:44]].append(packet)
    return flows


def _flows() -> Iterator[bytes]:
    for kind in range(0, 256, 5):
        yield bytes([3, kind, 10, 50]) + bytes(range(50)) + bytes([0])
    yield b"".join(bytes([kind, 10, 50]) + bytes(50) + bytes([0]) for kind in (0, 64, 3, 0, 128))


@door(seeds=_flows, milliseconds=40, longest=1024)
def merging(data: bytes) -> None:
    """Merges packets: taken apart they are what came, in each flow's order."""
    given = Given(data)
    takes = given.number() & BOTH
    packets = _shaped(given)
    if not packets:
        return
    expected = _by_flow(map(_named, packets))
    items = merge.merge(packets, takes)
    assert _by_flow(map(_named, apart(items))) == expected
    for item in items:
        if isinstance(item, Merged):
            whole = split.open_untrusted(item.header, item.packet)
            assert isinstance(whole, SuperPacket)
            assert whole.count == item.segments
            assert takes & (merge.TAKES_UDP if whole.protocol == UDP else merge.TAKES_TCP)
