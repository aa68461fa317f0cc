"""The compiled half of tun-service reads and writes what Python does, train by train; a socket stands for the device."""

import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linux.tun_sides import both
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.given import addressed, frame_of, item, items
from tests.proto.packets.flows import UDP, Shape

from stagewire.pipe import trains
from stagewire.proto import carriers
from stagewire.proto.packets import virtio
from tun_service.packets import ANY

compiled = pytest.importorskip("stagewire.linux.tun_trains")


def as_read(packed: bytes) -> bytes:
    """What a device hands over of an item of a train."""
    return packed[4:]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(items(), max_size=20), min_size=1, max_size=4))
def test_both_read_the_same_trains(visits: list[list[bytes]]) -> None:
    with both(compiled) as sides:
        for number, visit in enumerate(visits):
            for side in sides:
                side.visit([as_read(each) for each in visit if len(each) >= 14], 1000.0 + number)
        assert sides[1].state() == sides[0].state()


def test_a_full_train_is_sent_before_more_is_read() -> None:
    data = Shape(size=1368, payload=bytes(40_000), options=bytes(12)).as_read()
    given_ = [data[0] + addressed(data[1], peer) for peer in (0, 0, 1, 0, 2, 1, 1)]
    with both(compiled) as sides:
        for side in sides:
            side.visit(given_, 1000.0)
        assert len(sides[1].sent) > 3
        assert sides[1].state() == sides[0].state()


def test_what_has_no_worker_is_answered_and_a_long_one_refused() -> None:
    with both(compiled) as sides:
        for side in sides:
            side.visit(
                [virtio.NONE + byhand.v4("10.1.0.1", "198.51.100.1"), virtio.NONE + b"\x45" + bytes(65_480)], 9.0
            )
        state = sides[1].state()
        assert state == sides[0].state()
        assert len(state[1]) == 1  # unreachable
        assert state[2] == {"no_peer": 1, "outbound_too_large": 1, "tun_packets_in": 2, "tun_packets_out": 1}


def test_a_device_that_is_gone_is_told(tmp_path: Path) -> None:
    """A descriptor that can't be read stands for it."""
    with both(compiled) as sides, (tmp_path / "gone").open("wb") as gone:
        for side in sides:
            os.dup2(gone.fileno(), side.device.fileno())
            side.packets.on_tun(1.0)
            assert side.lost == [errno.EBADF]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(items(), max_size=12),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
    st.integers(0, 60),
    st.sampled_from([T, T, T, T - 0.26, float("nan")]),
    st.sampled_from([ANY, 0, 1, 63]),
)
def test_both_write_the_same_items(
    inside: list[bytes], damage: list[tuple[int, int]], cut: int, stamp: float, worker: int
) -> None:
    frame = bytearray(frame_of(inside, stamp))
    for at, value in damage:
        frame[at % len(frame)] = value
    with both(compiled) as sides:
        for data in (frame_of(inside), bytes(frame), bytes(frame[: len(frame) - cut]), trains.pack_mark(1, 7, T)):
            for side in sides:
                side.packets.on_plain_in([(b"\1\2" + data + b"\3", 2, 2 + len(data))], T, worker)
        assert sides[1].state() == sides[0].state()
        assert sides[1].marks == [(1, 7)] * (worker in (ANY, 1))


def test_an_item_that_the_device_refuses_is_counted_and_a_super_packet_goes_apart() -> None:
    """A train's other items are written, in order."""
    refused: list[bytes] = []
    data = Shape(size=500, payload=bytes(2000)).as_read()
    frame = frame_of([item(*data), item(virtio.NONE, byhand.v4("10.1.0.1"))])
    writer = compiled.TunWriter(-1, refused.append, lambda _: None, {})
    assert writer.write(frame, 0, len(frame), T, 1.0, ANY) == (0, 5, 0)  # EBADF refuses all
    assert not refused
    assert writer.write(frame, 1, len(frame), T, 1.0, ANY) is None
    assert writer.write(frame, 0, len(frame) + 1, T, 1.0, ANY) is None


@pytest.mark.parametrize("version", [4, 6])
def test_both_write_what_a_worker_may_deliver_and_count_the_rest(version: int) -> None:
    """An owner's prefix counts, and whole packets: a super-packet is several."""
    shapes = [Shape(version, UDP, payload=bytes(2500), size=1000), Shape(version, UDP, payload=bytes(9), size=10)]
    inside = [
        item(h, from_peer(p, peer)) for peer in (0, 1, 2, 2, 9, 0) for h, p in (shape.as_read() for shape in shapes)
    ]
    with both(compiled) as sides:
        for side in sides:
            side.packets.on_plain_in([(frame := frame_of(inside), 0, len(frame))], T, 0)
        assert sides[1].state() == sides[0].state()
    with both(compiled) as sides:
        sides[1].packets.on_plain_in([(frame, 0, len(frame))], T, 0)
        assert sides[1].counters == {"tun_packets_out": 16, "inner_source_of_another_worker": 8}
        assert sides[1].written() == [as_read(each) for at, each in enumerate(inside) if at // 2 in (0, 2, 3, 5)]


def from_peer(packet: bytes, peer: int) -> bytes:
    """Gives a packet a source of a peer; its checksums go wrong, which nobody looks at."""
    if packet[0] >> 4 == 4:
        return packet[:12] + bytes([10, 9, peer, 9]) + packet[16:]
    return packet[:8] + bytes([0xFD, 9, 0, peer]) + packet[12:]


def test_what_is_written_is_what_was_judged() -> None:
    """Its sender changes a train in shared memory, at the moment in which it is judged."""
    allowed, strange = (from_peer(Shape(payload=b"x").packet(), peer) for peer in (0, 1))
    frame = bytearray(frame_of([item(virtio.NONE, allowed)]))
    device, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def lookup(_source: bytes) -> int:
        frame[:] = frame_of([item(virtio.NONE, strange)])
        return carriers.pack(0)

    with device, far:
        writer = compiled.TunWriter(device.fileno(), lambda _: None, lookup, {})
        assert writer.write(frame, 0, len(frame), T, 1.0, 0) == (1, 0, 0)
        assert far.recv(1000) == virtio.NONE + allowed


def test_a_room_takes_no_more_than_fits() -> None:
    room = compiled.PlainRoom(3)
    for length in (-1, trains.MAX_ITEM + 1):
        with pytest.raises(ValueError, match="no room"):
            room.add(length, 1)
    room.add(trains.MAX_ITEM, 1)
    assert room.full
    with pytest.raises(ValueError, match="no room"):
        room.add(10, 1)
    reader = compiled.TunReader(-1, lambda _: None, {})
    with pytest.raises(ValueError, match="must be sent first"):
        reader.visit(lambda _: room, 0, False)


@pytest.mark.parametrize("found", [None, 5])
def test_a_builder_that_gives_no_room_is_an_error_of_ours(found: object) -> None:
    reader = compiled.TunReader(-1, {}.get, {})
    with pytest.raises((TypeError, AttributeError)):
        reader.visit(lambda _: found, 0, False)
