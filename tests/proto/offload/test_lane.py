"""A worker's wide lane does what its narrow one does: the same packets, counters, drops and judgements."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto.byhand import ELSEWHERE, INDEX, PEER, PLACE, T, facts, new_session, ours, theirs, tunnel_of
from tests.proto.offload.flows import TCP, UDP, Shape, supers

from stagewire.ipc import trains
from stagewire.proto import constants as c
from stagewire.proto import ip
from stagewire.proto.device import Device
from stagewire.proto.events import EndpointMoved
from stagewire.proto.offload import coalesce, segment
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.coalesce import Item, Merged
from stagewire.proto.offload.segment import SuperPacket
from stagewire.proto.tunnel import TunnelSettings

BOTH = coalesce.TAKES_TCP | coalesce.TAKES_UDP
LANES = pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])


def running(*, wide: bool, takes: int = 0, mtu: int = 1420, created: float = T) -> Device:
    """Everybody is behind PEER, and there is a session."""
    one = Device(lambda: 0.1, wide=wide)
    one.takes = takes
    one.set_settings(TunnelSettings(mtu=mtu))
    one.set_peer(facts(PEER, "10.0.0.0/8", "fd00::/8"), T)
    assert one.install(PEER, new_session(created=created), PLACE, T) is not None
    return one


def whole(shape: Shape) -> SuperPacket:
    found = segment.open_untrusted(*shape.as_read())
    assert isinstance(found, SuperPacket)
    return found


def sent(runs: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[bytes]:
    return [datagram for _, datagrams in runs for datagram in datagrams]


def run_of(packets: Sequence[bytes], first: int = 0) -> Block:
    """As it would be received: padded, sealed by the peer, all of one size but the last."""
    sealed = [theirs(first + at, packet + bytes(-len(packet) % 16)) for at, packet in enumerate(packets)]
    assert all(len(datagram) == len(sealed[0]) for datagram in sealed[:-1])
    return Block(b"".join(sealed), len(sealed[0]))


def apart(items: Sequence[Item]) -> list[bytes]:
    found: list[bytes] = []
    for item in items:
        if isinstance(item, Merged):
            opened = segment.open_untrusted(item.header, item.packet)
            assert isinstance(opened, SuperPacket)
            found += segment.split(opened)
        else:
            found.append(item)
    return found


# --- sealing -----------------------------------------------------------------------------------------------


LONE = st.builds(lambda host, port: Shape(payload=b"alone", size=9, host=host, port=port), *[st.integers(0, 3)] * 2)


def by_flow(packets: Sequence[bytes]) -> dict[bytes | None, list[bytes]]:
    """In the order of each; those of which it can't be told are of all of them."""
    found: dict[bytes | None, list[bytes]] = {ip.flow(packet): [] for packet in packets}
    for packet in packets:
        found[ip.flow(packet)].append(packet)
    return found


@settings(max_examples=100)
@given(st.lists(supers(most=100) | LONE, min_size=1, max_size=8), st.just(1420))
def test_both_lanes_seal_the_same(shapes: list[Shape], mtu: int) -> None:
    """The narrow one in the order in which they came, the wide one in each flow's."""
    items = [segment.open_untrusted(*shape.as_read()) for shape in shapes]
    expected = [
        packet.ljust(len(packet) + min(-len(packet) % 16, max(0, mtu - len(packet))), b"\0")
        for shape in shapes
        for packet in (shape.train() if shape.size < len(shape.payload) else [shape.packet()])
    ]
    results = []
    for lane in (False, True):
        one = running(wide=lane, mtu=mtu)
        datagrams = sent(one.outbound(items, T).runs)
        counters = [int.from_bytes(datagram[8:16], "little") for datagram in datagrams]
        assert counters == list(range(1, 1 + len(datagrams)))  # 0 was the packet that confirmed the session
        opened = [ours(datagram) for datagram in datagrams]
        assert opened == expected if not lane else by_flow(opened) == by_flow(expected)
        results.append((tunnel_of(one).tx_bytes, one.drops))
    assert results[0] == results[1]


def test_acknowledgements_do_not_cut_other_flows_data() -> None:
    data = [whole(Shape(size=1368, payload=bytes(4 * 1368), options=bytes(12), port=port)) for port in range(6)]
    other, own = (Shape(port=port, options=bytes(12)).packet() for port in (100, 3))
    fragment = other[:6] + b"\x20\x05" + other[8:]
    for between, lengths, places in (
        ([other, other], [24, 2], [24, 25]),
        ([own], [12, 1, 12], [12]),
        ([fragment], [5, 20], [4]),  # of whatever flow it is
    ):
        runs = [run for _, run in running(wide=True).outbound([data[0], *between, *data[1:]], T).runs]
        assert [len(run) for run in runs] == lengths
        opened = [ours(datagram) for run in runs for datagram in run]
        assert [at for at, packet in enumerate(opened) if len(packet) < 100] == places


