"""The compiled half of conn-service receives and sends what Python does, run by run, on real sockets."""

import math
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linux.udp_sides import HOSTS, Far, Side, opened

from conn_service import udp
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto.endpoint import Endpoint, place_of, with_limit
from stagewire.reasons import Incident, shown

compiled = pytest.importorskip("stagewire.linux.udp_trains")
SOL_UDP, UDP_SEGMENT = 17, 103


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def transport(worker: int, size: int, fill: int = 0) -> bytes:
    return (b"\4\0\0\0" + bytes([worker, 1, 2, 3]) + bytes([fill]) * size)[:size]


DATAGRAMS = st.one_of(
    st.builds(transport, st.integers(0, 1), st.integers(32, 1452), st.integers(0, 255)),
    st.builds(transport, st.sampled_from([0, 1, 9]), st.sampled_from([32, 100, 1452]), st.integers(0, 255)),
    st.builds(lambda kind, size: bytes([kind, 0, 0, 0]) + bytes(size), st.integers(0, 255), st.integers(0, 150)),
    st.sampled_from([b"", b"\4", transport(0, 31), b"\4\0\0\1" + bytes(60)]),
)
RUNS = st.tuples(st.lists(DATAGRAMS, min_size=1, max_size=12), st.booleans(), st.integers(0, 1), st.integers(0, 2))


def arrive(side: Side, peers: Sequence[Sequence[socket.socket]], runs: list[Any]) -> None:
    for datagrams, whole, number, peer in runs:
        target = side.sockets.all[number].getsockname()
        size = max(1, len(datagrams[0]))
        if whole and all(len(each) == size for each in datagrams[:-1]) and 0 < len(datagrams[-1]) <= size < 1400:
            note = (SOL_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))
            peers[number][peer].sendmsg([b"".join(datagrams)], [note], 0, target)
        else:
            for datagram in datagrams:
                peers[number][peer].sendto(datagram, target)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(RUNS, min_size=1, max_size=12), min_size=1, max_size=3))
def test_both_receive_the_same(visits: list[list[Any]]) -> None:
    with ExitStack() as stack:
        sides = [Side(None, stack), Side(compiled, stack)]
        peers = [[stack.enter_context(opened(family)) for _ in range(3)] for family in HOSTS]
        for at, runs in enumerate(visits):
            for side in sides:
                arrive(side, peers, runs)
                side.receive(0, 1000.0 + at)
                side.receive(1, 1000.5 + at)
        assert sides[1].state() == sides[0].state()


@pytest.mark.parametrize("size", [1452, 100])
def test_more_than_a_train_holds_arrives_whole_and_in_order(stack: ExitStack, size: int) -> None:
    """Short datagrams are taken many at once; the long runs behind them overfill the train, which is sent before."""
    sides = [Side(None, stack), Side(compiled, stack)]
    peers = [[stack.enter_context(opened(family)) for _ in range(3)] for family in HOSTS]
    runs = [([transport(number % 2, size, number % 250)], False, 0, number % 3) for number in range(300)]
    runs += [([transport(number % 2, 1300, number)] * 48, True, 0, number % 3) for number in range(40)]
    for side in sides:
        arrive(side, peers, runs)
        side.receive(0)
    assert sides[1].state() == sides[0].state()
    assert sum(map(len, sides[1].sent)) == 300 + 40 * 48


def test_what_waited_too_long_is_dropped_and_a_handshake_is_not(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = [Side(None, stack), Side(compiled, stack)]
    peers = [[stack.enter_context(opened(family)) for _ in range(3)] for family in HOSTS]
    late = [
        ([transport(0, 60), transport(1, 60), b"\1" + bytes(40)], whole, number, 0)
        for whole in (True, False)
        for number in (0, 1)
    ]
    later = time.time() + 1
    for side in sides:
        side.sockets.begun = 0.0
        arrive(side, peers, late)
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: later)
            patched.setattr(udp, "boot_time", lambda: boot_time() + 1)  # both clocks go on, so none has jumped
            side.receive(0)
            side.receive(1)
        side.sockets.begun = math.inf
        arrive(side, peers, late)
        side.receive(0, 1001.0)
        side.receive(1, 1002.0)
    told = (state := sides[1].state())[3]
    assert state == sides[0].state()
    assert sides[1].counters["datagram_too_old"] == 8
    [four, six] = [each for each in told if each.reason == "datagram_too_old"]
    assert [(each.size, each.count) for each in (four, six)] == [(60, 4), (60, 4)]
    assert [shown(each.place).rpartition(":")[0] for each in (four, six)] == ["127.0.0.1", "[::1]"]
    assert len(sides[1].messages) == 8


def train_of(runs: Sequence[tuple[bytes, list[bytes]]], stamp: float) -> bytes:
    return trains.pack_cipher(runs, stamp)


