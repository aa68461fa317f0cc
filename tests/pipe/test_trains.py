"""Data-plane framing: what goes in comes out, runs are cut where UDP GSO needs it, and nothing else gets through."""

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagewire.pipe import trains
from stagewire.pipe.names import MAX_TRAIN
from stagewire.pipe.train_builder import MAX_READ, ONE_RUN, CipherBuilder, PlainBuilder
from stagewire.pipe.trains import BadTrain
from stagewire.proto import endpoint as places
from stagewire.proto.constants import MAX_INNER, TRANSPORT_OVERHEAD
from stagewire.proto.packets import fields, virtio
from stagewire.proto.packets.merge import Item, Merged

T = TypeVar("T")
NOW = 1000.0
PLACES = [bytes([4, 0]) + bytes([number]) * (places.LENGTH - 2) for number in range(3)]
HEADER = struct.Struct("<BBBxId")
RUN = struct.Struct(f"<{places.LENGTH}sHxxI")

packets = st.lists(st.integers(0, 1600).map(bytes) | st.binary(max_size=60), max_size=trains.MAX_PACKETS)
sizes = st.lists(st.sampled_from([1, 32, 96, 96, 1452, 1452, 1452, 9000, 65507]), min_size=1, max_size=150)
runs = st.lists(
    st.tuples(st.sampled_from(PLACES), st.lists(st.binary(min_size=1, max_size=40), min_size=1)), max_size=6
)


def reason_of(unpack: object, frame: bytes, now: float = NOW) -> str:
    assert callable(unpack)
    with pytest.raises(BadTrain) as refused:
        unpack(frame, now)
    return refused.value.reason


merged = st.builds(
    Merged,
    st.just(virtio.VirtioHeader(fields.NEEDS_CSUM, fields.GSO_TCPV4, 40, 100, 20, 16).pack()),
    st.integers(201, 3000).map(bytes),
    st.just(0),
).map(lambda item: item._replace(segments=virtio.count(item.header, len(item.packet))))


@given(st.lists(st.integers(0, 1600).map(bytes) | merged, max_size=30), st.integers(0, 3))
def test_super_packets_arrive_as_they_left(train: list[Item], takes: int) -> None:
    frame = trains.pack_plain(train, NOW, takes)
    assert trains.unpack_plain_untrusted(frame, NOW) == train
    assert trains.takes_of(frame) == takes
    assert HEADER.unpack_from(frame)[3] == trains.weight(train)
    spans = trains.spans_untrusted(frame, NOW)
    assert [frame[start : start + fields.VNET_HEADER] for start, _, _ in spans] == [
        item.header if isinstance(item, Merged) else virtio.NONE for item in train
    ]


@given(packets)
def test_a_plain_train_arrives_as_it_left(train: list[bytes]) -> None:
    assert trains.unpack_plain_untrusted(trains.pack_plain(train, NOW), NOW) == train


@given(st.lists(merged | st.integers(0, 1600).map(bytes), max_size=30))
def test_a_plain_train_can_be_made_where_it_is_read(train: list[Item]) -> None:
    made = PlainBuilder()
    for takes in (3, 0):  # twice: nothing of the first is left in the second
        made.takes = takes
        for item in train:
            header, packet = (item.header, item.packet) if isinstance(item, Merged) else (virtio.NONE, item)
            room = made.room()
            room[: len(header) + len(packet)] = header + bytes(packet)
            made.add(len(header) + len(packet), item.segments if isinstance(item, Merged) else 1)
        assert made.full == is_full(list(map(size_of, train)))
        assert made.count == trains.weight(train)
        assert bytes(made.finish(NOW)) == trains.pack_plain(train, NOW, takes)
        assert made.count == 0


def is_full(sizes: list[int]) -> bool:
    now, then = sum(sizes), sum(sizes) + sum(sizes[-1:])
    if now >= MAX_READ or then <= ONE_RUN:
        return now >= MAX_READ
    return now / math.ceil(now / ONE_RUN) > then / math.ceil(then / ONE_RUN)


def size_of(item: Item) -> int:
    return len(item.packet if isinstance(item, Merged) else item) + fields.VNET_HEADER + 4


