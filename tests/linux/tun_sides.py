"""Both halves of tun-service, compiled and not, at a socket that stands for the device."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

from stagewire.loop import Loop
from stagewire.pipe.names import PLAIN_OUT
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import PlainBuilder
from stagewire.proto import carriers
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.reasons import Reasons
from tun_service.packets import Packets

WORKERS = 2


class Side:
    """Reads and writes a device, compiled or not."""

    def __init__(self, module: Any) -> None:
        self.device, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.device, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
        self.sent: list[tuple[int, bytes, int]] = []
        self.lost: list[int] = []
        self.dropped: list[tuple[str, int]] = []
        self.marks: list[tuple[int, int]] = []
        owners = AllowedIps[int]()
        for peer in range(3):
            for prefix in (f"10.9.{peer}.0/24", f"fd09:{peer}::/32"):
                owners.insert(ip_network(prefix), carriers.pack(peer % WORKERS))
        self.workers: Any = ToWorkers(Loop(), None, PLAIN_OUT, PlainBuilder, Reasons())  # type: ignore[arg-type]
        self.workers._queues += [self._queue(worker) for worker in range(WORKERS)]
        self.counters = Reasons()
        self.packets = Packets(
            self.device.fileno(), self.workers, owners, self.counters,
            lambda bad: self.dropped.append((bad.reason, bad.packets)), lambda error: self.lost.append(error.errno or 0),
            module,
        )  # fmt: skip
        self.packets.cleared = lambda worker, number: self.marks.append((worker, number))
        self.packets.begin(3, header=True)

    def _queue(self, worker: int) -> Any:
        return SimpleNamespace(offer=lambda train, count, _now: self.sent.append((worker, bytes(train), count)))

    def visit(self, given_: list[bytes], now: float) -> None:
        """Reads until the device has no more, as a loop does."""
        for each in given_:
            self.far.send(each)
        for turn in range(100):
            before = len(self.sent)
            self.packets.on_tun(now + turn / 1e6)
            if len(self.sent) == before and not self.workers.alone:
                break

    def written(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.far.recv(1 << 17))
            except BlockingIOError:
                return found

    def state(self) -> list[Any]:
        told = self.counters.take_changed()
        return [self.sent, self.written(), +self.counters, told, self.dropped, self.lost, self.marks, self.workers.last]

    def close(self) -> None:
        self.device.close()
        self.far.close()


@contextmanager
def both(compiled: Any) -> Iterator[tuple[Side, Side]]:
    """Not compiled, then compiled."""
    plain, other = Side(None), Side(compiled)
    assert other.packets._reader is not None
    try:
        yield plain, other
    finally:
        plain.close()
        other.close()
