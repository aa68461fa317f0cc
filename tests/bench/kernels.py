"""Measures a worker's visit with each kernel: trains in, trains out, as device-service makes them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.proto.packets.flows import UDP, Shape

from stagewire.limits import MAX_PACKET
from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.kernel.choice import Kernel
from stagewire.proto.messages import TRANSPORT_HEADER
from stagewire.proto.packets import merge, split
from stagewire.proto.tunnel import Packet
from stagewire.proto.worker import PeerFacts, Worker

NOW: Final = 1000.0
_THEIRS: Final = bytes(range(32))
"""Every peer's key: what it seals needs no session of its own."""
_TCP_HEADERS: Final = 40
_OPTIONS: Final = bytes(12)
_PORT: Final = 1024
_RATE: Final = 1_000_000
"""Bits/s of a limited peer."""
_CAP: Final = 1 << 40
"""Bytes of its quota."""

Call = Callable[[], object]


def _place(peer: int) -> bytes:
    return Endpoint(bytes([192, 0, 2, 7]), _PORT + peer).pack()


def _worker(kernel: Kernel, peers: int, limited: int) -> Worker:
    worker = Worker(lambda: 0.0, kernel=kernel)
    worker.takes = merge.TAKES_TCP | merge.TAKES_UDP
    for peer in range(peers + limited):
        name, rate = peer.to_bytes(32), 0 if peer < peers else _RATE
        networks = (IPv4Network(f"10.0.0.{peer}/32"), IPv4Network(f"10.9.{peer}.0/24"))
        cap = _CAP if rate else None
        worker.set_peer(PeerFacts(name, networks, True, endpoint=_place(peer), rates=(rate, rate), cap=cap), NOW)
        session = kernel.session(peer << 8, 7, os.urandom(32), _THEIRS, initiator=True, created=NOW)
        worker.install(name, session, _place(peer), NOW)
    return worker


def _packet(size: int, peer: int) -> bytes:
    return Shape(protocol=UDP, payload=bytes(size - 28), size=size, host=peer).packet()


def _to(packet: bytes, peer: int) -> bytes:
    return packet[:16] + bytes([10, 9, peer, 9]) + packet[20:]


def plain_train(peers: int, count: int, size: int, *, inward: bool = False) -> bytes:
    """Packs what the OS hands over: one flow of TCP for one peer, or packets of UDP for each peer in turn.

    `inward`: they come from those peers.
    """
    if peers > 1:
        hosts = [number % peers if inward else 0 for number in range(count)]
        return trains.pack_plain([_to(_packet(size, host), at % peers) for at, host in enumerate(hosts)], NOW)
    read = [(shape.as_read(), shape.count) for shape in _flow(count, size)]
    return trains.pack_plain([merge.Merged(header, _to(packet, 0), each) for (header, packet), each in read], NOW)


@dataclass(frozen=True)
class _Whole(Shape):
    """Stands for `count` packets."""

    count: int = 1


def _flow(count: int, size: int, begun: int = 0) -> list[_Whole]:
    """Returns super-packets as long as possible."""
    if count * size > MAX_PACKET:
        return [*_flow(count // 2, size, begun), *_flow(count - count // 2, size, begun + count // 2)]
    segment = size - _TCP_HEADERS - len(_OPTIONS)
    return [
        _Whole(
            size=segment, payload=bytes(count * segment), options=_OPTIONS, host=0, sequence=begun * segment,
            identification=begun, count=count,
        )
    ]  # fmt: skip


def _cipher_train(peers: int, count: int, size: int, first: int) -> bytes:
    """Packs what the network brings; `first` is the first counter."""
    cipher = ChaCha20Poly1305(_THEIRS)

    def sealed(peer: int, counter: int, packet: bytes) -> bytes:
        header = TRANSPORT_HEADER.pack(c.TYPE_TRANSPORT, peer << 8, counter)
        return header + cipher.encrypt(bytes(4) + header[8:], packet + bytes(-len(packet) % 16), None)

    if peers > 1:
        runs = [
            (_place(at % peers), [sealed(at % peers, first + at // peers, _packet(size, at % peers))])
            for at in range(count)
        ]
    else:
        packets = [packet for shape in _flow(count, size) for packet in Shape.train(shape)]
        runs = [(_place(0), [sealed(0, first + at, packet) for at, packet in enumerate(packets)])]
    return trains.pack_cipher(runs, NOW)


def _seal(worker: Worker, frame: bytes) -> None:
    packets: list[Packet] = []
    if worker.sealing is None or not worker.sealing.add(frame, 0, len(frame), NOW, trains.MAX_AGE):
        items = trains.unpack_plain_untrusted(frame, NOW)
        packets = [
            each if isinstance(each, bytes) else split.open_untrusted(each.header, each.packet) for each in items
        ]
    out = worker.seal(packets, NOW)
    if out.runs:
        trains.pack_cipher(out.runs, NOW)


def _open(worker: Worker, frame: bytes) -> None:
    runs: Sequence[trains.Run] = []
    if worker.opening is None or not worker.opening.add(frame, 0, len(frame), NOW, trains.MAX_AGE):
        runs = trains.unpack_cipher_untrusted(frame, NOW)
    out = worker.open(runs, NOW)
    if out.packets:
        trains.pack_plain(out.packets, NOW)


def sealing(kernel: Kernel, peers: int, limited: int = 0) -> Callable[[int, int, int], Iterator[Call]]:
    """Returns what measures the sealing of a train. `limited` peers are there as well, and speak not."""

    def prepare(count: int, size: int, calls: int) -> Iterator[Call]:
        worker, frame = _worker(kernel, peers, limited), plain_train(peers, count, size)
        return (lambda: _seal(worker, frame) for _ in range(calls))

    return prepare


def opening(kernel: Kernel, peers: int, limited: int = 0) -> Callable[[int, int, int], Iterator[Call]]:
    """Returns what measures the opening of a train. `limited` peers are there as well, and speak not."""

    def prepare(count: int, size: int, calls: int) -> Iterator[Call]:
        worker = _worker(kernel, peers, limited)
        frames = [_cipher_train(peers, count, size, at * count) for at in range(calls)]
        return (_bound(worker, frame) for frame in frames)

    return prepare


def _bound(worker: Worker, frame: bytes) -> Call:
    return lambda: _open(worker, frame)
