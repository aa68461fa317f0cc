"""What a compiled kernel opens is what the plain one opens, byte for byte, with the same refusals."""

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.visits import PEERS, PLACES, Both, index_of, theirs
from tests.proto.packets.flows import ACK, PSH, TCP, UDP, Shape, supers

from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.events import EndpointMoved, SessionConfirmed
from stagewire.proto.packets.merge import Merged

Opening = pytest.importorskip("stagewire.proto.kernel.opening").Opening

Run = tuple[bytes, list[bytes]]


def frame_of(runs: Sequence[Run], stamp: float = T) -> bytes:
    """Packs runs as conn-service does; each datagram but the last of a run has the first one's size."""
    parts = []
    for place, datagrams in runs:
        data = b"".join(datagrams)
        parts += [trains.RUN.pack(place, len(datagrams[0]), len(data)), data]
    return trains.HEADER.pack(trains.VERSION, trains.CIPHER, 0, len(runs), stamp) + b"".join(parts)


def sourced(shape: Shape, peer: int) -> Shape:
    """Lets a shape come from a peer: 10.0.0.N or fd00::N."""
    return replace(shape, host=peer)


LONE = st.builds(
    lambda protocol, version, size, port, flags, host: Shape(
        version, protocol, payload=bytes(size), size=size + 1, port=port, flags=flags, host=host
    ),
    st.sampled_from([TCP, UDP]), st.sampled_from([4, 6]), st.integers(0, 300), st.integers(0, 2),
    st.sampled_from([ACK, ACK | PSH, 2]), st.sampled_from([0, 1, 2, 77, 9]),
)  # fmt: skip
ODD = st.sampled_from([
    b"", b"\x45" * 19, b"\x60" * 39, bytes(60), b"\x45\0\xff\xff".ljust(80, b"\0"), byhand.v4("10.0.0.1", size=20),
    byhand.v4("10.0.0.2", size=24), byhand.v6("fd00::1"), byhand.v6("fd00::2", after=0, payload=0), b"\x15" * 60,
    b"\x46" + byhand.v4("10.0.0.1")[1:], byhand.v6("fd00::1", payload=8, after=17), byhand.v4("10.0.0.1", size=21),
])  # fmt: skip


@st.composite
def inners(draw: st.DrawFn) -> list[bytes]:
    """Packets of one peer as they are sealed: some flows, mixed, padded, some of them spoilt."""
    found: list[list[bytes]] = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 4)) == 0:
            found.append([draw(ODD)])
        elif draw(st.booleans()):
            found.append([draw(LONE).packet()])
        else:
            flags = st.sampled_from([ACK, ACK | PSH, 17])
            found.append(draw(supers(flags, most=8)).train())
    order = draw(st.randoms(use_true_random=False))
    packets = []
    while found:
        packets.append(order.choice(found).pop(0))
        found = [each for each in found if each]
    if draw(st.integers(0, 4)) == 0:
        spoilt = bytearray(packets[-1])
        if spoilt:
            spoilt[draw(st.integers(0, len(spoilt) - 1))] ^= draw(st.integers(1, 255))
            packets[-1] = bytes(spoilt)
    padding = draw(st.sampled_from([b"\0", b"\0", b"\xff"]))
    return [packet + padding * (-len(packet) % 16) for packet in packets]


@st.composite
def visits(draw: st.DrawFn) -> list[list[list[Run]]]:
    """Visits of frames of runs, with counters that mostly count up."""
    counters = dict.fromkeys(range(PEERS), 0)
    made = []
    for _ in range(draw(st.integers(1, 3))):
        frames = []
        for _ in range(draw(st.integers(1, 2))):
            runs: list[Run] = []
            for _ in range(draw(st.integers(1, 3))):
                peer, place = draw(st.integers(0, PEERS - 1)), PLACES[draw(st.integers(0, PEERS))]
                datagrams = []
                for inner in draw(inners()):
                    counters[peer] += draw(st.sampled_from([1, 1, 1, 1, 0, 2, 9000]))
                    counter = max(0, counters[peer] - draw(st.sampled_from([0, 0, 0, 5, 8128, 8129])))
                    datagrams.append(theirs(peer, counter, inner, draw(st.sampled_from([index_of(peer)] * 9 + [7]))))
                if draw(st.integers(0, 4)) == 0:
                    spoilt = bytearray(datagrams[-1])
                    spoilt[draw(st.integers(0, len(spoilt) - 1))] ^= draw(st.integers(1, 255))
                    datagrams[-1] = bytes(spoilt[: draw(st.sampled_from([len(spoilt), 40, 31, 15, 7, 1]))])
                runs += [(place, list(run)) for _, run in trains._runs(datagrams)]
            frames.append(runs)
        made.append(frames)
    return made


@settings(max_examples=100)
@given(visits(), st.integers(0, 3), st.sampled_from([(), (0, 1, 2)]))
def test_both_kernels_open_the_same(made: list[list[list[Run]]], takes: int, initiators: tuple[int, ...]) -> None:
    both = Both(initiators=initiators)
    for side in (both.plain, both.compiled):
        side.worker.takes = takes
    for frames in made:
        both.cipher_in(*map(frame_of, frames))


