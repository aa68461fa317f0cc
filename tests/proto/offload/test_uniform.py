"""Trains of packets that are all alike: sealed as a table they are what each would have been."""

import random
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto.byhand import T, ours, tunnel_of
from tests.proto.offload.flows import UDP, Shape
from tests.proto.offload.test_lane import running, sent

from stagewire.ipc import trains
from stagewire.proto.offload import uniform, virtio
from stagewire.proto.offload.coalesce import Merged


def train_of(items: Sequence[tuple[bytes, bytes]]) -> bytes:
    merged = [Merged(header, packet, 1) if header != virtio.NONE else packet for header, packet in items]
    return trains.pack_plain(merged, T)


def alike(frame: bytes) -> uniform.Uniform | None:
    found = trains.stride_untrusted(frame, T)
    return None if found is None else uniform.of_items(frame, *found)


@settings(max_examples=100)
@given(
    st.integers(1, 150),
    st.sampled_from([1, 64, 65, 1200, 1392]),
    st.sampled_from([4, 6]),
    st.booleans(),
    st.sampled_from([1420, 1421, 9000]),
)
def test_many_alike_are_sealed_as_each_would_be(count: int, size: int, version: int, raw: bool, mtu: int) -> None:
    """Datagrams of one size, their checksums made or not; 1,392 bytes and IPv6 are more than the MTU."""
    rng = random.Random(count)
    shapes = [Shape(version, UDP, size, rng.randbytes(size), port=rng.randrange(9)) for _ in range(count)]
    frame = train_of([shape.as_read() if raw else (virtio.NONE, shape.packet()) for shape in shapes])
    train = alike(frame)
    if train is None:
        assert len(shapes[0].packet()) < 40
        return
    assert (train.count, train.packets()) == (count, [shape.packet() for shape in shapes])
    assert train.first() == shapes[0].packet()
    results = []
    for lane, items in ((False, train.packets()), (True, [train]), (False, [train])):
        one = running(wide=lane, mtu=mtu)
        out = one.outbound(items, T)
        results.append((sent(out.runs), tunnel_of(one).tx_bytes, one.drops))
    assert results[0] == results[1] == results[2]
    assert [ours(datagram)[: len(shapes[0].packet())] for datagram in results[0][0]] == [
        shape.packet() for shape in shapes
    ]


ALIKE = [Shape(protocol=UDP, payload=bytes(100)).as_read() for _ in range(10)]


@pytest.mark.parametrize(
    "other",
    [
        Shape(protocol=UDP, payload=bytes(99)).as_read(),
        (virtio.NONE, Shape(protocol=UDP, payload=bytes(100)).packet()),
        (ALIKE[0][0], ALIKE[0][1][:19] + b"\7" + ALIKE[0][1][20:]),
        (ALIKE[0][0], b"\x65" + ALIKE[0][1][1:]),
    ],
    ids=["length", "header", "destination", "version"],
)
@pytest.mark.parametrize("at", [0, 5, 10])
def test_one_that_differs_makes_it_an_ordinary_train(other: tuple[bytes, bytes], at: int) -> None:
    assert alike(train_of(ALIKE)) is not None
    assert alike(train_of([*ALIKE[:at], other, *ALIKE[at:]])) is None


def test_what_is_no_packet_or_a_super_packet_is_not_alike() -> None:
    assert alike(train_of([Shape(payload=bytes(1000)).as_read()] * 10)) is None
    assert alike(train_of([(virtio.NONE, b"\x45" * 10)] * 10)) is None
    assert alike(train_of([(virtio.NONE, b"\x15" * 60)] * 10)) is None
    assert alike(train_of([])) is None
    bad = virtio.VirtioHeader(virtio.NEEDS_CSUM, virtio.GSO_NONE, 0, 0, 2000, 6).pack()
    assert alike(train_of([(bad, ALIKE[0][1])] * 10)) is None


@given(st.binary(max_size=400), st.integers(0, 12), st.integers(0, 40))
def test_anything_is_alike_or_not(data: bytes, count: int, length: int) -> None:
    frame = bytearray(trains.pack_plain([bytes(length)] * count, T))
    for at, value in enumerate(data[:60]):
        if 16 <= value * 3 < len(frame):
            frame[value * 3] = at
    with suppress(trains.BadTrain):
        alike(bytes(frame))


def test_refused_packets_that_are_alike_are_answered_and_counted() -> None:
    one = running(wide=True)
    train = alike(train_of([(head, body[:16] + bytes([192, 0, 2, 1]) + body[20:]) for head, body in ALIKE]))
    assert train is not None
    (answer,) = one.outbound([train], T).packets
    assert isinstance(answer, bytes)
    assert (answer[9], answer[20]) == (1, 3)
    assert one.drops == {"no_peer": 10}