def test_a_full_frame_has_room_for_one_more() -> None:
    made, cipher = PlainBuilder(), CipherBuilder()
    for _ in range(2):
        made.add(MAX_READ // 2 - 5, 24)  # with a third they would fill the second run better
    for _ in range((MAX_READ - 1) // 92):
        cipher.add(PLACES[cipher.count % 2], 40, 40)
    assert (made.full, cipher.full) == (False, False)
    assert len(made.room()) == len(cipher.room()) == trains.MAX_ITEM
    made.add(trains.MAX_ITEM, 1)
    cipher.add(PLACES[2], 65507, 65507)
    assert (made.full, cipher.full) == (True, True)
    assert len(made.finish(NOW)) <= MAX_TRAIN
    assert len(cipher.finish(NOW)) <= MAX_TRAIN


@given(st.integers(20, 1500), st.sampled_from([1280, 1420, 1500]))
def test_what_one_visit_reads_of_packets_of_one_size_is_sealed_as_one_run(length: int, mtu: int) -> None:
    made = PlainBuilder()
    while not made.full and made.count < trains.MAX_PACKETS:
        made.add(fields.VNET_HEADER + min(length, mtu), 1)
    packet = min(length, mtu)
    row = packet + min(-packet % 16, mtu - packet) + TRANSPORT_OVERHEAD
    assert made.count <= min(trains.MAX_PACKETS, trains.MAX_RUN // row)


@pytest.mark.parametrize(
    ("segments", "items"),
    [(43, 2), (33, 2), (25, 2), (20, 2), (14, 3), (10, 4), (4, 10), (2, 21)],
)
def test_a_visit_ends_where_super_packets_fill_their_runs(segments: int, items: int) -> None:
    made, count = PlainBuilder(), 0
    while not made.full:
        made.add(fields.VNET_HEADER + 52 + segments * 1368, segments)
        count += 1
    assert count == items


received = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from([1, 32, 96, 97]), st.integers(1, 3), st.integers(0, 96)),
    max_size=60,
)


@given(received)
@example([(PLACES[0], 96, 1, 0)] * 60 + [(PLACES[0], 96, 3, 0)] * 3)
def test_a_cipher_train_can_be_made_where_it_is_received(arrivals: list[tuple[bytes, int, int, int]]) -> None:
    made = CipherBuilder()
    for _ in range(2):
        expected: list[tuple[bytes, bytes]] = []
        for number, (place, size, count, cut) in enumerate(arrivals):
            data = bytes([number]) * (size * count - cut % size if count > 1 else size)
            made.room()[: len(data)] = data
            made.add(place, size, len(data))
            expected += [(place, data[at : at + size]) for at in range(0, len(data), size)]
        assert made.count == len(expected)
        arrived = trains.unpack_cipher_untrusted(bytes(made.finish(NOW)), NOW)
        assert [(place, datagram) for place, block in arrived for datagram in block] == expected
        for _, block in arrived:
            assert len(block) <= trains.MAX_PACKETS
    for (place, block), (after, next_block) in itertools.pairwise(arrived):
        # No more runs than must be, where single datagrams came.
        if place == after and len(next_block) == 1 and len(block) < trains.MAX_PACKETS:
            assert next_block.size > block.size or len(block.data) % block.size


def test_the_longest_packets_fit_a_plain_train() -> None:
    kind = virtio.VirtioHeader(fields.NEEDS_CSUM, fields.GSO_TCPV4, 40, 1000, 20, 16).pack()
    train: list[Item] = [Merged(kind, bytes(65535), 66), bytes(MAX_INNER), b"x"]
    assert trains.unpack_plain_untrusted(trains.pack_plain(train, NOW), NOW) == train


@pytest.mark.parametrize("more", [[], [b"x"]], ids=["alone", "not alone"])
def test_a_packet_that_no_datagram_carries_is_refused(more: list[bytes]) -> None:
    frame = trains.pack_plain([bytes(MAX_INNER + 1), *more], NOW)
    assert trains.lone_untrusted(frame, NOW, 0, len(frame)) is None
    assert reason_of(trains.unpack_plain_untrusted, frame) == "train_malformed"
    fits = trains.pack_plain([bytes(MAX_INNER)], NOW)
    assert trains.lone_untrusted(fits, NOW, 0, len(fits)) == bytes(MAX_INNER)


@given(runs)
def test_a_cipher_train_arrives_in_order(train: list[tuple[bytes, list[bytes]]]) -> None:
    arrived = trains.unpack_cipher_untrusted(trains.pack_cipher(train, NOW), NOW)
    flat = [(place, datagram) for place, datagrams in train for datagram in datagrams]
    assert [(place, datagram) for place, datagrams in arrived for datagram in datagrams] == flat


@given(st.binary(min_size=places.LENGTH, max_size=places.LENGTH), st.binary(min_size=1, max_size=200))
def test_a_handshake_arrives_as_it_left(place: bytes, message: bytes) -> None:
    frame = trains.pack_handshake(place, message, NOW)
    assert trains.unpack_handshake_untrusted(frame, NOW) == (place, message)


@given(sizes)
@example([1452] * 65)
@example([1452] * 46)  # 46 x 1,452 are more than a UDP datagram may have
@example([96, 1452, 1452, 96, 96, 32])
def test_a_run_is_what_one_gso_send_takes(lengths: list[int]) -> None:
    train = trains.pack_cipher([(PLACES[0], [bytes(length) for length in lengths])], NOW)
    cut = [[len(datagram) for datagram in run] for _, run in trains.unpack_cipher_untrusted(train, NOW)]
    assert [length for run in cut for length in run] == lengths
    for run in cut:
        assert len(set(run[:-1])) <= 1
        assert run[-1] <= run[0]
        assert len(run) <= trains.MAX_PACKETS
        assert sum(run) <= trains.MAX_RUN
    # No more runs than must be: the next one's first datagram could not have been in the run before it.
    for run, after in itertools.pairwise(cut):
        assert (
            len(run) == trains.MAX_PACKETS
            or sum(run) + after[0] > trains.MAX_RUN
            or after[0] > run[0]
            or run[-1] < run[0]
        )


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_another_version_is_told_apart(version: int) -> None:
    for frame, unpack in every_kind():
        assert reason_of(unpack, bytes([version]) + frame[1:]) == "train_of_unknown_version"


def every_kind() -> list[tuple[bytes, object]]:
    return [
        (trains.pack_plain([b"packet"], NOW), trains.unpack_plain_untrusted),
        (trains.pack_cipher([(PLACES[0], [b"datagram"])], NOW), trains.unpack_cipher_untrusted),
        (trains.pack_handshake(PLACES[0], b"message", NOW), trains.unpack_handshake_untrusted),
    ]


def test_one_kind_is_not_taken_for_another() -> None:
    for frame, unpack in every_kind():
        for other, _ in every_kind():
            if other != frame:
                assert reason_of(unpack, other) == "train_malformed"


def test_what_waited_too_long_is_dropped() -> None:
    for frame, unpack in every_kind()[:2]:
        assert callable(unpack)
        unpack(frame, NOW + trains.MAX_AGE)
        assert reason_of(unpack, frame, NOW + trains.MAX_AGE + 0.001) == "train_too_old"
        unpack(frame, NOW - 5)  # made later in the same turn


def test_a_handshake_is_never_too_old() -> None:
    frame = trains.pack_handshake(PLACES[0], b"message", NOW)
    assert trains.unpack_handshake_untrusted(frame, NOW + 3600) == (PLACES[0], b"message")


@pytest.mark.parametrize("stamp", [math.nan, -math.inf])
def test_a_stamp_that_is_no_time_is_too_old(stamp: float) -> None:
    for frame, unpack in every_kind()[:2]:
        broken = frame[:8] + struct.pack("<d", stamp) + frame[16:]
        assert reason_of(unpack, broken) == "train_too_old"


@pytest.mark.parametrize(
    ("size", "length", "body"),
    [
        (0, 4, b"abcd"),  # datagrams of no length: endless
        (4, 0, b""),
        (4, 5, b"abcd"),  # more than there is
        (4, 3, b"abcd"),  # less than there is
        (1, 65, bytes(65)),  # more than one GSO send takes
        (2, 0xFFFFFFFF, b"abcd"),
    ],
)
def test_a_run_whose_lengths_make_no_sense_is_refused(size: int, length: int, body: bytes) -> None:
    frame = HEADER.pack(trains.VERSION, 2, 0, 1, NOW) + RUN.pack(PLACES[0], size, length) + body
    assert reason_of(trains.unpack_cipher_untrusted, frame) == "train_malformed"


def test_every_cut_and_every_extension_is_refused() -> None:
    for frame, unpack in every_kind():
        # A handshake frame's message has no length of its own: the message's own parser knows it.
        whole = len(frame) if unpack is not trains.unpack_handshake_untrusted else HEADER.size + places.LENGTH + 1
        for length in range(whole):
            assert reason_of(unpack, frame[:length]) == "train_malformed"
        if unpack is not trains.unpack_handshake_untrusted:
            assert reason_of(unpack, frame + b"\0") == "train_malformed"


@given(st.sampled_from(every_kind()), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5))
def test_a_damaged_frame_is_a_bad_train_or_a_train(made: tuple[bytes, object], damage: list[tuple[int, int]]) -> None:
    frame, unpack = bytearray(made[0]), made[1]
    for where, value in damage:
        frame[where % len(frame)] = value
    survives(unpack, bytes(frame))