SENT = st.tuples(
    st.integers(0, 7),
    st.sampled_from([0, 0, 0, 48]),
    st.tuples(st.integers(1, 9), st.integers(1, 1400), st.integers(1, 1400)),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(SENT, max_size=30), min_size=1, max_size=3),
    # In the train's header, and in the sizes of its first run.
    st.lists(st.tuples(st.sampled_from([0, 1, 4, 5, 60, 61, 64, 65, 67]), st.integers(0, 255)), max_size=2),
    st.integers(0, 60),
)
def test_both_send_the_same(visits: list[list[Any]], damage: list[tuple[int, int]], cut: int) -> None:
    with ExitStack() as stack:
        far = Far(stack)
        # Of no family, of an address that no route leads to, and from a source that isn't ours.
        foreign = Endpoint(socket.inet_aton("127.0.0.1"), 9, 0, socket.inet_aton("192.0.2.77")).pack()
        places = [*far.places, b"\7" + bytes(43), Endpoint(bytes(16), 0).pack(), foreign, far.places[0]]
        found = []
        for side in (Side(None, stack), Side(compiled, stack)):
            now = boot_time()
            for visit in visits:
                runs = [
                    (
                        with_limit(places[to], limit),
                        [bytes([to]) * size] * (count - 1) + [bytes([to]) * min(size, last)],
                    )
                    for to, limit, (count, size, last) in visit
                ]
                frame = bytearray(train_of(runs, now))
                for data in (bytes(frame), trains.pack_mark(0, 3, now)):
                    side.outbound._on_cipher_out([(b"\1" + data + b"\2", 1, 1 + len(data))], now)
            for at, value in damage if visits[-1] else ():
                frame[at] = value
            frame[:] = frame[: len(frame) - cut]
            side.outbound._on_cipher_out([(bytes(frame), 0, len(frame))], now)
            found.append((far.took(), side.state()))
        assert found[1] == found[0]


