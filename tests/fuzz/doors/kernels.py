"""Doors of the compiled kernel: what it takes from frames and from datagrams is what the plain one takes, byte for byte."""

from collections.abc import Iterator

from tests.fuzz.doors.door import Given, door, piece
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.visits import PEERS, PLACES, Both, index_of, theirs
from tests.proto.packets.flows import ACK, PSH, TCP, UDP, Shape

from stagewire.pipe import trains
from stagewire.proto.kernel.choice import choose
from stagewire.proto.kernel.rule import COMPILED
from stagewire.proto.packets import virtio

BUILT = choose("").name == COMPILED
SHAPES = (
    Shape(size=20, payload=bytes(90)), Shape(6, TCP, size=20, payload=bytes(90), flags=ACK | PSH),
    Shape(protocol=UDP, size=30, payload=bytes(90)), Shape(6, UDP, size=30, payload=bytes(60)),
    Shape(size=99, payload=bytes(20), options=bytes(12)), Shape(protocol=UDP, size=99, payload=b"\4\0\0\0"),
)  # fmt: skip


def _addressed(packet: bytes, peer: int) -> bytes:
    if len(packet) < 40:
        return packet
    if packet[0] >> 4 == 4:
        return packet[:16] + bytes([10, 9, peer, 9]) + packet[20:]
    return packet[:24] + bytes([0xFD, 9, 0, peer]) + packet[28:]


def _read_from_tun() -> Iterator[bytes]:
    for number, shape in enumerate(SHAPES):
        header, packet = shape.as_read()
        yield (bytes([number]) + piece(header + packet)) * 3
    yield b"".join(bytes([at]) + piece(virtio.NONE + shape.packet()) for at, shape in enumerate(SHAPES))
    yield (
        bytes([1]) + piece(virtio.NONE + byhand.v4("10.1.0.1")) + bytes([9]) + piece(virtio.NONE + byhand.v6("fd00::1"))
    )


@door(seeds=_read_from_tun, milliseconds=80)
def kernels_seal(data: bytes) -> None:
    """Seals items for some peers with both kernels."""
    if not BUILT:
        return
    given, parts, count = Given(data), list[bytes](), 0
    while given.left and len(parts) < 24:
        peer, item = given.number(), given.piece()
        header, packet = item[:10].ljust(10, b"\0"), item[10:]
        packet = _addressed(packet, peer) if peer <= PEERS else packet
        count += virtio.count(header, len(packet))
        parts.append(trains.LENGTH.pack(10 + len(packet)) + header + packet)
    if count < 600:
        Both().plain_in(trains.HEADER.pack(trains.VERSION, trains.PLAIN, 3, count, T) + b"".join(parts))


def _opened() -> Iterator[bytes]:
    for shape in SHAPES:
        yield b"".join(bytes([0, 0]) + piece(packet) for packet in shape.train())
    yield bytes([1, 1]) + piece(b"") + bytes([2, 0]) + piece(byhand.v4("10.0.0.2")) + bytes([3, 2]) + piece(bytes(60))


@door(seeds=_opened, milliseconds=80)
def kernels_open(data: bytes) -> None:
    """Opens what peers seal, some of it spoilt or repeated, with both kernels."""
    if not BUILT:
        return
    given, runs, counters = Given(data), list[tuple[bytes, list[bytes]]](), [0] * PEERS
    takes = given.number() & 3 if len(data) & 1 else 3
    while given.left and len(runs) < 24:
        peer, how, inner = given.number() % PEERS, given.number(), given.piece()
        counters[peer] += how != 1
        datagram = theirs(peer, counters[peer], inner + bytes(-len(inner) % 16), index_of(peer) ^ (how == 2))
        if how == 3:
            datagram = datagram[: given.number() or 1]
        if how == 4:
            at = given.number() % len(datagram)
            datagram = datagram[:at] + bytes([given.number()]) + datagram[at + 1 :]
        place = PLACES[given.number() % len(PLACES)] if how == 5 else PLACES[peer]
        if runs and runs[-1][0] == place:
            runs[-1][1].append(datagram)
        else:
            runs.append((place, [datagram]))
    both = Both()
    for side in (both.plain, both.compiled):
        side.worker.takes = takes
    both.cipher_in(trains.pack_cipher(runs, T))


def _frames() -> Iterator[bytes]:
    header, packet = SHAPES[0].as_read()
    item = trains.LENGTH.pack(10 + len(packet)) + header + _addressed(packet, 1)
    yield trains.HEADER.pack(trains.VERSION, trains.PLAIN, 3, 5, T) + item
    yield trains.pack_plain([byhand.v4("10.1.0.1")], T)
    yield trains.pack_cipher([(PLACES[0], [theirs(0, at, byhand.v4("10.0.0.0")) for at in range(3)])], T)
    yield trains.pack_cipher([(PLACES[at], [theirs(at, 0, b"")]) for at in range(3)], T)


@door(seeds=_frames, milliseconds=80)
def kernels_read(data: bytes) -> None:
    """Reads any bytes as a frame, each way, with both kernels."""
    if not BUILT or (data[1:2] == b"\1" and int.from_bytes(data[4:8], "little") > 600):
        return
    both = Both()
    both.plain_in(data)
    both.cipher_in(data)