@given(st.binary(max_size=300))
def test_garbage_is_a_bad_train(frame: bytes) -> None:
    for _, unpack in every_kind():
        survives(unpack, frame)


@given(st.sampled_from([1, 2, 3]), st.integers(0, 65535), st.binary(max_size=200))
def test_garbage_behind_a_header_is_a_bad_train(kind: int, count: int, rest: bytes) -> None:
    for _, unpack in every_kind():
        survives(unpack, HEADER.pack(trains.VERSION, kind, 0, count, NOW) + rest)


lone_trains = st.one_of(
    packets.map(lambda train: trains.pack_plain(train[:2], NOW)),
    runs.map(lambda train: trains.pack_cipher([(place, found[:2]) for place, found in train[:2]], NOW)),
    st.lists(merged, max_size=2).map(lambda train: trains.pack_plain(train, NOW)),
)


@given(
    lone_trains,
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=2),
    st.binary(max_size=3),
    st.data(),
)
def test_a_lone_packet_is_what_the_train_says(
    whole: bytes, damage: list[tuple[int, int]], around: bytes, data: st.DataObject
) -> None:
    """The short ways see what the long ones see, or leave it to them."""
    frame = bytearray(whole)
    for where, value in damage:
        frame[where % len(frame)] = value
    lies, begin, end = around + bytes(frame) + around, len(around), len(around) + len(frame)
    now = data.draw(st.sampled_from([NOW, NOW + 1]))
    check_short(
        partial(trains.lone_untrusted, lies, now, begin, end),
        partial(trains.unpack_plain_untrusted, lies, now, begin, end),
        lambda packet: [packet],
    )
    check_short(
        partial(trains.lone_run_untrusted, lies, now, begin, end),
        partial(trains.unpack_cipher_untrusted, lies, now, begin, end),
        lambda found: [(found[0], [found[1]])],
    )