def test_a_train_for_many_peers_is_one_call_and_a_full_socket_keeps_the_rest(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, side = Far(stack), Side(compiled, stack)
    now = boot_time()
    runs = [(far.places[number % 2 * 2], [bytes([number]) * 60] * 2) for number in range(50)]
    frame = train_of(runs, now)
    side.outbound._on_cipher_out([(frame, 0, len(frame))], now)  # learns the ways
    writer = side.outbound._writer
    assert writer.take(frame, 0, len(frame), now, 1.0)
    assert writer.send(True, {}) == (100, None)
    assert sum(map(len, far.took())) == 200
    # Python hears of the first run that the kernel refuses, and keeps all after it.
    side.sockets.ready[far.places[2]] = compiled.Way(-1, 65535, b"", b"")

    def full(*_: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(udp.Sockets, "send_run", full)
    side.outbound._on_cipher_out([(frame, 0, len(frame))], now)
    assert far.took()[0] == [datagram for endpoint, pair in runs if endpoint == far.places[0] for datagram in pair]
    [(endpoint, kept, _)] = side.outbound._blocked
    assert endpoint == far.places[2]
    assert list(kept) == [datagram for place, pair in runs if place == endpoint for datagram in pair]


RUN = st.tuples(
    st.integers(0, 3), st.sampled_from([40, 40, 40, 60, 200]), st.integers(1, 12), st.sampled_from([0, 0, 0, 1])
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(RUN, max_size=8), min_size=1, max_size=3))
def test_trains_of_a_visit_leave_in_order_and_their_runs_joined(visit: list[list[Any]]) -> None:
    with ExitStack() as stack:
        far, side = Far(stack), Side(compiled, stack)
        now, sent = boot_time(), 0
        wanted: list[list[bytes]] = [[] for _ in far.places]
        frames: list[Any] = []
        for at, runs in enumerate([[(to, 40, 1, 0) for to in range(4)], *visit]):
            made = []
            for to, size, count, shorter in runs:
                datagrams = [each.to_bytes(4) + bytes([to]) * (size - 4) for each in range(sent, sent + count)]
                sent += count
                if shorter:
                    datagrams[-1] = datagrams[-1][:20]
                made.append((far.places[to], datagrams))
                wanted[to] += datagrams
            frame = train_of(made, now - at * 0.01)
            frames.append((frame, 0, len(frame)))
        side.outbound._on_cipher_out(frames[:1], now)  # learns the ways
        side.outbound._on_cipher_out(frames[1:], now)
        assert far.took() == wanted
        assert side.counters["datagrams_out"] == sent
        assert not side.counters["runs_in_pieces"]


def test_one_call_sends_a_place_one_run_of_several_trains(stack: ExitStack) -> None:
    far, side = Far(stack), Side(compiled, stack)
    now = boot_time()
    far.sockets[0].setsockopt(SOL_UDP, 104, 1)  # UDP_GRO: it gets whole what was sent as one
    frames = []
    for number in range(3):
        runs = [(far.places[0], [bytes([number]) * 60]), (far.places[2], [bytes([number]) * 60])]
        frames.append(train_of(runs, now))
    writer = side.outbound._writer
    for endpoint in (far.places[0], far.places[2]):
        side.sockets._known(endpoint)
    for frame in frames:
        assert writer.take(frame, 0, len(frame), now, 1.0)
    assert writer.send(True, {}) == (6, None)
    joined = b"".join(bytes([number]) * 60 for number in range(3))
    assert far.took()[0] == [joined]
    # Where the kernel refuses runs to a place, each stays as it was.
    for frame in frames:
        assert writer.take(frame, 0, len(frame), now, 1.0)
    assert writer.send(True, {far.places[0]: 60}) == (6, None)
    assert far.took()[0] == [bytes([number]) * 60 for number in range(3)]


def test_each_run_that_python_sends_has_the_birth_of_its_oldest_train() -> None:
    now, places = boot_time(), [bytes([number]) * 44 for number in range(2)]
    writer = compiled.UdpWriter({})
    for age, place in ((0.0, 0), (0.2, 1), (0.1, 0)):
        frame = train_of([(places[place], [bytes(60)])], now - age)
        assert writer.take(frame, 0, len(frame), now, 1.0)
    first = writer.send(True, {})[1]
    assert (first[0], bytes(first[1]), first[2], round(now - first[3], 3)) == (places[0], bytes(120), 60, 0.1)
    assert [(place, round(now - born, 3)) for place, _, _, born in writer.rest()] == [(places[1], 0.2)]
    assert writer.rest() == []


@pytest.mark.parametrize("module", [compiled, None], ids=["compiled", "Python"])
def test_what_a_full_socket_keeps_grows_no_older_than_250_ms(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """A handshake message is never too old: its own timestamp decides."""
    far, side = Far(stack), Side(module, stack)
    outbound, full = side.outbound, True

    def send_run(sockets: udp.Sockets, block: Any, endpoint: bytes) -> None:
        if full:
            raise BlockingIOError
        really(sockets, block, endpoint)

    really = udp.Sockets.send_run
    monkeypatch.setattr(udp.Sockets, "send_run", send_run)
    if module is not None:
        monkeypatch.setattr(outbound, "_writer", None)
        side.sockets.ready.clear()
        outbound._writer = module.UdpWriter({})  # it knows no way, so Python sends
    born = boot_time()
    for number, age in enumerate((0.0, 0.2)):
        frame = train_of([(far.places[0], [bytes([number]) * 60] * 2)], born - age)
        outbound._on_cipher_out([(frame, 0, len(frame))], born)
    message = trains.pack_handshake(far.places[0], b"handshake", born - 9)
    outbound._on_handshake_out([(message, 0, len(message))], born)
    assert [round(born - since, 3) for _, _, since in outbound._blocked] == [0.0, 0.2, -math.inf]
    outbound._on_room(side.sockets.all[0], born + 0.04)  # still full
    assert len(outbound._blocked) == 3
    full = False
    outbound._on_room(side.sockets.all[0], born + 0.06)
    assert far.took()[0] == [bytes(60)] * 2 + [b"handshake"]
    assert side.counters["train_too_old"] == 2
    told = Incident("train_too_old", b"", place_of(far.places[0]), 60, 2)
    assert told in side.counters.take_changed()
    assert not outbound._blocked


def test_a_room_and_a_way_take_no_more_than_fits() -> None:
    room, place = compiled.CipherRoom(), bytes(44)
    for wrong in ((b"", 1, 1), (place, 0, 1), (place, 1, 0), (place, 70_000, 1), (place, 1, 70_000)):
        with pytest.raises(ValueError, match="no room"):
            room.add(*wrong)
    room.add(place, 65_535, trains.MAX_ITEM)
    with pytest.raises(ValueError, match="no room"):
        room.add(place, 100, 100)
    for name, control in ((bytes(33), b""), (b"", bytes(7)), (b"", bytes(112))):
        with pytest.raises(ValueError, match="no such address"):
            compiled.Way(1, 1, name, control)


@pytest.mark.parametrize("found", [None, 5])
def test_a_builder_that_gives_no_room_and_a_way_that_is_none_are_errors_of_ours(found: object) -> None:
    reader = compiled.UdpReader(lambda _: found, None, None, None)
    with pytest.raises((TypeError, AttributeError)):
        reader.visit(-1, 0, 1, False, 0.0, 0.0)
    place = bytes(44)
    train = trains.pack_cipher([(place, [transport(0, 40)])], 1000.0)
    writer = compiled.UdpWriter({place: found})
    assert writer.take(train, 0, len(train), 1000.0, 1.0)
    with pytest.raises(TypeError):
        writer.send(True, {})