def test_an_acknowledgement_ends_the_run_before_it_on_the_wire() -> None:
    data = whole(Shape(size=1368, payload=bytes(40 * 1368), options=bytes(12)))
    acknowledgements = [Shape(port=port, options=bytes(12)).packet() for port in (100, 101)]
    out = running(wide=True).outbound([data, *acknowledgements], T)
    frame = trains.pack_cipher(out.runs, T)
    blocks = [block for _, block in trains.unpack_cipher_untrusted(frame, T)]
    assert [(len(block), block.size) for block in blocks] == [(41, 1452), (1, 96)]
    assert [ours(datagram)[:52] for block in blocks for datagram in block][40:] == acknowledgements


def test_a_block_is_one_run_for_one_send() -> None:
    one = running(wide=True)
    out = one.outbound([whole(Shape(size=1368, payload=bytes(43 * 1368), options=bytes(12)))], T)
    ((place, block),) = out.runs
    assert isinstance(block, Block)
    assert (place, len(block), block.size, len(block.data)) == (PLACE, 43, 1452, 43 * 1452)
    out = one.outbound([whole(Shape(size=100, payload=bytes(10000)))], T)
    assert [len(block) for _, block in out.runs] == [64, 36]


@LANES
def test_counters_that_run_out_leave_the_rest_staged(wide: bool) -> None:
    one = running(wide=wide)
    session = tunnel_of(one).slots.current
    assert session is not None
    shape = Shape(payload=bytes(2000))
    session.send_counter = c.REJECT_AFTER_MESSAGES - 25
    out = one.outbound([whole(shape), whole(shape)], T)
    assert len(sent(out.runs)) == 25
    assert tunnel_of(one).staged.take() == shape.train()[5:]
    assert one.drops == {"counter_exhausted": 1}
    assert session.counters_left == 0


def test_counters_are_taken_before_anything_is_sealed() -> None:
    session = new_session()
    assert [session.take_counters(count) for count in (3, 1, 40)] == [0, 3, 4]
    session.send_counter = c.REJECT_AFTER_MESSAGES - 2
    with pytest.raises(OverflowError):
        session.take_counters(3)
    assert session.take_counters(2) == c.REJECT_AFTER_MESSAGES - 2


@LANES
def test_super_packets_wait_as_packets(wide: bool) -> None:
    one = Device(lambda: 0.1, wide=wide)
    one.set_peer(facts(PEER, "10.0.0.0/8"), T)
    shape = Shape(payload=bytes(20000))
    assert not one.outbound([whole(shape)], T).runs
    assert len(tunnel_of(one).staged) == len(shape.train()[-128:])
    out = one.install(PEER, new_session(), PLACE, T)
    assert out is not None
    assert [ours(datagram)[:140] for datagram in sent(out.runs)] == shape.train()[-128:]


@LANES
def test_nobodys_super_packet_is_answered_once(wide: bool) -> None:
    one = running(wide=wide)
    header, packet = Shape(payload=bytes(1000)).as_read()
    stray = segment.open_untrusted(header, packet[:16] + bytes([192, 0, 2, 1]) + packet[20:])
    out = one.outbound([stray], T)
    (answer,) = out.packets
    assert isinstance(answer, bytes)
    assert (answer[9], answer[20], answer[28:30]) == (1, 3, b"\x45\0")
    assert one.drops == {"no_peer": 10}


# --- opening -----------------------------------------------------------------------------------------------


@LANES
@pytest.mark.parametrize("takes", [0, BOTH])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_run_comes_out_as_it_went_in(wide: bool, takes: int, version: int, protocol: int) -> None:
    one = running(wide=wide, takes=takes)
    shape = Shape(version, protocol, size=1200, payload=random.Random(1).randbytes(40 * 1200 + 7))
    block = run_of(shape.train())
    out = one.inbound([(PLACE, block)], T)
    assert apart(out.packets) == shape.train()
    assert len(out.packets) == (1 if takes else 41)
    assert tunnel_of(one).rx_bytes == len(block.data)
    assert one.inbound([(ELSEWHERE, block)], T).packets == []
    assert (dict(one.drops), tunnel_of(one).endpoint) == ({"replayed": 41}, PLACE)


