"""What a compiled kernel makes of the OS's packets is what the plain one makes of them, byte for byte."""

import random
from dataclasses import replace
from unittest import mock

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.given import LONE, addressed, frame_of, item, items
from tests.proto.kernel.visits import PEERS, PLACES, Both, keys_of
from tests.proto.packets.flows import UDP, Shape, supers

from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.packets import virtio
from stagewire.proto.worker import Worker

pytest.importorskip("stagewire.proto.kernel.sealing")


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.lists(items(), max_size=12), min_size=1, max_size=3), max_size=3),
    st.sampled_from([1420, 0, 1411, 65475]),
)
def test_both_kernels_seal_the_same(visits: list[list[list[bytes]]], mtu: int) -> None:
    both = Both(mtu=mtu)
    for visit in visits:
        both.plain_in(*map(frame_of, visit))


@pytest.mark.parametrize(
    ("first", "taken"), [*((each, True) for each in (0, 60)), *((each, False) for each in (6, 43, 44, 51, 58, 59))]
)
def test_a_super_packet_behind_another_header_is_judged_the_same(first: int, taken: bool) -> None:
    """One that said ICMPv6 there once overtook an ICMPv6 packet in the compiled kernel alone."""
    header, packet = Shape(version=6, payload=bytes(1200), size=400).as_read()
    packet = addressed(packet, 1)
    packet = (
        packet[:4] + (len(packet) - 32).to_bytes(2) + bytes([first]) + packet[7:40] + b"\6\0" + bytes(6) + packet[40:]
    )
    said = virtio.unpack_untrusted(header, len(packet))._replace(csum_start=48)
    lone = addressed(byhand.v6("fd00::1", after=58), 1)
    both = Both()
    both.plain_in(frame_of([item(virtio.NONE, lone), item(said.pack(), packet)]))
    assert bool(both.compiled.counters["outbound_malformed"]) != taken


@settings(max_examples=40)
@given(st.lists(st.tuples(supers(most=60) | LONE, st.integers(0, PEERS - 1)), min_size=1, max_size=14))
def test_ordinary_trains_are_the_same_frames(shapes: list[tuple[Shape, int]]) -> None:
    both = Both()
    found = both.same_frames(
        frame_of([item(shape.as_read()[0], addressed(shape.as_read()[1], peer)) for shape, peer in shapes])
    )
    assert found.to_conn


@settings(max_examples=40)
@given(
    st.lists(items(), max_size=6),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
    st.integers(0, 200),
)
def test_a_damaged_frame_is_judged_the_same(inside: list[bytes], damage: list[tuple[int, int]], cut: int) -> None:
    frame = bytearray(frame_of(inside))
    for at, value in damage:
        frame[at % len(frame)] = value
    both = Both()
    both.plain_in(bytes(frame))
    both.plain_in(bytes(frame[:-cut]) if cut else bytes(frame) + b"\0")


@pytest.mark.parametrize("stamp", [T - 0.24, T - 0.26, T + 5, float("nan"), float("inf")])
def test_a_trains_age(stamp: float) -> None:
    Both().plain_in(frame_of([item(virtio.NONE, byhand.v4("10.1.0.1"))], stamp))


def test_every_packet_has_its_own_counter_whatever_goes_back() -> None:
    """Packets of a tunnel go back to Python, with all of their peer's; none seals under a counter twice."""
    tunnelled = Shape(protocol=UDP, payload=b"\4\0\0\0" + bytes(40), size=44).packet()
    data = Shape(size=500, payload=bytes(5000)).as_read()
    both = Both()
    frame = frame_of([item(*data), item(virtio.NONE, tunnelled), item(*data), item(data[0], addressed(data[1], 1))])
    counters: dict[bytes, list[int]] = {}
    for _ in range(3):
        for datagrams in both.plain_in(frame, frame).runs().values():
            for datagram in datagrams:
                counters.setdefault(datagram[4:8], []).append(int.from_bytes(datagram[8:16], "little"))
    for found in counters.values():
        assert sorted(found) == list(range(1, 1 + len(found)))


def test_counters_that_run_out_end_sealing() -> None:
    both = Both()
    for side in (both.plain, both.compiled):
        for _, session in side.worker.sessions():
            session.send_counter = c.REJECT_AFTER_MESSAGES - 15
    data = Shape(size=500, payload=bytes(5000)).as_read()
    frame = frame_of([item(data[0], addressed(data[1], 1))])
    assert [len(run) for run in both.plain_in(frame).runs().values()] == [10]
    assert [len(run) for run in both.plain_in(frame).runs().values()] == [5]
    assert both.plain_in(frame).runs() == {}


def test_no_session_no_endpoint_and_an_old_session_go_back() -> None:
    data = Shape(size=500, payload=bytes(5000)).as_read()
    frame = frame_of([item(data[0], addressed(data[1], peer)) for peer in range(3)])
    both = Both()
    for side in (both.plain, both.compiled):
        side.worker.owners.tunnels()[1].endpoint = None
        side.worker.owners.tunnels()[2].end(side.worker.outbound([], T))
    assert set(both.plain_in(frame).runs()) == {PLACES[0]}
    assert not Both(created=T - 180).plain_in(frame).to_conn
    assert not Both(initiators=()).plain_in(frame).to_conn


