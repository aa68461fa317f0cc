"""Doors between processes for words: control messages, session keys, sockets, and what a holder hands down."""

import array
import dataclasses
import json
import os
import socket
import struct
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.doors.door import Given, door, only, open_descriptors, piece
from tests.proto.byhand import PEER, T, v4, worker

from stagewire.config.operations import ExpirePeers
from stagewire.control import codec, messages, operations, questions, session_keys, socket_door, status
from stagewire.control.codec import BadControl, Codec
from stagewire.control.shapes import BadOperation
from stagewire.loop import Loop
from stagewire.process import hand_down
from stagewire.process.hand_down import Named, Said
from stagewire.proto.session import Session
from stagewire_cli import writer

CODECS: tuple[tuple[Codec[Any], tuple[type, ...]], ...] = (
    (messages.FROM_STAGE, messages.FromStage.__args__),
    (messages.FROM_KEY, messages.FromKey.__args__),
    (messages.TO_STATUS, messages.ToStatus.__args__),
    (session_keys._HELLO, (session_keys.WorkerHello,)),
    (session_keys._GRANTS, (session_keys.Grants,)),
    (socket_door._TO_HOST, (socket_door.Offer, socket_door.Ask, socket_door.Taken)),
    (socket_door._FROM_HOST, (socket_door.Given,)),
    (hand_down._NAMED, (Named,)),
)
"""Every set of messages, with its kinds."""


def value(expected: Any, given: Given, depth: int = 0) -> Any:
    """Makes a value of a field's type out of bytes."""
    if expected is int:
        size = given.number() & 7
        return int.from_bytes(given.take(size + 1), "little", signed=bool(size & 1) and size < 7)
    if expected is float:
        return struct.unpack("<d", given.take(8))[0]
    if expected is bool:
        return bool(given.number() & 1)
    if expected is str:
        return given.piece().decode("utf-8", "replace")
    if expected is bytes:
        return given.piece()
    if dataclasses.is_dataclass(expected):
        return message(expected, given, depth + 1)  # type: ignore[arg-type]
    arguments = typing.get_args(expected)
    if type(None) in arguments:
        return value(arguments[0], given, depth) if given.number() & 1 else None
    return tuple(value(arguments[0], given, depth) for _ in range(given.number() & 3 if given.left else 0))


@cache
def _fields(kind: type) -> tuple[Any, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(hints[field.name] for field in dataclasses.fields(kind))


def message(kind: type, given: Given, depth: int = 0) -> Any:
    """Makes a message of a kind out of bytes."""
    return kind(*[value(each, given, depth) for each in _fields(kind)])


def _same(one: object, other: object) -> bool:
    return one == other or repr(one) == repr(other)  # a float may be no number


def _packed() -> Iterator[bytes]:
    for number, (each, kinds) in enumerate(CODECS):
        for kind in kinds:
            for content in (b"", bytes(range(256)), b"\1" * 64):
                yield bytes([number]) + each.pack(message(kind, Given(content)))
    for bomb in (b"\x91" * 2000, b"\xdd\xff\xff\xff\xff", b"\xc7\xff\5", b"\x93\4\xa5Hello\xdc\xff\xff"):
        yield b"\0" + bomb


@door(codec.Codec.unpack_untrusted, seeds=_packed, longest=4096)
def control_bytes(data: bytes) -> None:
    """Unpacks bytes by each set; what is a message is the same when it is packed again."""
    each, kinds = CODECS[data[0] % len(CODECS)] if data else CODECS[0]
    found = only(BadControl, each.unpack_untrusted, data[1:])
    if found is not None:
        assert type(found) in kinds
        assert _same(each.unpack_untrusted(each.pack(found)), found)


def _contents() -> Iterator[bytes]:
    for number, (_, kinds) in enumerate(CODECS):
        for position in range(len(kinds)):
            yield bytes([number, position]) + bytes(range(1, 100))


@door(codec.Codec.unpack_untrusted, seeds=_contents)
def control_messages(data: bytes) -> None:
    """Carries every message with any value in every field, and refuses it in any other set."""
    given = Given(data)
    each, kinds = given.choice(CODECS)
    made = message(given.choice(kinds), given)
    packed = each.pack(made)
    assert _same(each.unpack_untrusted(packed), made)
    for other, others in CODECS:
        found = only(BadControl, other.unpack_untrusted, packed)
        assert found is None or type(made).__name__ in {kind.__name__ for kind in others}


@door(seeds=lambda: [bytes(200), bytes(range(200))])
def status_pages(data: bytes) -> None:
    """Carries what the command prints: every field arrives as it was sent."""
    made = message(status.GatewayStatus, Given(data))
    each: Codec[Any] = Codec(questions.VERSION, [status.GatewayStatus])
    assert _same(each.unpack_untrusted(each.pack(made)), made)


# --- with descriptors ----------------------------------------------------------------------------------------


def descriptors(kinds: bytes) -> list[int]:
    """Opens a descriptor of each of these kinds."""
    opened = []
    for kind in kinds:
        match kind % 5:
            case 0:
                opened.append(os.memfd_create("fuzz"))
            case 1:
                opened.append(os.memfd_create("fuzz"))
                os.write(opened[-1], bytes(range(256)) * 4)
            case 2:
                opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach())
            case 3:
                opened.append(os.open("/dev/null", os.O_RDONLY))
            case _:
                one, other = os.pipe()
                os.close(other)
                opened.append(one)
    return opened