def check_short(
    short: Callable[[], T | None], long: Callable[[], Sequence[object]], as_train: Callable[[T], object]
) -> None:
    found, refused = outcome(short)
    if refused:
        assert outcome(long) == (None, refused)
    elif found is not None:
        assert outcome(long) == (as_train(found), None)


def outcome(call: Callable[[], T]) -> tuple[T | None, tuple[str, int] | None]:
    try:
        return call(), None
    except BadTrain as bad:
        return None, (bad.reason, bad.packets)


def test_the_short_ways_take_what_they_are_for() -> None:
    plain, sealed = trains.pack_plain([b"packet"], NOW), trains.pack_cipher([(PLACES[0], [b"datagram"])], NOW)
    assert trains.lone_untrusted(plain, NOW, 0, len(plain)) == b"packet"
    assert trains.lone_run_untrusted(sealed, NOW, 0, len(sealed)) == (PLACES[0], b"datagram")


def survives(unpack: object, frame: bytes) -> None:
    """Either a train or BadTrain with a reason that is counted; anything else fails the test."""
    assert callable(unpack)
    reason = "none"
    try:
        unpack(frame, NOW)
    except BadTrain as bad:
        reason = bad.reason
    assert reason in {"none", "train_malformed", "train_of_unknown_version", "train_too_old"}


