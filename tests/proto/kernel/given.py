"""Items as an OS hands them over, and others: what the tests of both kernels read and seal."""

from collections.abc import Sequence

from hypothesis import strategies as st
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.visits import PEERS
from tests.proto.packets.flows import TCP, UDP, Shape, supers

from stagewire.pipe import trains
from stagewire.proto.packets import virtio


def addressed(packet: bytes, peer: int) -> bytes:
    """Gives a packet another destination; its checksums go wrong, which nobody looks at."""
    if packet[0] >> 4 == 4:
        return packet[:16] + bytes([10, 9, peer, 9]) + packet[20:]
    return packet[:24] + bytes([0xFD, 9, 0, peer]) + packet[28:]


def item(header: bytes, packet: bytes) -> bytes:
    return trains.LENGTH.pack(len(header) + len(packet)) + header + packet


def frame_of(items: Sequence[bytes], stamp: float = T, takes: int = 3) -> bytes:
    """Packs items as tun-service does, whatever they are."""
    count = sum(virtio.count(each[4:14], len(each) - 14) for each in items)
    return trains.HEADER.pack(trains.VERSION, trains.PLAIN, takes, count, stamp) + b"".join(items)


LONE = st.builds(
    lambda protocol, version, size, port, host, hops: Shape(
        version, protocol, payload=bytes(size), size=size + 1, port=port, host=host, hops=hops
    ),
    st.sampled_from([TCP, UDP]), st.sampled_from([4, 6]), st.integers(0, 1400), st.integers(0, 3), st.integers(0, 3),
    st.integers(1, 64),
)  # fmt: skip
ODD = st.sampled_from([
    byhand.v4("10.1.0.1"), byhand.v6("fd00::1"), b"", b"\x45" * 19, b"\x60" * 39, b"\x15" * 60, bytes(60),
    byhand.v4("10.1.0.1", "10.0.0.77"), byhand.v4("10.1.0.1", "10.9.2.7", 1421), byhand.v4("10.1.0.1", "10.9.1.7", 20),
    b"\x45\0\0\x28\0\0\x20\0\x40\x11\0\0" + bytes(28), b"\x46" + byhand.v4("10.1.0.1")[1:],
    Shape(protocol=UDP, payload=b"\4\0\0\0" + bytes(40), size=44).packet(),
    Shape(version=6, protocol=UDP, payload=b"\1\0\0\0" + bytes(140), size=144).packet(),
    byhand.v6("fd00::1", after=44), byhand.v6("fd00::1", after=58), byhand.v6("fd00::1", after=0),
])  # fmt: skip


@st.composite
def items(draw: st.DrawFn) -> bytes:
    """An item of a train: mostly what an OS hands over, to one of the peers."""
    kind = draw(st.integers(0, 9))
    peer = draw(st.integers(0, PEERS))
    if kind == 0:
        return item(virtio.NONE, draw(ODD))
    shape = draw(supers(most=30) if kind < 5 else LONE)
    header, packet = shape.as_read()
    if kind == 9:
        header, packet = virtio.NONE, shape.packet()
    packet = addressed(packet, peer)
    if draw(st.integers(0, 19)) == 0:
        at = draw(st.integers(0, 9))
        header = header[:at] + bytes([draw(st.integers(0, 255))]) + header[at + 1 :]
    if draw(st.integers(0, 19)) == 0 and packet:
        at = draw(st.integers(0, min(79, len(packet) - 1)))
        packet = packet[:at] + bytes([draw(st.integers(0, 255))]) + packet[at + 1 :]
    return item(header, packet)
