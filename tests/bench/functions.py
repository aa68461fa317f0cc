"""Measures the hot functions: µs per packet by the length of the train.

Each is called as its service calls it. Times are of one thread's CPU, the least of several runs: other work of the
machine can only add to it.
"""

import gc
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.bench import kernels
from tests.bench.edges import Edge, edges
from tests.bench.tcp import Values
from tests.bench.workers import packet

from stagewire.pipe import trains
from stagewire.pipe.train_builder import MAX_READ
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.kernel.choice import choose
from stagewire.proto.kernel.rule import PLAIN
from stagewire.proto.packets import fields, merge
from stagewire.proto.packets.block import Block
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.replay import ReplayWindow
from stagewire.proto.session import Session
from stagewire.proto.worker import PeerFacts, Worker

TRAINS: Final = (1, 4, 16, 64)
SIZES: Final = (1420, 64)
RUNS: Final = 5
MTU: Final = 1420
_NOW: Final = 1000.0
_PLACE: Final = Endpoint(bytes([192, 0, 2, 7]), 7777).pack()
_NAMES: Final = (bytes([1]) * 32, bytes([2]) * 32)
_ELSEWHERE: Final = IPv4Network("198.51.100.0/24")
_OURS, _THEIRS = "10.9.0.1", "10.9.0.2"


@dataclass(frozen=True, slots=True)
class Measured:
    """Describes a function to be measured.

    A contestant is a function; its figures are by train length and packet size.
    """

    name: str
    prepare: Callable[[int, int, int], Iterator[Callable[[], object]]] | Edge
    """Takes packets in a train, bytes of a packet, and calls. Yields as many calls, each to be made once."""

    def rest(self) -> None:
        """Does nothing: a function has no process."""

    def wake(self) -> None:
        """Does nothing: a function never rests."""


def sessions() -> tuple[Session, Session]:
    """Returns both ends of a session."""
    keys = [ChaCha20Poly1305(os.urandom(32)) for _ in range(2)]
    first = Session(1 << 8, 2 << 8, keys[0], keys[1], initiator=True, created=_NOW)
    return first, Session(2 << 8, 1 << 8, keys[1], keys[0], initiator=False, created=_NOW)


def workers() -> tuple[Worker, Worker]:
    """Returns two workers with a confirmed session between them."""
    pair = Worker(lambda: 0.0), Worker(lambda: 0.0)
    for worker, session, name in zip(pair, sessions(), reversed(_NAMES), strict=True):
        worker.set_peer(PeerFacts(name, (ip_network("0.0.0.0/0"),), home=True, endpoint=_PLACE), _NOW)
        worker.install(name, session, _PLACE, _NOW)
    first = pair[0].outbound([packet(_OURS, _THEIRS, 64)], _NOW)
    pair[1].inbound([(_PLACE, _datagrams(first.runs))], _NOW)
    return pair


def _datagrams(runs: Iterable[tuple[bytes, Sequence[bytes]]]) -> list[bytes]:
    return [datagram for _, datagrams in runs for datagram in datagrams]


def _packets(count: int, size: int) -> list[bytes]:
    return [packet(_OURS, _THEIRS, size) for _ in range(count)]


