"""Doors between processes for packets: trains, ZeroMQ's wire protocol, and memory that both ends share."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from tests.fuzz.doors.door import Given, door, only, open_descriptors, piece
from tests.proto.packets.flows import Shape

from stagewire.pipe import trains
from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.inherited import MARKS, MEMORY, PREFIX, SHARER, Pushers
from stagewire.pipe.direct.shared_memory import SLOT, SLOTS, BadMemory, Memory, _mapped_untrusted
from stagewire.pipe.direct.zmtp import BadStream, Stream
from stagewire.pipe.trains import BadTrain
from stagewire.proto.endpoint import LENGTH
from stagewire.proto.kernel.rule import load
from stagewire.proto.packets.merge import Merged

NOW = 1000.0
PIPES = load("", "stagewire.linux.pipe_trains")[0]
PLACE = bytes([4]) + bytes(range(1, LENGTH))


def _trains() -> Iterator[bytes]:
    header, packet = Shape(payload=bytes(300), size=100).as_read()
    yield trains.pack_plain([b"E" * 60], NOW)
    yield trains.pack_plain([b"E" * 60, b"", b"`" * 90, Merged(header, packet, 3)], NOW, takes=3)
    yield trains.pack_plain([b"E" * 40] * 9, NOW)
    yield trains.pack_cipher([(PLACE, [bytes(96)])], NOW)
    yield trains.pack_cipher([(PLACE, [bytes(96)] * 3 + [bytes(32)]), (PLACE[::-1], [bytes(60)])], NOW)
    yield trains.pack_handshake(PLACE, bytes(148), NOW)
    yield trains.pack_plain([b"E" * 60], NOW - 9)
    yield trains.pack_mark(3, 70_000, NOW)


@door(
    trains.unpack_plain_untrusted, trains.spans_untrusted, trains.lone_untrusted,
    trains.unpack_cipher_untrusted, trains.lone_run_untrusted, trains.unpack_handshake_untrusted, trains.mark_untrusted,
    seeds=_trains,
)  # fmt: skip
def frames(data: bytes) -> None:
    """Reads a frame as each kind of train, alone and amid other bytes; what is taken says the same when it is packed."""
    around = b"\1\2\3" + data + b"\4"
    begin, end = 3, 3 + len(data)
    plain = only(BadTrain, trains.unpack_plain_untrusted, data, NOW)
    spans = only(BadTrain, trains.spans_untrusted, around, NOW, begin, end)
    lone = only(BadTrain, trains.lone_untrusted, around, NOW, begin, end)
    assert (plain is None) == (spans is None)
    if plain is not None:
        assert trains.unpack_plain_untrusted(trains.pack_plain(plain, NOW), NOW) == plain
        assert sum(map(len, trains.cut_packets(plain))) == len(plain)
    if lone is not None:
        assert plain == [lone]
    runs = only(BadTrain, trains.unpack_cipher_untrusted, data, NOW)
    one = only(BadTrain, trains.lone_run_untrusted, around, NOW, begin, end)
    if runs is not None:
        again = trains.unpack_cipher_untrusted(trains.pack_cipher(runs, NOW), NOW)
        assert [(place, datagram) for place, block in again for datagram in block] == [
            (place, datagram) for place, block in runs for datagram in block
        ]
    if one is not None:
        assert [(place, list(block)) for place, block in runs or []] == [(one[0], [one[1]])]
    mark = trains.mark_untrusted(around, begin, end)
    if mark is not None:
        assert trains.pack_mark(*mark, NOW)[:8] == data[:2] + bytes([mark[0], 0]) + data[4:8]
    handshake = only(BadTrain, trains.unpack_handshake_untrusted, around, NOW, begin, end)
    if handshake is not None:
        assert trains.pack_handshake(*handshake, 0)[16:] == data[16:]


def _streams() -> Iterator[bytes]:
    messages = zmtp.front(300) + bytes(300) + zmtp.front(0) + b"\0\5hello"
    for middle in (b"", zmtp.MEMORY + zmtp.train_in(0, 50) + zmtp.train_in(3, 4096), zmtp.SHARING):
        yield bytes([0, 9, 70, 200]) + zmtp.PUSH + middle + messages
        yield bytes([1, 0, 0, 0]) + middle + messages


@door(zmtp.Stream.take_untrusted, Memory.take_untrusted, seeds=_streams)
def zmtp_streams(data: bytes) -> None:
    """Cuts a stream into messages, the same however it comes in pieces, and none longer than the limit."""
    given = Given(data)
    flags, cuts = given.number(), sorted(given.take(3))
    stream = given.rest()
    whole = _cut(stream, [], ready=bool(flags & 1))
    pieces = _cut(stream, cuts, ready=bool(flags & 1))
    assert pieces[0][: len(whole[0])] == whole[0]
    assert pieces[1] or not whole[1]
    assert all(len(message) <= max(400, SLOT) for message in pieces[0])


def _cut(data: bytes, cuts: list[int], *, ready: bool) -> tuple[list[bytes], bool]:
    """Returns the messages of a stream before its first mistake, and whether there is one."""
    memory = _memory()
    for slot in range(SLOTS):
        memory.map[slot] = 1
    stream, found, at = Stream(400, ready=ready, memory=memory), list[bytes](), 0
    for cut in [*cuts, len(data)]:
        try:
            frames = stream.take_untrusted(data[at:cut])
        except BadStream:
            memory.release()
            return found, True
        found += [bytes(frame[start:end]) for frame, start, end in frames]
        assert len(stream._rest) <= 1024
        at = max(at, cut)
    memory.release()
    return found, False


@cache
def _memory() -> Memory:
    return Memory.make()


@door(seeds=lambda: (bytes([1] * SLOTS) + stream[4:] for stream in _streams() if not stream.startswith(b"\0")))
def pipes_receive(data: bytes) -> None:
    """Receives a stream compiled: what is ordinary, Python cuts alike, and what isn't comes back as it was."""
    given, memory, near = Given(data), _memory(), _sockets()[0]
    states, stream = bytes(each % 5 for each in given.take(SLOTS).ljust(SLOTS, b"\0")), given.rest()
    if PIPES is None or not stream:
        return
    marks = bytearray(1)
    _sockets()[1].sendall(stream)
    memory.map[:SLOTS] = states
    found = PIPES.receive(near.fileno(), 1 << 17, 400, marks, 0, memory.map, memory.in_hand)
    after, in_hand = memory.map[:SLOTS], [*memory.in_hand]
    memory.in_hand.clear()
    memory.map[:SLOTS] = states
    if isinstance(found, bytes):
        assert (found, bytes(marks), after, in_hand) == (stream, b"\1", states, [])
        return
    plain = Stream(400, ready=True, memory=memory)
    assert plain.take_untrusted(stream) == found
    assert (bytes(marks), after, in_hand) == (b"\0", memory.map[:SLOTS], memory.in_hand)
    assert plain.between
    memory.release()


