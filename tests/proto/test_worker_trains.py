"""What the plain kernel does with super-packets and with runs: packets, counters, drops and judgements."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto.byhand import ELSEWHERE, PEER, PLACE, T, facts, new_session, ours, theirs, tunnel_of
from tests.proto.packets.flows import TCP, UDP, Shape, apart, supers, whole

from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.events import EndpointMoved
from stagewire.proto.packets import ip, merge, split
from stagewire.proto.packets.block import Block
from stagewire.proto.tunnel import TunnelSettings
from stagewire.proto.worker import Worker

BOTH = merge.TAKES_TCP | merge.TAKES_UDP


def running(*, takes: int = 0, mtu: int = 1420, created: float = T) -> Worker:
    """Everybody is behind PEER, and there is a session."""
    one = Worker(lambda: 0.1)
    one.takes = takes
    one.set_settings(TunnelSettings(mtu=mtu))
    one.set_peer(facts(PEER, "10.0.0.0/8", "fd00::/8"), T)
    assert one.install(PEER, new_session(created=created), PLACE, T) is not None
    return one


def sent(runs: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[bytes]:
    return [datagram for _, datagrams in runs for datagram in datagrams]


def run_of(packets: Sequence[bytes], first: int = 0) -> Block:
    """As it would be received: padded, sealed by the peer, all of one size but the last."""
    sealed = [theirs(first + at, packet + bytes(-len(packet) % 16)) for at, packet in enumerate(packets)]
    assert all(len(datagram) == len(sealed[0]) for datagram in sealed[:-1])
    return Block(b"".join(sealed), len(sealed[0]))


# --- sealing -----------------------------------------------------------------------------------------------


LONE = st.builds(lambda host, port: Shape(payload=b"alone", size=9, host=host, port=port), *[st.integers(0, 3)] * 2)


def by_flow(packets: Sequence[bytes]) -> dict[bytes | None, list[bytes]]:
    """In the order of each; those of which it can't be told are of all of them."""
    found: dict[bytes | None, list[bytes]] = {ip.flow(packet): [] for packet in packets}
    for packet in packets:
        found[ip.flow(packet)].append(packet)
    return found


@settings(max_examples=60)
@given(st.lists(supers(most=100) | LONE, min_size=1, max_size=8))
def test_each_packet_is_sealed_once_in_its_flows_order(shapes: list[Shape]) -> None:
    items = [split.open_untrusted(*shape.as_read()) for shape in shapes]
    expected = [
        packet.ljust(len(packet) + min(-len(packet) % 16, max(0, 1420 - len(packet))), b"\0")
        for shape in shapes
        for packet in (shape.train() if shape.size < len(shape.payload) else [shape.packet()])
    ]
    datagrams = sent(running().outbound(items, T).runs)
    counters = [int.from_bytes(datagram[8:16], "little") for datagram in datagrams]
    assert counters == list(range(1, 1 + len(datagrams)))  # 0 was the packet that confirmed the session
    assert by_flow([ours(datagram) for datagram in datagrams]) == by_flow(expected)


def test_acknowledgements_do_not_cut_other_flows_data() -> None:
    data = [whole(Shape(size=1368, payload=bytes(4 * 1368), options=bytes(12), port=port)) for port in range(6)]
    other, own = (Shape(port=port, options=bytes(12)).packet() for port in (100, 3))
    fragment = other[:6] + b"\x20\x05" + other[8:]
    for between, lengths, places in (
        ([other, other], [25, 1], [24, 25]),
        ([own], [13, 12], [12]),
        ([fragment], [5, 20], [4]),  # of whatever flow it is
    ):
        frame = trains.pack_cipher(running().outbound([data[0], *between, *data[1:]], T).runs, T)
        runs = [run for _, run in trains.unpack_cipher_untrusted(frame, T)]
        assert [len(run) for run in runs] == lengths
        opened = [ours(datagram) for run in runs for datagram in run]
        assert [at for at, packet in enumerate(opened) if len(packet) < 100] == places


def test_an_acknowledgement_ends_the_run_before_it_on_the_wire() -> None:
    data = whole(Shape(size=1368, payload=bytes(40 * 1368), options=bytes(12)))
    acknowledgements = [Shape(port=port, options=bytes(12)).packet() for port in (100, 101)]
    out = running().outbound([data, *acknowledgements], T)
    frame = trains.pack_cipher(out.runs, T)
    blocks = [block for _, block in trains.unpack_cipher_untrusted(frame, T)]
    assert [(len(block), block.size) for block in blocks] == [(41, 1452), (1, 96)]
    assert [ours(datagram)[:52] for block in blocks for datagram in block][40:] == acknowledgements