def _sent(line: socket.socket, packet: bytes, kinds: bytes) -> None:
    opened = descriptors(kinds)
    with suppress(OSError):  # an empty packet, or too long
        line.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", opened))] if opened else [])
    for each in opened:
        os.close(each)


def _line() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def _with_descriptors(data: bytes, read: Callable[[socket.socket], None]) -> None:
    """Sends each piece of an input as a packet with descriptors; none may stay open."""
    before = open_descriptors()
    given = Given(data)
    ours, theirs = _line()
    with ours, theirs:
        while given.left:
            kinds = given.take(given.number() % 6)
            _sent(theirs, given.piece(), kinds)
            read(ours)
        theirs.close()
        read(ours)
    assert open_descriptors() == before


def _packets(each: Codec[Any], *made: Any) -> Iterator[bytes]:
    for kinds in (b"", b"\2", b"\2\2", b"\0", b"\1", b"\4", b"\3"):
        for one in made:
            yield bytes([len(kinds)]) + kinds + piece(each.pack(one))


def _doors_packets() -> Iterator[bytes]:
    to_host = (socket_door.Offer(("udp4",)), socket_door.Ask(("tcp6",)), socket_door.Taken(), socket_door.Offer(()))
    yield from _packets(socket_door._TO_HOST, *to_host)
    yield from _packets(
        socket_door._FROM_HOST, socket_door.Given(("udp4", "udp6")), socket_door.Given(("udp4", "udp4"))
    )


@door(socket_door._receive_untrusted, seeds=_doors_packets)
def socket_packets(data: bytes) -> None:
    """Receives sockets from either end: as many as are named, or none and the end of the line."""

    def read(line: socket.socket) -> None:
        ends: tuple[Codec[Any], ...] = (socket_door._TO_HOST, socket_door._FROM_HOST)
        for each in ends:
            found = only(OSError, socket_door._receive_untrusted, line, each)
            if found is not None:
                said, opened = found
                assert isinstance(said, socket_door.Ask) or set(opened) == set(said.names) <= set(socket_door.KINDS)
                for descriptor in opened.values():
                    os.close(descriptor)

    _with_descriptors(data, read)


