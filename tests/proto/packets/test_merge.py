"""What is merged is what it was made of; what may not be merged isn't; nothing overtakes within a flow."""

import random
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto.byhand import INDEX, OURS, PEER, PLACE, THEIRS, T, facts, theirs
from tests.proto.packets.flows import ACK, CWR, ECE, FIN, PSH, TCP, UDP, Shape, apart, supers

from stagewire.pipe import trains
from stagewire.proto.kernel.choice import choose
from stagewire.proto.kernel.rule import COMPILED
from stagewire.proto.packets import merge as packets_merge
from stagewire.proto.packets import split
from stagewire.proto.packets.merge import TAKES_TCP, TAKES_UDP, Item, Merged
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.worker import Worker

BOTH = TAKES_TCP | TAKES_UDP
Merge = Callable[[Sequence[bytes], int], list[Item]]


def compiled(packets: Sequence[bytes], takes: int) -> list[Item]:
    """Merges by the compiled kernel, which gets the packets from a peer."""
    if choose("").name != COMPILED:
        pytest.skip("the compiled kernel isn't built here")
    kernel = choose(COMPILED)
    worker = Worker(lambda: 0.0, kernel=kernel)
    worker.takes = takes
    worker.set_peer(facts(PEER, "0.0.0.0/0", "::/0"), T)
    worker.install(PEER, kernel.session(INDEX, 1, OURS, THEIRS, initiator=True, created=T), PLACE, T)
    frame = trains.pack_cipher([(PLACE, [theirs(at, packet) for at, packet in enumerate(packets)])], T)
    assert worker.opening is not None
    assert worker.opening.add(frame, 0, len(frame), T, trains.MAX_AGE)
    opened = worker.open([], T).opened
    return [item for train, _ in opened for item in trains.unpack_plain_untrusted(bytes(train), T)]


KERNELS = pytest.mark.parametrize("merge", [packets_merge.merge, compiled], ids=["plain", "compiled"])
PSH_OR_NOT = st.sampled_from([ACK, ACK | PSH])


def flow_of(packet: bytes) -> bytes:
    return packet[12:24] if packet[0] == 0x45 else packet[8:44]


