"""What the hot functions cost: µs per packet by the length of the train, and what a train costs before its first packet.

Each is called as its service calls it. Times are of one thread's CPU, the least of some runs: whatever else the machine
does can only add to it.
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

from bench.tcp import Values
from bench.workers import packet
from stagewire.ipc import trains
from stagewire.ipc.frames import MAX_READ
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.proto.device import Device, PeerFacts
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.offload import coalesce, segment
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.segment import SuperPacket
from stagewire.proto.replay import ReplayWindow
from stagewire.proto.session import Session

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
    """A function that is measured: contestants are its name, its figures are by train length and packet size."""

    name: str
    prepare: Callable[[int, int, int], Iterator[Callable[[], object]]]
    """(packets in a train, bytes of a packet, calls) -> so many calls, each to be made once."""

    def rest(self) -> None:
        """It is nothing but a function."""

    def wake(self) -> None:
        """It never rested."""


def sessions() -> tuple[Session, Session]:
    """Both ends of a session."""
    keys = [ChaCha20Poly1305(os.urandom(32)) for _ in range(2)]
    first = Session(1 << 8, 2 << 8, keys[0], keys[1], initiator=True, created=_NOW)
    return first, Session(2 << 8, 1 << 8, keys[1], keys[0], initiator=False, created=_NOW)


def devices() -> tuple[Device, Device]:
    """Two workers with a session between them, which is confirmed."""
    pair = Device(lambda: 0.0), Device(lambda: 0.0)
    for device, session, name in zip(pair, sessions(), reversed(_NAMES), strict=True):
        device.set_peer(PeerFacts(name, (ip_network("0.0.0.0/0"),), home=True, endpoint=_PLACE), _NOW)
        device.install(name, session, _PLACE, _NOW)
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
    device, train = devices()[0], _packets(count, size)
    return (lambda: device.outbound(train, _NOW) for _ in range(calls))


def _inbound(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    there, here = devices()
    sealed = [_datagrams(there.outbound(_packets(count, size), _NOW).runs) for _ in range(calls)]
    return (_call(here.inbound, [(_PLACE, train)]) for train in sealed)


def _whole(count: int, size: int) -> list[bytes | SuperPacket]:
    """So many packets of TCP as the OS hands them over: in one piece, as far as that goes."""
    if count * size > MAX_READ:
        return [*_whole(count // 2, size), *_whole(count // 2, size)]
    addresses = IPv4Address(_OURS).packed + IPv4Address(_THEIRS).packed
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + count * (size - 40), 1, 0x4000, 64, segment.TCP, 0) + addresses
    head = ip + struct.pack("!HHIIBBHHH", 5201, 40000, 1, 1, 0x50, segment.ACK, 1000, 0, 0)
    whole = SuperPacket(head + bytes(count * (size - 40)), 20, 40, size - 40, segment.TCP, 4)
    return [whole] if count > 1 else [head + bytes(size - 40)]


def _outbound_whole(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    device, train = devices()[0], _whole(count, size)
    return (lambda: device.outbound(train, _NOW) for _ in range(calls))


def _inbound_whole(count: int, size: int, calls: int) -> Iterator[Callable[[], object]]:
    there, here = devices()
    here.takes = coalesce.TAKES_TCP
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
    """So many peers' prefixes."""
    made: AllowedIps[int] = AllowedIps()
    for number in range(prefixes):
        made.insert(IPv4Network((int(IPv4Address("100.64.0.0")) + number, 32)), number)
    return made


def _lookup(prefixes: int, spread: int) -> Callable[[int, int, int], Iterator[Callable[[], object]]]:
    def prepare(count: int, _size: int, calls: int) -> Iterator[Callable[[], object]]:
        made = table(prefixes)
        made.insert(_ELSEWHERE, -1)  # any change makes it forget the answers it gave
        lookup = made.lookup
        # Steps without a common factor with the table's length, so that no address comes again soon.
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


FUNCTIONS: Final = (
    Measured("Session.seal", _seal),
    Measured("Device.outbound", _outbound),
    Measured("Device.inbound", _inbound),
    Measured("Device.outbound, a super-packet", _outbound_whole),
    Measured("Device.inbound, its runs", _inbound_whole),
    Measured("pack_plain", _pack_plain),
    Measured("unpack_plain", _unpack_plain),
    Measured("pack_cipher", _pack_cipher),
    Measured("unpack_cipher", _unpack_cipher),
    Measured("ReplayWindow.accept", _replay),
    Measured("AllowedIps.lookup, 1 prefix", _lookup(1, 1)),
    Measured("AllowedIps.lookup, 10,000, all asked for", _lookup(10_000, 10_000)),
)


@contextmanager
def all_functions() -> Iterator[list[Measured]]:
    """As the contestants of a group."""
    yield list(FUNCTIONS)


def figure(train: int, size: int) -> str:
    """The name of a figure."""
    return f"us/{size}/{train}"


def measure(function: Measured, budget: float) -> Values:
    """µs per packet, `us/<bytes>/<packets in the train>`; `budget` is in s for all of them."""
    each = budget / len(TRAINS) / len(SIZES) / RUNS
    return {
        figure(train, size): min(_once(function, train, size, each) for _ in range(RUNS))
        for size in SIZES
        for train in TRAINS
    }, {}


def _once(function: Measured, train: int, size: int, seconds: float) -> float:
    calls = max(3, int(seconds / (train * 4e-6 + 4e-6)))
    prepared = list(function.prepare(train, size, calls))
    gc.collect()
    gc.disable()  # what lies about here would be looked through; a service has frozen its own
    try:
        begun = time.thread_time()
        for call in prepared:
            call()
        return (time.thread_time() - begun) / (calls * train) * 1e6
    finally:
        gc.enable()