def _grants() -> Iterator[bytes]:
    grant = session_keys.Grant(PEER, 1, 5, True, T, b"")
    yield from _packets(session_keys._GRANTS, *(session_keys.Grants((grant,) * count) for count in range(3)))
    for odd in (
        {"index": -1}, {"index": 1 << 40}, {"remote_index": 1 << 32}, {"created": float("nan")}, {"created": -1e308},
        {"endpoint": b"x"}, {"endpoint": bytes(44)}, {"public_key": b""}, {"initiator": False},
    ):  # fmt: skip
        grants = session_keys.Grants((dataclasses.replace(grant, **odd),))
        yield b"\1\1" + piece(session_keys._GRANTS.pack(grants))


class _NoLoop:
    """Stands for a loop that nothing is ever read by."""

    def add(self, *_: object) -> None: ...

    def remove(self, *_: object) -> None: ...

    def add_timed(self, *_: object) -> None: ...


@door(seeds=_grants)
def session_grants(data: bytes) -> None:
    """Takes sessions as a worker does: each has both its keys, or the packet is counted. None is left in the file."""
    one = worker()

    def install(sessions: Sequence[tuple[session_keys.Grant, Session]]) -> None:
        for grant, session in sessions:
            if one.install(grant.public_key, session, grant.endpoint or None, T) is not None:
                one.outbound([v4("10.1.0.1", "10.1.0.1")] * 2, T)
                one.act(T + 1)

    taker = session_keys.SessionsTaker(
        typing.cast("Loop", _NoLoop()), Path("none"), 0, session_keys.WorkerHello(0, 1), install, Counter(),
        one.kernel.session,
    )  # fmt: skip

    def read(line: socket.socket) -> None:
        taker._connection = line
        taker._read(T)

    _with_descriptors(data, read)


def _bequests() -> Iterator[bytes]:
    for names in ((), ("said",), ("a", "b"), ("a", "a")):
        yield from _packets(hand_down._NAMED, Named(names))


@door(seeds=_bequests)
def handed_down(data: bytes) -> None:
    """Receives a holder's descriptors as a spare does: one for each name, and none stays open besides."""

    def read(line: socket.socket) -> None:
        found = hand_down.receive(line)
        left = hand_down.sound(found or {}, Path("/none"), "tun", 0)
        assert left.keys() <= {"said"}
        hand_down.close_all(left.values())

    _with_descriptors(data, read)


@door(seeds=lambda: [b"\5\0\0\0hello\0\0\0\0", b"\xff\xff\xff\xff", bytes(9)])
def said(data: bytes) -> None:
    """Reads key-service's last words, cut or not."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        kept = Said(descriptor)
        for each in kept.messages():
            only(BadControl, messages.FROM_KEY.unpack_untrusted, each)
        kept.add(b"more")
        assert len(kept.messages()) <= len(data) + 1
    finally:
        os.close(descriptor)


_OPERATIONS: tuple[object, ...] = (
    {
        "version": 1,
        "do": "AddPeers",
        "peers": [{"name": "a", "public_key": "b", "settings": [{"key": "c", "value": ""}]}],
    },
    {"version": 1, "do": "SwitchPeers", "peers": ["a"], "on": True},
    {"version": 1, "do": "ExpirePeers"},
    {"version": 2, "do": "RenamePeer", "peer": "a", "name": "b"},
    {"version": 1, "do": "SetPeer", "peer": 5, "settings": {}},
)


@door(operations.from_json_untrusted, seeds=lambda: [json.dumps(each).encode() for each in _OPERATIONS], longest=4096)
def operation_texts(data: bytes) -> None:
    """Reads an operation, or refuses it in a line; what is read is written and read again."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        operation = operations.from_json_untrusted(said)
    except BadOperation:
        return
    assert operations.from_json_untrusted(json.loads(json.dumps(operations.to_json(operation)))) == operation


@door(writer.request_untrusted, seeds=lambda: [json.dumps(each).encode() for each in _OPERATIONS], longest=4096)
def requests_to_root(data: bytes) -> None:
    """Takes the one kind that root's writer knows, or refuses in a line."""
    with suppress(BadOperation):
        assert writer.request_untrusted(data) == ExpirePeers()