DATA = Shape(size=1200, payload=random.Random(1).randbytes(40 * 1200), options=bytes(12), window=7)
ENDS = {
    "its own flow's": replace(DATA, payload=b"", sequence=DATA.sequence + 40 * 1200),
    "another flow's": replace(DATA, payload=b"", port=9),
    "other options": replace(DATA, payload=b"", port=9, options=bytes(20)),
    "no options": replace(DATA, payload=b"", port=9, options=b""),
    "UDP": Shape(protocol=UDP, payload=b"question"),
}


@LANES
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_run_may_end_with_something_else(wide: bool, version: int, end: Shape) -> None:
    """It stays a packet: an acknowledgement may repeat another one, and says something by that."""
    one = running(wide=wide, takes=BOTH)
    data, last = replace(DATA, version=version).train(), replace(end, version=version).packet()
    out = one.inbound([(PLACE, run_of([*data, last]))], T)
    assert apart(out.packets) == [*data, last]
    assert len(out.packets) == 2


@LANES
@pytest.mark.parametrize("length", [20, 32, 40, 48, 59, 60])
@pytest.mark.parametrize(
    "front", [b"\x45" + bytes(8) + b"\x06", b"\x45" + bytes(8) + b"\x11", b"\x60" + bytes(5) + b"\x06"]
)
def test_headers_that_are_cut_short_harm_nobody(wide: bool, length: int, front: bytes) -> None:
    one = running(wide=wide, takes=BOTH)
    packet = front.ljust(length, b"\0")
    block = Block(b"".join(theirs(at, packet) for at in range(10)), length + 32)
    assert one.inbound([(PLACE, block)], T).packets == []
    assert sum(one.drops.values()) == 10


def changed(block: Block, at: int, by: int = 1) -> Block:
    data = bytearray(block.data)
    data[at] ^= by
    return Block(bytes(data), block.size)


@LANES
@pytest.mark.parametrize("takes", [0, BOTH])
@pytest.mark.parametrize("bad", [[0], [5], [19], [0, 1, 2, 18, 19], list(range(20))])
def test_what_is_not_authentic_is_counted_and_the_rest_comes(wide: bool, takes: int, bad: list[int]) -> None:
    one = running(wide=wide, takes=takes)
    train = Shape(payload=random.Random(2).randbytes(1950)).train()
    block = run_of(train)
    for number in bad:
        block = changed(block, number * block.size + 40)
    out = one.inbound([(ELSEWHERE, block)], T)
    good = [packet for number, packet in enumerate(train) if number not in bad]
    assert apart(out.packets) == good
    assert one.drops == {"transport_not_authentic": len(bad)}
    assert out.events == ([EndpointMoved(PEER, ELSEWHERE)] if good else [])
    # Nothing that wasn't authentic has moved the window.
    whole_block = run_of(train)
    one.inbound([(PLACE, Block(whole_block.data, whole_block.size))], T)
    assert one.drops["replayed"] == len(good)


@LANES
def test_a_run_for_several_sessions_or_none_is_told_apart(wide: bool) -> None:
    one = running(wide=wide, takes=BOTH)
    train = Shape(payload=bytes(2000)).train()
    block = run_of(train)
    stray = changed(block, 10 * block.size + 5)
    assert len(apart(one.inbound([(PLACE, stray)], T).packets)) == 19
    assert one.drops == {"unknown_receiver": 1}
    data = bytearray(run_of(train, first=20).data)
    for at in range(0, len(data), block.size):
        data[at + 5] ^= 1
    assert one.inbound([(PLACE, Block(bytes(data), block.size))], T).packets == []
    assert one.drops == {"unknown_receiver": 21}


@LANES
@pytest.mark.parametrize("at", range(4))
def test_the_type_is_checked_in_a_run_too(wide: bool, at: int) -> None:
    one = running(wide=wide)
    block = run_of(Shape(payload=bytes(2000)).train())
    assert len(one.inbound([(PLACE, changed(block, 7 * block.size + at))], T).packets) == 19
    assert one.drops == {"unknown_receiver": 1}


@LANES
@pytest.mark.parametrize("takes", [0, BOTH])
def test_a_source_that_is_not_the_peers_is_refused(wide: bool, takes: int) -> None:
    one = running(wide=wide, takes=takes)
    one.set_peer(facts(b"O" * 32, "10.0.0.3/32"), T)
    trains = [Shape(payload=bytes(1000), host=host).train() for host in (1, 3)]
    packets = [packet for pair in zip(*trains, strict=True) for packet in pair]
    out = one.inbound([(PLACE, run_of(packets))], T)
    assert apart(out.packets) == trains[0]
    assert one.drops == {"inner_source_not_allowed": 10}


