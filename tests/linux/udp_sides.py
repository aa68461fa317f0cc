"""Both halves of conn-service's packets, compiled and not, with real sockets at loopback addresses."""

import math
import socket
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from conn_service import udp
from conn_service.inbound import Inbound
from conn_service.kernel import Kernel
from conn_service.outbound import Outbound
from stagewire.control.socket_door import UDP4, UDP6
from stagewire.pipe import trains
from stagewire.proto.endpoint import Endpoint
from stagewire.reasons import Reasons

WORKERS = 2
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def opened(family: int, port: int = 0) -> socket.socket:
    """A socket as host_service opens it, but at the loopback address."""
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, 8, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    made.bind((HOSTS[socket.AddressFamily(family)], port))
    return made


class Side:
    """A conn-service's packets, compiled or not, with sockets of its own."""

    def __init__(self, module: Any, stack: ExitStack) -> None:
        self.counters = Reasons()
        self.dropped: list[tuple[str, int]] = []
        self.marks: list[str] = []
        self.messages: list[bytes] = []
        loop = SimpleNamespace(pause=lambda _: None, resume=lambda _: None, when_writable=lambda *_: None)
        stage: Any = SimpleNamespace(loop=loop, pipes=None, counters=self.counters, drop=self._drop)
        self.inbound: Any = Inbound(stage, Kernel(module))
        self.outbound: Any = Outbound(stage, module)
        four = opened(socket.AF_INET)
        descriptors = {UDP4: four.detach(), UDP6: opened(socket.AF_INET6).detach()}
        ways: Any = SimpleNamespace(interface=lambda *_: 1, room=lambda *_, **__: None)
        self.sockets = udp.Sockets(descriptors, ways, compiled=module)
        stack.callback(self.sockets.close)
        self.sockets.begun = math.inf  # nothing is too old, however slow this machine is
        self.inbound._udp = self.sockets
        self.inbound._handshakes = SimpleNamespace(  # type: ignore[assignment]
            take=lambda data, *_: self.messages.append(data)
        )
        self.outbound._note_sent = lambda *_: None
        self.outbound._tell = lambda mark: self.marks.append(repr(mark))
        self.outbound.listen(self.sockets)
        self.sent: list[list[tuple[bytes, bytes]]] = [[] for _ in range(WORKERS)]
        self.inbound._workers._queues += [self._queue(found) for found in self.sent]

    def _queue(self, found: list[tuple[bytes, bytes]]) -> Any:
        def offer(train: memoryview, count: int, _now: float) -> None:
            born = trains.HEADER.unpack_from(train)[-1]
            runs = trains.unpack_cipher_untrusted(bytes(train), born)
            assert count == sum(len(block) for _, block in runs)
            found.extend((endpoint, datagram) for endpoint, block in runs for datagram in block)

        return SimpleNamespace(offer=offer)

    def _drop(self, bad: trains.BadTrain) -> None:
        self.dropped.append((bad.reason, bad.packets))

    def receive(self, number: int, now: float = 1000.0) -> None:
        """Receives until a socket has no more, as a loop does."""
        for turn in range(400):
            before = self.counters["datagrams_in"]
            self.inbound._on_udp(self.sockets.all[number], now + turn / 1e6)
            if self.counters["datagrams_in"] == before:
                break

    def state(self) -> list[Any]:
        told = self.counters.take_changed()
        return [self.sent, self.messages, +self.counters, told, self.dropped, self.marks, len(self.outbound._blocked)]


class Far:
    """The sockets that trains are sent to."""

    def __init__(self, stack: ExitStack) -> None:
        self.sockets = [stack.enter_context(opened(family)) for family in (*HOSTS, *HOSTS)]
        self.places = [
            Endpoint(socket.inet_pton(each.family, each.getsockname()[0]), each.getsockname()[1]).pack()
            for each in self.sockets
        ]

    def took(self) -> list[list[bytes]]:
        found: list[list[bytes]] = [[] for _ in self.sockets]
        for number, each in enumerate(self.sockets):
            while True:
                try:
                    found[number].append(each.recv(1 << 16))
                except BlockingIOError:
                    break
        return found
