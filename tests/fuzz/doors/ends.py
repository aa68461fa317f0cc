"""Doors of the compiled halves of tun- and conn-service: from frames and from the kernel, they read what Python reads."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress

from tests.fuzz.doors.door import Given, door, piece
from tests.linux import tun_sides, udp_sides
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.packets.flows import TCP, UDP, Shape

from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto.packets import virtio
from tun_service.packets import ANY

with suppress(ImportError):  # it may not be built
    from stagewire.linux import tun_trains, udp_trains

BUILT = "udp_trains" in globals()
SHAPES = (
    Shape(size=20, payload=bytes(90)), Shape(6, TCP, size=20, payload=bytes(90)),
    Shape(protocol=UDP, size=30, payload=bytes(90)),
    Shape(6, UDP, size=30, payload=bytes(60)), Shape(size=99, payload=bytes(20), options=bytes(12)),
)  # fmt: skip
SPEAKERS = (ANY, 0, 1, 63)
FAR = [b"far peer %d" % number + bytes(34) for number in range(4)]
"""Stand for the endpoints of `udp_sides.Far`, whose ports differ from run to run."""
MOST = 24
"""Datagrams or items of one input."""


def _given_to_tun() -> Iterator[bytes]:
    for shape in SHAPES:
        header, packet = shape.as_read()
        yield piece(header + packet) * 2
    yield b"".join(piece(virtio.NONE + shape.packet()) for shape in SHAPES)
    yield piece(virtio.NONE + byhand.v4("10.9.0.1", "10.9.1.7")) + piece(bytes(10)) + piece(bytes(60))


@door(seeds=_given_to_tun, milliseconds=80)
def kernels_read_tun(data: bytes) -> None:
    """Reads items that an OS hands over."""
    if not BUILT:
        return
    given, items = Given(data), list[bytes]()
    while given.left and len(items) < MOST:
        items.append(given.piece())
    items = [each for each in items if len(each) >= len(virtio.NONE)]  # a device hands over no less
    with tun_sides.both(tun_trains) as sides:
        for side in sides:
            side.visit(items, T)
        assert sides[1].state() == sides[0].state()


def _plain_trains() -> Iterator[bytes]:
    for number, shape in enumerate(SHAPES):
        header, packet = shape.as_read()
        yield bytes([number % 4]) + trains.pack_plain([packet], T)
        item = header + packet
        packed = trains.LENGTH.pack(len(item)) + item
        yield (
            bytes([number % 4])
            + trains.HEADER.pack(trains.VERSION, trains.PLAIN, 3, virtio.count(header, len(packet)), T)
            + packed
        )
    yield b"\1" + trains.pack_plain([byhand.v4("10.9.0.1", "10.9.1.7"), byhand.v6("fd09:1::1")], T)
    yield b"\2" + trains.pack_mark(1, 7, T)
    yield b"\1" + trains.pack_mark(1, 7, T)


@door(seeds=_plain_trains, milliseconds=80)
def kernels_write_tun(data: bytes) -> None:
    """Writes any bytes as a train of a worker's, or of root's."""
    if not BUILT or int.from_bytes(data[5:9], "little") > 600:
        return
    worker, frame = SPEAKERS[data[0] % len(SPEAKERS)] if data else ANY, data[1:]
    with tun_sides.both(tun_trains) as sides:
        for side in sides:
            side.packets.on_plain_in([(b"\1\2" + frame + b"\3", 2, 2 + len(frame))], T, worker)
        assert sides[1].state() == sides[0].state()


def _arrivals() -> Iterator[bytes]:
    transport = b"\4\0\0\0\1\2\3\4" + bytes(24)
    yield b"".join(bytes([number]) + piece(transport + bytes(number)) for number in range(6))
    yield (
        b"\0"
        + piece(transport * 3)
        + b"\7"
        + piece(b"\1\0\0\0" + bytes(144))
        + b"\2"
        + piece(b"")
        + b"\1"
        + piece(b"\4")
    )
    yield b"\4" + piece(b"\4\0\0\0\x09" + bytes(27)) + b"\0" + piece(transport[:31])


@door(seeds=_arrivals, milliseconds=150)
def kernels_receive_udp(data: bytes) -> None:
    """Receives datagrams from two peers by both families."""
    if not BUILT:
        return
    given, arrivals = Given(data), list[tuple[int, bytes]]()
    while given.left and len(arrivals) < MOST:
        arrivals.append((given.number(), given.piece()))
    with ExitStack() as stack:
        peers = [[stack.enter_context(udp_sides.opened(family)) for _ in range(2)] for family in udp_sides.HOSTS]
        sides = [udp_sides.Side(None, stack), udp_sides.Side(udp_trains, stack)]
        for side in sides:
            for how, datagram in arrivals:
                peers[how & 1][how >> 1 & 1].sendto(datagram, side.sockets.all[how & 1].getsockname())
            side.receive(0, T)
            side.receive(1, T)
        assert sides[1].state() == sides[0].state()


def _cipher_trains() -> Iterator[bytes]:
    yield trains.pack_cipher([(FAR[0], [bytes(60)] * 3 + [bytes(9)]), (FAR[1], [bytes(100)])], T)
    yield trains.pack_cipher([(place, [bytes(32)]) for place in FAR * 5], T)
    yield trains.pack_cipher([(FAR[2], [b"x" * 1400])], T) + b"more"
    yield trains.pack_mark(1, 7, T)


@door(seeds=_cipher_trains, milliseconds=150)
def kernels_send_udp(data: bytes) -> None:
    """Takes any bytes as a train, and sends the train if all goes to sockets of our own."""
    if not BUILT:
        return
    try:
        runs = [(place, b"".join(block)) for place, block in trains.unpack_cipher_untrusted(data, T)]
    except trains.BadTrain:
        runs = []
    writer = udp_trains.UdpWriter({})
    assert writer.take(data, 0, len(data), T, trains.MAX_AGE) in ({True, False} if not runs else {True})
    assert [(place, bytes(block)) for place, block, *_ in writer.rest()] == runs
    if not runs or len(runs) > MOST or {place for place, _ in runs} - set(FAR):
        return
    with ExitStack() as stack:
        far = udp_sides.Far(stack)
        now = boot_time()
        for token, place in zip(FAR, far.places, strict=True):
            data = data.replace(token, place)
        data = data[:8] + trains.HEADER.pack(0, 0, 0, 0, now)[8:] + data[16:]
        found = []
        for side in (udp_sides.Side(None, stack), udp_sides.Side(udp_trains, stack)):
            side.outbound._on_cipher_out([(data, 0, len(data))] * 2, now)  # the first time, it learns the ways
            found.append((far.took(), side.state()))
        assert found[1] == found[0]