def by_flow(packets: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    flows = defaultdict(list)
    for packet in packets:
        flows[flow_of(packet)].append(packet)
    return flows


@KERNELS
@given(shape=supers(PSH_OR_NOT, most=64))
def test_split_and_merged_it_is_one_again(merge: Merge, shape: Shape) -> None:
    (item,) = merge(shape.train(), BOTH)
    assert isinstance(item, Merged)
    whole = split.open_untrusted(*shape.as_read())
    assert isinstance(whole, SuperPacket)
    assert item.segments == whole.count
    assert split.open_untrusted(item.header, item.packet) == replace_packet(whole, item.packet)
    assert item.packet == shape.as_read()[1]
    assert apart([item]) == shape.train()


def replace_packet(whole: SuperPacket, packet: bytes | memoryview) -> SuperPacket:
    return SuperPacket(packet, whole.transport, whole.headers, whole.segment_size, whole.protocol, whole.version)


@KERNELS
@settings(max_examples=200)
@given(
    shapes=st.lists(supers(PSH_OR_NOT | st.sampled_from([0, ACK | FIN, ACK | CWR]), most=6), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    takes=st.integers(0, 3),
)
def test_whatever_comes_goes_on_in_each_flows_order(
    merge: Merge, shapes: list[Shape], order: random.Random, takes: int
) -> None:
    trains = [replace(shape, port=number).train() for number, shape in enumerate(shapes)]
    packets: list[bytes] = []
    while trains:
        train = order.choice(trains)
        packets.append(train.pop(0))
        trains = [each for each in trains if each]
    found = merge(packets, takes)
    assert by_flow(apart(found)) == by_flow(packets)
    if not takes:
        assert found == packets


@KERNELS
def test_interleaved_flows_are_merged_each_by_itself(merge: Merge) -> None:
    shapes = [Shape(payload=bytes(1000), port=port, host=host) for port in (1, 2) for host in (1, 2)]
    packets = [packet for row in zip(*(shape.train() for shape in shapes), strict=True) for packet in row]
    found = merge(packets, BOTH)
    assert [item.segments for item in found if isinstance(item, Merged)] == [10] * 4
    assert by_flow(apart(found)) == by_flow(packets)


@KERNELS
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_flow_that_goes_on_behind_another_is_one_item(merge: Merge, version: int, protocol: int) -> None:
    """As a sender lays super-packets one after another, of which two may be of one flow."""
    shape, other = (Shape(version, protocol, payload=bytes(1000), port=port) for port in (1, 2))
    packets, between = shape.train(), other.train()
    found = merge([*packets[:4], *between, *packets[4:]], BOTH)
    assert [item.segments for item in found if isinstance(item, Merged)] == [10, 10]
    assert apart(found) == [*packets, *between]


@KERNELS
@pytest.mark.parametrize("first", [3, 5])
def test_what_comes_twice_or_misses_something_does_not_go_on_there(merge: Merge, first: int) -> None:
    train, between = (Shape(payload=bytes(1000), port=port).train() for port in (1, 2))
    packets = [*train[:4], *between, *train[first:]]
    found = merge(packets, BOTH)
    assert [item.segments for item in found if isinstance(item, Merged)] == [4, 10, 10 - first]
    assert apart(found) == packets


@KERNELS
def test_behind_a_short_or_pushed_one_nothing_goes_on(merge: Merge) -> None:
    between = Shape(payload=bytes(1000), port=9).train()
    third = replace(NEXT, sequence=NEXT.sequence + 100, identification=NEXT.identification + 1)
    for second in (replace(NEXT, flags=ACK | PSH), replace(NEXT, payload=bytes(100))):
        packets = [ONE.packet(), second.packet(), *between, third.packet()]
        kept = [getattr(item, "segments", 1) for item in merge(packets, BOTH)]
        assert kept == ([2, 10, 1] if second.flags & PSH else [3, 10])
    short = [ONE.packet(), replace(NEXT, payload=bytes(99)).packet()]
    packets = [*short, *between, replace(third, sequence=third.sequence - 1).packet()]
    assert [getattr(item, "segments", 1) for item in merge(packets, BOTH)] == [2, 10, 1]
    # One that is shorter may end a super-packet, but not begin a second half of it.
    after = [replace(third, sequence=NEXT.sequence, payload=bytes(50), identification=NEXT.identification)]
    after.append(replace(after[0], sequence=NEXT.sequence + 50, identification=NEXT.identification + 1))
    packets = [ONE.packet(), *between, *(each.packet() for each in after)]
    assert by_flow(apart(merge(packets, BOTH))) == by_flow(packets)


@KERNELS
@pytest.mark.parametrize("shape", [Shape(4), Shape(6), Shape(4, UDP), Shape(6, UDP)])
@pytest.mark.parametrize("bad", [0, 3, 9])
def test_a_wrong_checksum_keeps_a_packet_out(merge: Merge, shape: Shape, bad: int) -> None:
    train = replace(shape, payload=bytes(1000)).train()
    damaged = bytearray(train[bad])
    damaged[-1] ^= 1
    train[bad] = bytes(damaged)
    found = merge(train, BOTH)
    assert train[bad] in found
    assert apart(found) == train
    assert len(found) == {0: 2, 3: 3, 9: 2}[bad]


@KERNELS
@pytest.mark.parametrize("at", [1, 8, 10])
def test_a_wrong_ipv4_header_keeps_a_packet_out(merge: Merge, at: int) -> None:
    train = Shape(payload=bytes(1000)).train()
    damaged = bytearray(train[5])
    damaged[at] ^= 4
    train[5] = bytes(damaged)
    found = merge(train, BOTH)
    assert train[5] in found
    assert apart(found) == train


ONE = Shape(payload=bytes(100))
NEXT = replace(ONE, sequence=ONE.sequence + 100, identification=ONE.identification + 1)


@KERNELS
@pytest.mark.parametrize(
    "change",
    [
        {"sequence": NEXT.sequence + 1},
        {"sequence": ONE.sequence},
        {"acknowledged": 6},
        {"window": 901},
        {"options": bytes(4)},
        {"flags": ACK | FIN},
        {"flags": ACK | ECE},
        {"flags": ACK | CWR},
        {"flags": 0},
        {"flags": ACK | 2},
        {"flags": ACK | 4},
        {"hops": 63},
        {"traffic_class": 1},
        {"dont_fragment": False},
        {"payload": bytes(101)},
        {"payload": b""},
        {"host": 2},
        {"port": 2},
        {"protocol": UDP},
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_what_differs_is_not_merged(merge: Merge, version: int, change: dict[str, int]) -> None:
    first, second = replace(ONE, version=version), replace(NEXT, version=version)
    assert len(merge([first.packet(), second.packet()], BOTH)) == 1
    packets = [first.packet(), replace(second, **change).packet()]  # type: ignore[arg-type]
    if version == 6 and "dont_fragment" in change:
        return
    assert sorted(apart(merge(packets, BOTH))) == sorted(packets)
    assert len(merge(packets, BOTH)) == 2


@KERNELS
def test_identifications_count_unless_nothing_may_be_cut(merge: Merge) -> None:
    for same in (True, False):
        first, second = replace(ONE, dont_fragment=same), replace(NEXT, dont_fragment=same, identification=99)
        assert len(merge([first.packet(), second.packet()], BOTH)) == (1 if same else 2)


@KERNELS
def test_where_identifications_stop_counting_another_begins(merge: Merge) -> None:
    train = Shape(payload=bytes(1000), dont_fragment=False, identification=0xFFFE).train()
    assert len(merge(train, BOTH)) == 1  # they go around
    gap = train[:4] + Shape(payload=bytes(1000), dont_fragment=False, identification=0x0FFE).train()[4:]
    found = merge(gap, BOTH)
    assert [getattr(item, "segments", 1) for item in found] == [4, 6]
    assert apart(found) == gap


@KERNELS
def test_push_and_a_short_one_end_a_super_packet(merge: Merge) -> None:
    third = replace(NEXT, sequence=NEXT.sequence + 100, identification=NEXT.identification + 1)
    pushed = [ONE.packet(), replace(NEXT, flags=ACK | PSH).packet(), third.packet()]
    found = merge(pushed, BOTH)
    assert [getattr(item, "segments", 1) for item in found] == [2, 1]
    assert apart(found) == pushed
    short = replace(third, sequence=third.sequence - 1)
    cut = [ONE.packet(), replace(NEXT, payload=bytes(99)).packet(), short.packet()]
    assert [getattr(item, "segments", 1) for item in merge(cut, BOTH)] == [2, 1]


@KERNELS
def test_fragments_options_and_other_protocols_pass(merge: Merge) -> None:
    for version in (4, 6):
        train = replace(ONE, version=version, payload=bytes(300)).train()
        for at, value in ((6, 0x20), (7, 1), (9, 50), (0, 0x46)) if version == 4 else ((6, 0), (6, 44), (6, 50)):
            changed = [packet[:at] + bytes([value]) + packet[at + 1 :] for packet in train]
            assert merge(changed, BOTH) == changed


@KERNELS
def test_a_stranger_between_two_of_a_flow_keeps_them_apart(merge: Merge) -> None:
    """It may be a fragment of that very flow."""
    stranger = b"\x45\0\0\x14" + bytes(2) + b"\x20\0\x40\x06" + bytes(10)
    packets = [ONE.packet(), stranger, NEXT.packet()]
    assert merge(packets, BOTH) == packets


@KERNELS
def test_only_what_the_os_takes_is_merged(merge: Merge) -> None:
    for protocol, takes in ((TCP, TAKES_UDP), (UDP, TAKES_TCP)):
        train = Shape(protocol=protocol, payload=bytes(1000)).train()
        assert merge(train, takes) == train
        assert len(merge(train, BOTH)) == 1


@KERNELS
def test_udp_without_a_checksum_is_passed(merge: Merge) -> None:
    train = [packet[:26] + b"\0\0" + packet[28:] for packet in Shape(protocol=UDP, payload=bytes(300)).train()]
    assert merge(train, BOTH) == train


def test_a_super_packet_has_an_end() -> None:
    found = packets_merge.merge(Shape(size=1400, payload=bytes(1400 * 50)).train(), BOTH)
    assert [getattr(item, "segments", 1) for item in found] == [46, 4]
    found = packets_merge.merge(Shape(size=10, payload=bytes(1000)).train(), BOTH)
    assert [getattr(item, "segments", 1) for item in found] == [64, 36]


@KERNELS
@settings(max_examples=200)
@given(
    shape=supers(PSH_OR_NOT, most=12),
    damage=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 90), st.integers(0, 255)), max_size=4),
)
def test_damaged_packets_come_out_as_they_went_in(
    merge: Merge, shape: Shape, damage: list[tuple[int, int, int]]
) -> None:
    train = [bytearray(packet) for packet in shape.train()]
    for number, at, value in damage:
        packet = train[number % len(train)]
        # Its own length and version were judged before.
        if at % len(packet) not in (0, 2, 3, 4, 5):
            packet[at % len(packet)] = value
    packets = list(map(bytes, train))
    assert sorted(map(told, apart(merge(packets, BOTH)))) == sorted(map(told, packets))


def told(packet: bytes) -> bytes:
    """The packet without an identification that means nothing, and the checksum over it."""
    if packet[0] == 0x45 and packet[6] & 0x40:
        return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]
    return packet


def test_the_pseudo_headers_sum_is_left_for_the_kernel() -> None:
    (item,) = packets_merge.merge(Shape(payload=bytes(1000)).train(), BOTH)
    assert isinstance(item, Merged)
    expected = struct.unpack("!10H", bytes([10, 0, 0, 1, 10, 9, 9, 9]) + struct.pack("!IHIH", 0, TCP, 0, 1020))
    total = sum(expected)
    assert int.from_bytes(item.packet[36:38]) == (total & 0xFFFF) + (total >> 16)