def _seal(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    session, train = sessions()[0], _packets(count, size)
    return (lambda: session.seal(train, MTU) for _ in range(calls))


def _outbound(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    worker, train = workers()[0], _packets(count, size)
    return (lambda: worker.outbound(train, _NOW) for _ in range(calls))


def _inbound(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    there, here = workers()
    sealed = [_datagrams(there.outbound(_packets(count, size), _NOW).runs) for _ in range(calls)]
    return (_call(here.inbound, [(_PLACE, train)]) for train in sealed)


def _whole(count: int, size: int) -> list[bytes | SuperPacket]:
    """Returns packets of TCP as the OS hands them over: in super-packets as long as possible."""
    if count * size > MAX_READ:
        return [*_whole(count // 2, size), *_whole(count // 2, size)]
    addresses = IPv4Address(_OURS).packed + IPv4Address(_THEIRS).packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + count * (size - 40), 1, 0x4000, 64, fields.TCP, 0) + addresses
    head = ip + struct.pack("!HHIIBBHHH", 5201, 40000, 1, 1, 0x50, fields.TCP_ACK, 1000, 0, 0)
    whole = SuperPacket(head + bytes(count * (size - 40)), 20, 40, size - 40, fields.TCP, 4)
    return [whole] if count > 1 else [head + bytes(size - 40)]


def _outbound_whole(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    worker, train = workers()[0], _whole(count, size)
    return (lambda: worker.outbound(train, _NOW) for _ in range(calls))


def _inbound_whole(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    there, here = workers()
    here.takes = merge.TAKES_TCP
    found = []
    for _ in range(calls):
        runs = there.outbound(_whole(count, size), _NOW).runs
        found.append([(_PLACE, Block(b"".join(datagrams), len(datagrams[0]))) for _, datagrams in runs])
    return (_call(here.inbound, runs) for runs in found)


def _call(function: Callable[..., object], argument: object) -> Callable[[], object]:
    return lambda: function(argument, _NOW)


def _same(function: Callable[..., object], argument: object, calls: int) -> Iterator[Callable[[], object]]:
    return (_call(function, argument) for _ in range(calls))


def _pack_plain(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    return _same(trains.pack_plain, _packets(count, size), calls)


def _unpack_plain(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    return _same(trains.unpack_plain_untrusted, trains.pack_plain(_packets(count, size), _NOW), calls)


def _pack_cipher(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    return _same(trains.pack_cipher, [(_PLACE, _packets(count, size + 32))], calls)


def _unpack_cipher(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    frame = trains.pack_cipher([(_PLACE, _packets(count, size + 32))], _NOW)
    return _same(trains.unpack_cipher_untrusted, frame, calls)


@cache
def table(prefixes: int) -> AllowedIps[int]:
    """Returns an AllowedIps with as many peers' prefixes."""
    made: AllowedIps[int] = AllowedIps()
    for number in range(prefixes):
        made.insert(IPv4Network((int(IPv4Address("100.64.0.0")) + number, 32)), number)
    return made


def _lookup(prefixes: int, spread: int) -> Callable[[int, int, int], Iterator[Callable[[], object]]]:
    def prepare(count: int, _size: int, calls: int) -> Iterator[Callable[[], object]]:
        made = table(prefixes)
        made.insert(_ELSEWHERE, -1)  # any change empties its cache
        lookup = made.lookup
        # The step shares no factor with the table's length, so no address comes again soon.
        base = int(IPv4Address("100.64.0.0"))
        wanted = [(base + number * 7919 % spread).to_bytes(4) for number in range(count * calls)]
        groups = [wanted[number * count : (number + 1) * count] for number in range(calls)]
        return (_each(lookup, group) for group in groups)

    return prepare


def _each(function: Callable[[bytes], object], group: Sequence[bytes]) -> Callable[[], object]:
    def all_of_them() -> None:
        for each in group:
            function(each)

    return all_of_them


def _replay(count: int, _size: int, calls: int) -> Iterator[Callable[[], object]]:
    accept = ReplayWindow().accept

    def train(first: int) -> Callable[[], object]:
        def all_of_them() -> None:
            for counter in range(first, first + count):
                accept(counter)

        return all_of_them

    return (train(number * count) for number in range(calls))


def _visits() -> Iterator[Measured]:
    """Yields the visits of a worker with each kernel that this installation has."""
    kernels_ = [choose(PLAIN)] if (best := choose("")).name == PLAIN else [choose(PLAIN), best]
    for peers, limited, of in ((1, 0, "1 peer"), (1, 50, "1 peer beside 50 with limits"), (50, 0, "50 peers")):
        for kernel in kernels_:
            yield Measured(f"Worker.seal, {of}, {kernel.name}", kernels.sealing(kernel, peers, limited))
            yield Measured(f"Worker.open, {of}, {kernel.name}", kernels.opening(kernel, peers, limited))


FUNCTIONS: Final = (
    *_visits(),
    *(Measured(name, edge) for name, edge in edges()),
    Measured("Session.seal", _seal),
    Measured("Worker.outbound", _outbound),
    Measured("Worker.inbound", _inbound),
    Measured("Worker.outbound, a super-packet", _outbound_whole),
    Measured("Worker.inbound, its runs", _inbound_whole),
    Measured("pack_plain", _pack_plain),
    Measured("unpack_plain", _unpack_plain),
    Measured("pack_cipher", _pack_cipher),
    Measured("unpack_cipher", _unpack_cipher),
    Measured("ReplayWindow.accept", _replay),
    Measured("AllowedIps.lookup, 1 prefix", _lookup(1, 1)),
    Measured("AllowedIps.lookup, 10,000 prefixes, each in turn", _lookup(10_000, 10_000)),
)


STAGES: Final = tuple(
    name.format(of)
    for of in ("1 peer", "50 peers")
    for name in (
        "tun-service reads, {}", "Worker.seal, {}, compiled", "conn-service sends, {}",
        "conn-service receives, {}", "Worker.open, {}, compiled", "tun-service writes, {}",
    )
)  # fmt: skip
"""The visits that a packet's way consists of."""


@contextmanager
def all_functions() -> Iterator[list[Measured]]:
    """Yields the functions as the contestants of a group."""
    yield list(FUNCTIONS)


def figure(train: int, size: int) -> str:
    return f"us/{size}/{train}"


def measure(function: Measured, budget: float) -> Values:
    """Returns µs per packet as `us/<bytes>/<packets in the train>`. `budget` is in s for all of them."""
    each = budget / len(TRAINS) / len(SIZES) / RUNS
    return {
        figure(train, size): min(_once(function, train, size, each) for _ in range(RUNS))
        for size in SIZES
        for train in TRAINS
    }, {}


def _once(function: Measured, train: int, size: int, seconds: float) -> float:
    if isinstance(function.prepare, Edge):
        return function.prepare.once(train, size, seconds)
    calls = max(3, int(seconds / (train * 4e-6 + 4e-6)))
    prepared = list(function.prepare(train, size, calls))
    gc.collect()
    gc.disable()  # the collector would scan the prepared objects; a service freezes its own
    try:
        begun = time.thread_time()
        for call in prepared:
            call()
        return (time.thread_time() - begun) / (calls * train) * 1e6
    finally:
        gc.enable()