@cache
def _sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


@door(_mapped_untrusted, seeds=lambda: (bytes([kind]) for kind in range(8)), longest=64)
def memory_files(data: bytes) -> None:
    """Maps no memory but a sealed file, whatever descriptor a pusher hands over."""
    given = Given(data)
    kind, size, seals = given.number() % 6, given.number(3), given.number() & 0x1F
    if kind == 0:
        descriptor = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    elif kind == 1:
        descriptor, other = os.pipe()
        os.close(other)
    elif kind == 2:
        descriptor = os.open("/dev/null", os.O_RDWR)
    elif kind == 3:
        descriptor = os.open("/", os.O_RDONLY)
    elif kind == 4:
        descriptor = socket.socket().detach()
    else:
        descriptor = os.dup(_memory().descriptor)
    memory = only(BadMemory, Memory, descriptor)
    assert (memory is not None) == (kind == 5 or (kind == 0 and memory is not None and seals & 7 == 7))
    if memory is not None:
        memory.close()


def _handed_down() -> Iterator[bytes]:
    names = (MARKS, f"{PREFIX}0:cipher-in.0", f"{SHARER}1:x", f"{MEMORY}1")
    for kinds in ((0, 1, 1, 0), (1, 0, 1, 0), (0, 1, 1, 1)):
        yield b"".join(bytes([kind]) + piece(name.encode()) for kind, name in zip(kinds, names, strict=True))


@door(seeds=_handed_down)
def inherited_pushers(data: bytes) -> None:
    """Takes connections that a predecessor hands down under any names, and closes what it can't use."""
    given = Given(data)
    before = open_descriptors()
    inherited: dict[str, int] = {}
    while given.left and len(inherited) < 8:
        is_socket, name = given.number() & 1, given.piece().decode("utf-8", "replace")
        if name not in inherited:
            inherited[name] = socket.socket(socket.AF_UNIX).detach() if is_socket else os.memfd_create("fuzz")
    pushers = Pushers(inherited)
    for pipe in ("cipher-in.0", "x"):
        for pusher, memory in pushers.of(pipe):
            pusher.close()
            if memory is not None:
                memory.close()
    pushers.close()
    for descriptor in inherited.values():
        os.close(descriptor)
    assert open_descriptors() == before