@given(st.lists(st.binary(min_size=1, max_size=3000).map(lambda piece: piece * 20), max_size=60))
def test_what_is_too_large_for_a_frame_is_cut_in_order(packets: list[bytes]) -> None:
    pieces = list(trains.cut_packets(packets))
    assert [packet for piece in pieces for packet in piece] == packets
    runs = [(bytes([7]) * 44, packets[::2]), (bytes([8]) * 44, packets[1::2])]
    cut = list(trains.cut_runs(runs))
    for endpoint, datagrams in runs:
        assert [each for piece in cut for place, part in piece if place == endpoint for each in part] == datagrams
    for frame in [trains.pack_plain(piece, 1.0) for piece in pieces] + [
        trains.pack_cipher(piece, 1.0) for piece in cut
    ]:
        assert len(frame) <= MAX_TRAIN


def test_a_train_that_is_too_old_counts_its_packets() -> None:
    for pack, unpack in (
        (trains.pack_plain([b"a", b"b", b"c"], 1.0), trains.unpack_plain_untrusted),
        (trains.pack_cipher([(bytes(44), [b"a", b"b", b"c"])], 1.0), trains.unpack_cipher_untrusted),
    ):
        with pytest.raises(trains.BadTrain) as bad:
            unpack(pack, 2.0)
        assert (bad.value.reason, bad.value.packets) == ("train_too_old", 3)


def test_a_mark_is_no_train_and_no_train_is_a_mark() -> None:
    frame = trains.pack_mark(31, 2**32 - 1, NOW)
    assert trains.mark_untrusted(b"x" + frame + b"y", 1, 1 + len(frame)) == (31, 2**32 - 1)
    for unpack in (trains.unpack_plain_untrusted, trains.unpack_cipher_untrusted):
        with pytest.raises(trains.BadTrain):
            unpack(frame, NOW)
    others = (
        frame + b"\0",
        frame[:-1],
        b"\0" + frame[1:],
        b"",
        trains.pack_plain([], NOW),
        trains.pack_plain([b"x"], NOW),
    )
    for other in others:
        assert trains.mark_untrusted(other, 0, len(other)) is None


@pytest.mark.parametrize("born", [-math.inf, -1e308, -1e9])
def test_a_birth_that_its_sender_changes_meanwhile_has_an_age(born: float) -> None:
    assert trains.age_of(born, NOW) == 255


class Changing(bytes):
    """Memory in which another process clears a virtio_net_hdr once it was judged."""

    looks = 0

    def __getitem__(self, place: object) -> bytes:  # type: ignore[override]
        found = super().__getitem__(place)  # type: ignore[call-overload]
        if isinstance(place, slice) and len(found) == fields.VNET_HEADER:
            self.looks += 1
            return found if self.looks <= 2 else virtio.NONE
        return bytes(found)


def test_a_super_packet_that_its_sender_makes_a_lone_one_meanwhile_is_refused() -> None:
    header = struct.pack("=BBHHHH", 1, fields.GSO_UDP_L4, 0, 30_000, 20, fields.UDP_CHECKSUM)
    item = trains.LENGTH.pack(trains.MAX_ITEM) + header + bytes(trains.MAX_ITEM - fields.VNET_HEADER)
    count = virtio.count(header, trains.MAX_ITEM - fields.VNET_HEADER)
    frame = Changing(trains.HEADER.pack(trains.VERSION, trains.PLAIN, 0, count, NOW) + item)
    with pytest.raises(BadTrain):
        trains.unpack_plain_untrusted(frame, NOW)
    assert frame.looks == 3
