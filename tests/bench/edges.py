"""Measures the visits of tun- and conn-service to a device and a socket, compiled: what stands beside a worker's visit.

A pair of sockets stands for the device, and loopback for the network. So the kernel's part differs from a real one: to send
to loopback is also to receive.
"""

import gc
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final

from tests.bench import kernels
from tests.linux.udp_sides import opened

from stagewire.limits import MAX_PACKET
from stagewire.pipe import trains
from stagewire.proto import carriers
from stagewire.proto import constants as c
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.proto.endpoint import Endpoint

NOW: Final = kernels.NOW
_LOCAL: Final = "127.0.0.1"
_ROOM: Final = 4 << 20
_TAKES_ALL: Final = 3
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
"""Of linux/udp.h: the socket module has no names for them."""

Visit = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]
"""Three functions, called in turn: what makes ready, what is measured, what cleans up."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Describes a stage's visit."""

    prepare: Callable[[ExitStack, int, int, int], Visit]
    """Takes the number of peers, packets in a train, and bytes of a packet."""
    peers: int

    def once(self, train: int, size: int, seconds: float) -> float:
        """Returns µs per packet of one run of visits."""
        with ExitStack() as stack:
            ready, visit, clean = self.prepare(stack, self.peers, train, size)
            calls, spent = max(3, int(seconds / (train * 4e-6 + 8e-6))), 0.0
            clock = time.thread_time
            gc.collect()
            gc.disable()
            try:
                for _ in range(calls):
                    ready()
                    begun = clock()
                    visit()
                    spent += clock() - begun
                    clean()
            finally:
                gc.enable()
        return spent / (calls * train) * 1e6


def edges() -> Iterator[tuple[str, Edge]]:
    """Yields the visits by name, where the compiled modules are built."""
    try:
        from stagewire.linux import tun_trains, udp_trains  # noqa: PLC0415
    except ImportError:
        return
    for peers, of in ((1, "1 peer"), (50, "50 peers")):
        yield f"tun-service reads, {of}", Edge(_bound(_tun_reads, tun_trains), peers)
        yield f"conn-service sends, {of}", Edge(_bound(_conn_sends, udp_trains), peers)
        yield f"conn-service receives, {of}", Edge(_bound(_conn_receives, udp_trains), peers)
        yield f"tun-service writes, {of}", Edge(_bound(_tun_writes, tun_trains), peers)


def _bound(prepare: Callable[..., Visit], module: Any) -> Callable[[ExitStack, int, int, int], Visit]:
    return lambda *arguments: prepare(module, *arguments)


def _owners(peers: int) -> AllowedIps[int]:
    owners = AllowedIps[int]()
    for peer in range(peers):
        for prefix in (f"10.9.{peer}.0/24", f"10.0.0.{peer}/32"):
            owners.insert(ip_network(prefix), carriers.pack(0))
    return owners


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ends[0], ends[1]:
        for end in ends:
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        yield ends


def _drained(*ends: socket.socket) -> None:
    for end in ends:
        try:
            while True:
                end.recv(1 << 17)
        except BlockingIOError:
            pass


def _tun_reads(module: Any, stack: ExitStack, peers: int, count: int, size: int) -> Visit:
    device, far = stack.enter_context(_pair())
    frame, owners = kernels.plain_train(peers, count, size), _owners(peers)
    items = [frame[start:over] for start, over, _ in trains.spans_untrusted(frame, NOW)]
    room = module.PlainRoom(_TAKES_ALL)
    reader = module.TunReader(device.fileno(), owners.lookup, owners.answers)

    def ready() -> None:
        for item in items:
            far.send(item)

    def visit() -> None:
        left = count
        while left > 0:
            taken = reader.visit(lambda _worker: room, 0, count == 1)[0]
            room.finish(NOW)
            if not taken:
                raise RuntimeError("an item did not arrive")
            left -= taken

    return ready, visit, lambda: None


def _tun_writes(module: Any, stack: ExitStack, peers: int, count: int, size: int) -> Visit:
    device, far = stack.enter_context(_pair())
    frame, owners = kernels.plain_train(peers, count, size, inward=True), _owners(peers)
    writer = module.TunWriter(device.fileno(), lambda _item: None, owners.lookup, owners.answers)

    def visit() -> None:
        if writer.write(frame, 0, len(frame), NOW, trains.MAX_AGE, 0) != (count, 0, 0):
            raise RuntimeError("not all packets were written")

    return lambda: None, visit, lambda: _drained(far)


def _runs(ends: list[socket.socket], count: int, size: int) -> bytes:
    """Packs a cipher train to these sockets: full runs to one of them, or a datagram to each in turn."""
    places = [Endpoint(socket.inet_aton(_LOCAL), end.getsockname()[1]).pack() for end in ends]
    datagram = b"\4\0\0\0" + bytes(-(-size // 16) * 16 + c.TRANSPORT_OVERHEAD - 4)
    if len(ends) > 1:
        return trains.pack_cipher([(places[at % len(places)], [datagram]) for at in range(count)], NOW)
    full = MAX_PACKET // len(datagram)
    cuts = [min(full, count - at) for at in range(0, count, full)]
    return trains.pack_cipher([(places[0], [datagram] * cut) for cut in cuts], NOW)


def _conn_sends(module: Any, stack: ExitStack, peers: int, count: int, size: int) -> Visit:
    ours, *ends = (stack.enter_context(opened(socket.AF_INET)) for _ in range(peers + 1))
    frame = _runs(ends, count, size)
    ways = {}
    for end in ends:
        port = end.getsockname()[1]
        name = socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + socket.inet_aton(_LOCAL) + bytes(8)
        ways[Endpoint(socket.inet_aton(_LOCAL), port).pack()] = module.Way(ours.fileno(), MAX_PACKET, name, b"")
    writer = module.UdpWriter(ways)

    def visit() -> None:
        if not writer.take(frame, 0, len(frame), NOW, trains.MAX_AGE) or writer.send(True, {}) != (count, None):
            raise RuntimeError("not all datagrams were sent")

    return lambda: None, visit, lambda: _drained(*ends)


def _conn_receives(module: Any, stack: ExitStack, peers: int, count: int, size: int) -> Visit:
    ours = stack.enter_context(opened(socket.AF_INET))
    ours.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
    ends = [stack.enter_context(opened(socket.AF_INET)) for _ in range(peers)]
    to, room = ours.getsockname(), module.CipherRoom()
    runs = [(block, end) for (_, block), end in _by_end(ends, count, size)]
    reader = module.UdpReader(lambda _worker: room, lambda: room.finish(NOW), lambda *_: 0, lambda *_: None)

    def ready() -> None:
        for block, end in runs:
            note = [(socket.SOL_UDP, UDP_SEGMENT, block.size.to_bytes(2, "little"))] if len(block) > 1 else []
            end.sendmsg([block.data], note, 0, to)

    def visit() -> None:
        left = count
        while left > 0:
            taken = reader.visit(ours.fileno(), 0, 1, count == 1, math.inf, 0.0)[0]
            room.finish(NOW)
            if not taken:
                raise RuntimeError("a datagram did not arrive")
            left -= taken

    return ready, visit, lambda: None


def _by_end(ends: list[socket.socket], count: int, size: int) -> Iterator[tuple[trains.Run, socket.socket]]:
    runs = trains.unpack_cipher_untrusted(_runs(ends, count, size), NOW)
    for at, run in enumerate(runs):
        yield run, ends[at % len(ends)]