@LANES
def test_an_old_session_opens_no_run(wide: bool) -> None:
    one = running(wide=wide)
    block = run_of(Shape(payload=bytes(2000)).train())
    assert one.inbound([(PLACE, block)], T + 180).packets == []
    assert one.drops == {"session_expired": 20}


@LANES
@pytest.mark.parametrize("takes", [0, BOTH])
def test_padding_that_is_not_zeros_harms_nobody(wide: bool, takes: int) -> None:
    one = running(wide=wide, takes=takes)
    train = Shape(payload=bytes(1000)).train()
    block = run_of([packet + b"\xff" * (-len(packet) % 16) for packet in train])
    assert apart(one.inbound([(PLACE, block)], T).packets) == train


@LANES
def test_malformed_packets_and_keepalives_in_a_run(wide: bool) -> None:
    one = running(wide=wide, takes=BOTH)
    bad = [
        b"\x45\0\xff\xff".ljust(144, b"\0"),
        b"\x15".ljust(144, b"\0"),
        b"\x60\0\0\0\0\x08\x3b".ljust(144, b"\0"),
    ] * 4
    block = run_of([*bad, b""])
    assert one.inbound([(PLACE, block)], T).packets == []
    assert one.drops == {"inner_malformed": 8, "inner_source_not_allowed": 4}  # from ::
    one.drops.clear()
    assert one.inbound([(PLACE, run_of([b""] * 10, first=20))], T).packets == []
    assert not one.drops


@settings(max_examples=150)
@given(
    st.lists(supers(st.sampled_from([16, 24, 17]), most=5), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 100000), st.integers(0, 255)), max_size=2),
    st.none() | st.tuples(st.integers(0, 8), st.sampled_from([0, 20, 19])),
)
def test_both_lanes_open_the_same(
    shapes: list[Shape],
    order: random.Random,
    takes: int,
    damage: list[tuple[int, int]],
    end: tuple[int, int] | None,
) -> None:
    """`end`: a last, shorter packet of (port, bytes of payload), which may go on one of the flows, or acknowledge alone."""
    size = 160
    trains = [replace(shape, size=20, payload=shape.payload[:100], port=at).train() for at, shape in enumerate(shapes)]
    packets = []
    while trains:
        packets.append(order.choice(trains).pop(0))
        trains = [train for train in trains if train]
    sealed = bytearray(b"".join(theirs(at, packet.ljust(size - 32, b"\0")) for at, packet in enumerate(packets)))
    if end is not None:
        like = shapes[end[0] % len(shapes)]
        goes_on = like.sequence + len(like.payload[:100])
        last = replace(like, payload=bytes(end[1]), port=end[0], sequence=goes_on & 0xFFFFFFFF).packet()
        sealed += theirs(len(packets), last + bytes(-len(last) % 16))
    for at, value in damage:
        sealed[at % len(sealed)] ^= value
    results = []
    for lane in (False, True):
        one = running(wide=lane, takes=takes)
        out = one.inbound([(ELSEWHERE, Block(bytes(sealed), size))], T)
        flows: dict[bytes, list[bytes]] = {}
        for packet in apart(out.packets):
            flows.setdefault(packet[:2] + packet[12:24] if packet[0] == 0x45 else packet[6:44], []).append(packet)
        results.append((flows, tunnel_of(one).rx_bytes, one.drops, out.events))
    assert results[0] == results[1]


def test_a_block_can_be_gone_through() -> None:
    block = Block(b"aabbc", 2)
    assert list(block) == [b"aa", b"bb", b"c"]
    assert (len(block), block[1], block[1:]) == (3, b"bb", [b"bb", b"c"])
    assert block == [b"aa", b"bb", b"c"]
    assert block != [b"aa"]
    assert repr(block) == "Block(3 x 2)"


def test_sealing_in_place_is_what_the_cipher_does_elsewhere() -> None:
    """Nothing promises that a place may be its own: this does."""
    session, far = new_session(), bytearray(b"x" * 100 + bytes(16))
    sealed = theirs(0, b"x" * 100)[16:]
    view = memoryview(far)
    session.encrypt_into(bytes(12), view[:100], None, view)
    assert ours(b"\4\0\0\0" + INDEX.to_bytes(4, "little") + bytes(8) + bytes(far)) == b"x" * 100
    place = memoryview(bytearray(sealed))
    session.decrypt_into(bytes(12), place, None, place[:100])
    assert bytes(place[:100]) == b"x" * 100
    place[0] ^= 1
    with pytest.raises(InvalidTag):
        session.decrypt_into(bytes(12), place, None, place[:100])
