"""Tests that the watch on the outer link finds each violation; the tests make them by hand."""

import random
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest
from tests.chaos.record import PERIOD, Record
from tests.chaos.replay import OUTER_SIZE, Cellar, up
from tests.chaos.stream import MARKER
from tests.chaos.watch import Watch

from lab.namespaces import Namespace

GATEWAY, PEER, STRANGER = ("192.0.2.1", 51820), ("198.51.100.17", 51821), ("203.0.113.5", 4000)
INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4
GSO_UDP = 5
SESSION = b"\x01\x02\x03\x04"


def message(kind: int, counter: int = 0, index: bytes = SESSION, size: int = 64) -> bytes:
    return struct.pack("<I4sQ", kind, index, counter) + bytes(size - 16)


def frame(
    payload: bytes, source: tuple[str, int] = GATEWAY, destination: tuple[str, int] = PEER, segment: int = 0
) -> bytes:
    """Makes a frame as the tap delivers it: the kernel's own header, Ethernet's, IPv4's, UDP's."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    udp = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0)
    kernels = struct.pack("=BBHHHH", 0, GSO_UDP if segment else 0, 0, segment, 0, 0)
    return kernels + bytes(12) + b"\x08\x00" + ip + udp + payload


class Wire:
    """Stands in for the tap's socket."""

    def __init__(self, *frames: bytes, outgoing: bool = True) -> None:
        self._frames = list(frames)
        self._kind = socket.PACKET_OUTGOING if outgoing else socket.PACKET_HOST

    def recvfrom_into(self, buffer: bytearray) -> tuple[int, tuple[Any, ...]]:
        if not self._frames:
            raise BlockingIOError
        taken = self._frames.pop(0)
        buffer[: len(taken)] = taken
        return len(taken), ("veth", 0, self._kind)


@pytest.fixture
def record() -> Record:
    return Record(2, 10.0)


@pytest.fixture
def watch(record: Record) -> Watch:
    made = Watch(record, (Namespace("x"), "x"), Namespace("y"), GATEWAY, {1: PEER}, seed=1)
    made._cellar = Cellar(record, random.Random(1))
    return made


def see(watch: Watch, *frames: bytes, outgoing: bool = True) -> None:
    watch._drain(Wire(*frames, outgoing=outgoing))  # type: ignore[arg-type]


def wrong(record: Record) -> dict[str, int]:
    names = ("counters_again", "plain", "strange", "unexpected", "cookies_to_strangers")
    return {name: count for name in names if (count := record.get(name))}


def test_what_is_as_it_should_be_is_counted(watch: Watch, record: Record) -> None:
    see(watch, *(frame(message(TRANSPORT, counter)) for counter in range(10)), frame(message(INITIATION, size=148)))
    assert wrong(record) == {}
    assert (record.get("counters"), record.get("initiations_out"), record.get("frames")) == (10, 1, 11)


def test_a_counter_that_leaves_twice(watch: Watch, record: Record) -> None:
    see(watch, frame(message(TRANSPORT, 5)), frame(message(TRANSPORT, 70_000)), frame(message(TRANSPORT, 5)))
    assert wrong(record) == {"counters_again": 1}


def test_the_same_counter_of_another_session_is_another(watch: Watch, record: Record) -> None:
    see(watch, frame(message(TRANSPORT, 5)), frame(message(TRANSPORT, 5, index=b"abcd")))
    assert wrong(record) == {}


def test_every_datagram_of_a_train_is_looked_at(watch: Watch, record: Record) -> None:
    train = b"".join(message(TRANSPORT, counter) for counter in (1, 2, 3, 2)) + message(TRANSPORT, 1, size=40)
    see(watch, frame(train, segment=64))
    assert record.get("counters") == 5
    assert wrong(record) == {"counters_again": 2}


def test_plain_bytes_either_way(watch: Watch, record: Record) -> None:
    see(watch, frame(message(TRANSPORT) + MARKER))
    see(watch, frame(message(TRANSPORT) + MARKER, PEER, GATEWAY), outgoing=False)
    assert wrong(record) == {"plain": 2}


def test_an_answer_to_nobody_we_know(watch: Watch, record: Record) -> None:
    see(watch, frame(message(RESPONSE, size=92), destination=STRANGER))
    see(watch, frame(message(TRANSPORT), destination=(PEER[0], PEER[1] + 1)))
    assert wrong(record) == {"strange": 2}


def test_a_cookie_is_no_answer(watch: Watch, record: Record) -> None:
    see(watch, frame(message(COOKIE_REPLY), destination=STRANGER))
    assert wrong(record) == {"cookies_to_strangers": 1}


def test_what_is_no_message(watch: Watch, record: Record) -> None:
    see(watch, frame(bytes(64)), frame(b"\4\0\0\1" + bytes(60)))
    assert wrong(record) == {"unexpected": 2}


def served(record: Record) -> float:
    """Lets everything arrive until now. Returns a moment in the middle."""
    now = time.time()
    record.sent[:5000] = now - 8 + np.arange(5000) * PERIOD
    record.late[:, :5000] = 500
    record.put("ticks", 5000)
    return now - 4


def test_only_what_was_served_is_played_back(record: Record) -> None:
    cellar, then = Cellar(record, random.Random(1)), served(record)
    cellar.keep(1, bytearray(message(TRANSPORT, 1, size=OUTER_SIZE)), then)
    cellar.keep(1, bytearray(message(TRANSPORT, 2, size=OUTER_SIZE + 16)), then)
    assert {kept.data[8] for kept in cellar.choose(10)} == {1}
    record.late[up(1), record.tick_at(then)] = 0
    assert cellar.choose(10) == []


def test_a_handshake_message_is_played_back_once_it_was_answered_or_used(record: Record) -> None:
    cellar, then = Cellar(record, random.Random(1)), served(record)
    cellar.keep(1, bytearray(message(INITIATION, index=b"init", size=148)), then)
    cellar.keep(1, bytearray(message(RESPONSE, index=b"resp", size=92)), then)
    assert cellar.choose(10) == []
    cellar.answered(b"init")
    assert {kept.data[0] for kept in cellar.choose(10)} == {INITIATION}
    cellar.confirmed(b"resp")
    assert {kept.data[0] for kept in cellar.choose(50)} == {INITIATION, RESPONSE}