def test_counters_that_run_out_leave_the_rest_staged() -> None:
    one = running()
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


def test_super_packets_wait_as_packets() -> None:
    one = Worker(lambda: 0.1)
    one.set_peer(facts(PEER, "10.0.0.0/8"), T)
    shape = Shape(payload=bytes(20000))
    assert not one.outbound([whole(shape)], T).runs
    assert len(tunnel_of(one).staged) == len(shape.train()[-128:])
    out = one.install(PEER, new_session(), PLACE, T)
    assert out is not None
    assert [ours(datagram)[:140] for datagram in sent(out.runs)] == shape.train()[-128:]


def test_nobodys_super_packet_is_answered_once() -> None:
    one = running()
    header, packet = Shape(payload=bytes(1000)).as_read()
    stray = split.open_untrusted(header, packet[:16] + bytes([192, 0, 2, 1]) + packet[20:])
    out = one.outbound([stray], T)
    (answer,) = out.packets
    assert isinstance(answer, bytes)
    assert (answer[9], answer[20], answer[28:30]) == (1, 3, b"\x45\0")
    assert one.drops == {"no_peer": 10}


# --- opening -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes", [0, BOTH])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_run_comes_out_as_it_went_in(takes: int, version: int, protocol: int) -> None:
    one = running(takes=takes)
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


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_run_may_end_with_something_else(version: int, end: Shape) -> None:
    """It stays a packet: an acknowledgement may repeat another one, and says something by that."""
    one = running(takes=BOTH)
    data, last = replace(DATA, version=version).train(), replace(end, version=version).packet()
    out = one.inbound([(PLACE, run_of([*data, last]))], T)
    assert apart(out.packets) == [*data, last]
    assert len(out.packets) == 2


@pytest.mark.parametrize("length", [20, 32, 40, 48, 59, 60])
@pytest.mark.parametrize(
    "front", [b"\x45" + bytes(8) + b"\x06", b"\x45" + bytes(8) + b"\x11", b"\x60" + bytes(5) + b"\x06"]
)
def test_headers_that_are_cut_short_harm_nobody(length: int, front: bytes) -> None:
    one = running(takes=BOTH)
    packet = front.ljust(length, b"\0")
    block = Block(b"".join(theirs(at, packet) for at in range(10)), length + 32)
    assert one.inbound([(PLACE, block)], T).packets == []
    assert sum(one.drops.values()) == 10


def changed(block: Block, at: int, by: int = 1) -> Block:
    data = bytearray(block.data)
    data[at] ^= by
    return Block(bytes(data), block.size)


@pytest.mark.parametrize("takes", [0, BOTH])
@pytest.mark.parametrize("bad", [[0], [5], [19], [0, 1, 2, 18, 19], list(range(20))])
def test_what_is_not_authentic_is_counted_and_the_rest_comes(takes: int, bad: list[int]) -> None:
    one = running(takes=takes)
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


def test_a_run_for_several_sessions_or_none_is_told_apart() -> None:
    one = running(takes=BOTH)
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


@pytest.mark.parametrize("at", range(4))
def test_the_type_is_checked_in_a_run_too(at: int) -> None:
    one = running()
    block = run_of(Shape(payload=bytes(2000)).train())
    assert len(one.inbound([(PLACE, changed(block, 7 * block.size + at))], T).packets) == 19
    assert one.drops == {"unknown_receiver": 1}


@pytest.mark.parametrize("takes", [0, BOTH])
def test_a_source_that_is_not_the_peers_is_refused(takes: int) -> None:
    one = running(takes=takes)
    one.set_peer(facts(b"O" * 32, "10.0.0.3/32"), T)
    trains = [Shape(payload=bytes(1000), host=host).train() for host in (1, 3)]
    packets = [packet for pair in zip(*trains, strict=True) for packet in pair]
    out = one.inbound([(PLACE, run_of(packets))], T)
    assert apart(out.packets) == trains[0]
    assert one.drops == {"inner_source_not_allowed": 10}


def test_an_old_session_opens_no_run() -> None:
    one = running()
    block = run_of(Shape(payload=bytes(2000)).train())
    assert one.inbound([(PLACE, block)], T + 180).packets == []
    assert one.drops == {"session_expired": 20}


@pytest.mark.parametrize("takes", [0, BOTH])
def test_padding_that_is_not_zeros_harms_nobody(takes: int) -> None:
    one = running(takes=takes)
    train = Shape(payload=bytes(1000)).train()
    block = run_of([packet + b"\xff" * (-len(packet) % 16) for packet in train])
    assert apart(one.inbound([(PLACE, block)], T).packets) == train


def test_malformed_packets_and_keepalives_in_a_run() -> None:
    one = running(takes=BOTH)
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