def test_more_than_a_frame_holds_is_cut_into_frames() -> None:
    data = Shape(size=1368, payload=random.Random(1).randbytes(60000), options=bytes(12)).as_read()
    both = Both()
    visit = both.same_frames(frame_of([item(data[0], addressed(data[1], peer)) for peer in (0, 1)]))
    assert len(visit.to_conn) == 1
    more = [frame_of([item(data[0], addressed(data[1], peer)) for peer in peers]) for peers in ((0,), (1, 2))]
    assert len(both.same_frames(*more).to_conn) == 2
    tiny = Shape(size=1, payload=bytes(60000)).as_read()
    both.plain_in(frame_of([item(*tiny)]))


def test_a_peer_with_more_than_a_frame_holds_is_sealed_in_several_frames() -> None:
    """A fast stream fills two trains of 120 KB in one visit, which Python would seal ten times as slowly."""
    data = Shape(size=1368, payload=random.Random(1).randbytes(60000), options=bytes(12)).as_read()
    both = Both()
    lone = addressed(Shape(payload=b"x" * 20).packet(), 2)
    full = frame_of([item(*data), item(*data)])
    with mock.patch.object(Worker, "_outbound", autospec=True, side_effect=Worker._outbound) as plainly:
        visit = both.same_frames(frame_of([item(virtio.NONE, lone)]), frame_of([item(*data)]), full, full)
    assert plainly.called
    assert not any(call.args[0] is both.compiled.worker for call in plainly.call_args_list)
    assert len(visit.to_conn) > 2


def test_what_is_sealed_is_what_was_read_even_if_it_changes() -> None:
    """A packet in memory that changes harms itself alone: its destination is the one that was judged."""
    both = Both()
    sealing = both.compiled.worker.sealing
    assert sealing is not None
    shapes = [
        Shape(size=50, payload=bytes(400)),
        Shape(protocol=UDP, size=50, payload=bytes(400)),
        Shape(payload=b"x" * 20),
    ]
    rng = random.Random(3)
    for _ in range(200):
        items_ = [item(shape.as_read()[0], addressed(shape.as_read()[1], 1)) for shape in shapes]
        memory = bytearray(frame_of(items_))
        kept = bytes(memory)
        assert sealing.add(memory, 0, len(memory), T, trains.MAX_AGE)
        for at in rng.sample(range(len(memory)), 40):
            memory[at] = rng.randrange(256)
        out = both.compiled.worker.seal([], T)
        (train,) = out.sealed
        ((place, block),) = trains.unpack_cipher_untrusted(bytes(train[0]), T)[:1]
        assert place == PLACES[1]
        cipher = ChaCha20Poly1305(keys_of(1)[0])
        for _, run in trains.unpack_cipher_untrusted(bytes(train[0]), T):
            for datagram in run:
                inner = cipher.decrypt(bytes(4) + datagram[8:16], datagram[16:], None)
                assert inner[12:20] == kept[16 + 14 + 12 : 16 + 14 + 20]
        assert len(block)


def test_an_empty_train_leaves_nothing_behind() -> None:
    """Neither its age, which a later visit's packets would get, nor a hold on its memory."""
    both, empty = Both(), bytearray(frame_of([], T - 0.2))
    sealing = both.compiled.worker.sealing
    assert sealing is not None
    assert sealing.add(empty, 0, len(empty), T, trains.MAX_AGE)
    empty.clear()
    lone, old = frame_of([item(virtio.NONE, byhand.v4("10.1.0.1"))]), frame_of([], T - 0.2)
    for frames in ((lone,), (old, lone), (old,), (lone, old)):
        assert [trains.born_of(frame, 0) for frame in both.same_frames(*frames).to_conn] == [T] * (lone in frames)


def test_an_acknowledgement_does_not_cut_other_flows_data() -> None:
    data = Shape(size=1368, payload=bytes(4 * 1368), options=bytes(12))
    lone = Shape(port=100, options=bytes(12))
    wholes = [item(*replace(data, port=port).as_read()) for port in range(6)]
    found = Both().same_frames(frame_of([wholes[0], item(virtio.NONE, lone.packet()), *wholes[1:]]))
    (frame,) = found.to_conn
    assert [len(block) for _, block in trains.unpack_cipher_untrusted(frame, T)] == [25]


def test_a_group_that_must_go_back_is_not_sealed() -> None:
    sealing = Both().compiled.worker.sealing
    assert sealing is not None
    frame = frame_of([item(virtio.NONE, Shape(protocol=UDP, payload=b"\4\0\0\0" + bytes(40), size=44).packet())])
    assert sealing.add(frame, 0, len(frame), T, 1.0)
    session = Both().compiled.worker.sessions()[0][1]
    with pytest.raises(ValueError, match="must go back"):
        sealing.seal(0, session.sender, 1, 1, PLACES[0])
    with pytest.raises(IndexError):
        sealing.ordinary(1)
    sealing.clear()
    assert sealing.items == 0