@settings(max_examples=60)
@given(
    st.lists(st.lists(supers(st.sampled_from([16, 24, 17]), most=6), min_size=1, max_size=8), min_size=1, max_size=2),
    st.randoms(use_true_random=False),
    st.integers(0, 3),
)
def test_flows_side_by_side_are_merged_the_same(trains_: list[list[Shape]], order: random.Random, takes: int) -> None:
    both = Both()
    for side in (both.plain, both.compiled):
        side.worker.takes = takes
    counter = 0
    for shapes in trains_:
        waiting = [replace(shape, size=20, payload=shape.payload[:100], host=0).train() for shape in shapes]
        datagrams = []
        while waiting:
            packet = order.choice(waiting).pop(0)
            datagrams.append(theirs(0, counter, packet + bytes(-len(packet) % 16)))
            counter += 1
            waiting = [train for train in waiting if train]
        both.cipher_in(frame_of([(PLACES[0], list(run)) for _, run in trains._runs(datagrams)]))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_a_damaged_frame_is_judged_the_same(damage: list[tuple[int, int]], cut: int) -> None:
    runs = [(PLACES[peer], [theirs(peer, at, byhand.v4(f"10.0.0.{peer}")) for at in range(3)]) for peer in range(3)]
    frame = bytearray(frame_of(runs))
    for at, value in damage:
        frame[at % len(frame)] = value
    both = Both()
    both.cipher_in(bytes(frame))
    both.cipher_in(bytes(frame[:-cut]) if cut else bytes(frame) + b"\0")


@pytest.mark.parametrize("stamp", [T - 0.24, T - 0.26, T + 5, float("nan"), float("inf")])
def test_a_trains_age(stamp: float) -> None:
    Both().cipher_in(frame_of([(PLACES[0], [theirs(0, 0, byhand.v4("10.0.0.0"))])], stamp))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_run_of_one_flow_is_one_super_packet(version: int, protocol: int) -> None:
    shape = Shape(version, protocol, size=1200, payload=random.Random(1).randbytes(40 * 1200 - 7), host=2)
    datagrams = [theirs(2, at, packet + bytes(-len(packet) % 16)) for at, packet in enumerate(shape.train())]
    found = Both().cipher_in(frame_of([(PLACES[2], list(run)) for _, run in trains._runs(datagrams)]))
    ((whole,),) = (trains.unpack_plain_untrusted(frame, T) for frame in found.to_tun)
    assert isinstance(whole, Merged)
    assert whole.segments == 40


def test_a_replay_and_a_forged_counter_change_nothing() -> None:
    both = Both()
    good = [theirs(1, at, byhand.v4("10.0.0.1")) for at in range(3)]
    forged = bytearray(theirs(1, 2**40, byhand.v4("10.0.0.1")))
    forged[-1] ^= 1
    assert both.cipher_in(frame_of([(PLACES[3], [bytes(forged)])])).said == []
    assert both.cipher_in(frame_of([(PLACES[3], good)])).said == [EndpointMoved(b"B" * 32, PLACES[3], 0.0)]
    assert both.cipher_in(frame_of([(PLACES[0], good)])).to_tun == []
    assert both.compiled.counters == {"transport_not_authentic": 1, "replayed": 3}
    edge = c.REJECT_AFTER_MESSAGES
    both.cipher_in(frame_of([(PLACES[3], [theirs(1, edge, b""), theirs(1, edge - 1, b""), theirs(1, edge, b"")])]))
    assert both.compiled.counters["replayed"] == 5


def test_the_first_packet_confirms_a_session_and_lets_staged_packets_go() -> None:
    both = Both(initiators=())
    waiting = byhand.v4("10.1.0.1", "10.9.1.7")
    for side in (both.plain, both.compiled):
        side.worker.outbound([waiting], T)
    found = both.cipher_in(frame_of([(PLACES[1], [theirs(1, 0, b"")])]))
    assert [byhand_length(run) for run in found.runs().values()] == [[96]]
    assert SessionConfirmed(b"B" * 32, index_of(1)) in found.said


def byhand_length(datagrams: Sequence[bytes]) -> list[int]:
    return [len(datagram) for datagram in datagrams]


def test_an_old_session_opens_nothing() -> None:
    both = Both(created=T - 180)
    assert both.cipher_in(frame_of([(PLACES[1], [theirs(1, 0, byhand.v4("10.0.0.1"))])])).to_tun == []
    assert both.compiled.counters == {"session_expired": 1}


def test_what_is_opened_is_what_was_read_even_if_it_changes() -> None:
    both = Both()
    opening = both.compiled.worker.opening
    assert opening is not None
    memory = bytearray(frame_of([(PLACES[1], [theirs(1, 0, byhand.v4("10.0.0.1"))])]))
    assert opening.add(memory, 0, len(memory), T, 1.0)
    memory[:] = bytes(len(memory))
    assert len(both.compiled.worker.open([], T).opened) == 1


def test_an_empty_train_has_no_age() -> None:
    """A later visit's packets would get it, and be dropped as too old."""
    both, old = Both(), frame_of([], T - 0.2)
    for counter, before in enumerate(((), (old,), ())):
        lone = frame_of([(PLACES[1], [theirs(1, counter, byhand.v4("10.0.0.1"))])])
        (frame,) = both.cipher_in(*before, lone, old).to_tun
        assert trains.born_of(frame, 0) == T


def test_more_than_its_memory_holds_is_left_to_python() -> None:
    opening = Both().compiled.worker.opening
    assert opening is not None
    frame = frame_of([(PLACES[1], [bytes(60_000)])])
    taken = 0
    while opening.add(frame, 0, len(frame), T, 1.0):
        taken += 1
    assert taken == 8
    assert opening.runs == 8


@pytest.mark.parametrize(
    "known", [None, [1, 2], (1, SimpleNamespace(expired=lambda _: False, receiver=None, window=None))]
)
def test_a_table_of_anything_but_sessions_is_an_error_of_ours(known: object) -> None:
    datagram = theirs(1, 0, b"")
    opening = Opening({}.get, {}, {datagram[:8]: known})
    frame = frame_of([(PLACES[1], [datagram])])
    assert opening.add(frame, 0, len(frame), T, 1.0)
    with pytest.raises((TypeError, AttributeError)):
        opening.open(T)
