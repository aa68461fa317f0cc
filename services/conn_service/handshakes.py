"""Passes handshake messages from the network to key-service, around `proto.gate`, beside the transport messages.

They come by sockets of their own where the kernel can sort (`host_service.queues`). Otherwise they come by the sockets for
transport messages, as do those that the kernel merged with transport messages. A visit takes a batch from each socket. Then
all of them rest, so that handshakes take SHARE of this process's time at most, and come together. Meanwhile handshakes wait,
or are lost, in queues of their own.
"""

import secrets
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Final

from conn_service.batch import MOST
from conn_service.kernel import Kernel
from conn_service.udp import Sockets
from stagewire.control.messages import ConnSettings
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.contract import Sender
from stagewire.process.stage import Stage
from stagewire.proto import endpoint as places
from stagewire.proto import gate
from stagewire.proto.admission import Allowance
from stagewire.proto.index import is_transport
from stagewire.proto.packets.block import Block

SHARE: Final = 0.5
"""Part of the time that handshakes take at most."""
GATHER: Final = 0.001
"""s that they rest at least after a visit that left none waiting: a visit costs more than a message."""
TOGETHER: Final = 18
"""Messages that one call sends to key-service, which takes as many in a turn."""
WAIT_INTERVAL: Final = 0.1
"""s between two looks at how long visits waited for a processor."""
STRAYS: Final = 100
"""Handshakes a second that may come merged with transport messages; an honest source needs one now and then."""
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=32xI")
"""The last of its numbers counts what the kernel dropped because the queue was full (SK_MEMINFO_DROPS)."""


class Handshakes:
    """Judges what comes, answers what asks for a cookie, and queues the rest for key-service: proven sources first."""

    def __init__(
        self, stage: Stage, sender: Sender, move: Callable[[bytes, bytes, float], None], kernel: Kernel
    ) -> None:
        """Takes `move`, which passes a transport message and its endpoint on."""
        self._stage = stage
        self._sender = sender
        self._move = move
        self._gate: gate.Gate | None = None
        self._kernel = kernel
        self._batch = kernel.batch()
        self._ready = select.epoll()
        self._udp: Sockets | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._first: deque[bytes] = deque()
        self._later: deque[bytes] = deque()
        self._rests_until: float | None = None
        self._strays = Allowance(STRAYS)
        self._lost: dict[int, int] = {}
        """What the kernel has dropped so far, by descriptor."""
        stage.loop.add_paced(1.0, self._count_lost)
        self._worked = self._took = 0.0
        """s of processor time that visits needed since the last look, and s that passed meanwhile."""
        stage.loop.add_paced(WAIT_INTERVAL, self._note_wait)
        stage.loop.add(self._ready.fileno(), self._on_ready)
        stage.loop.add_timed(self)

    def configure(self, wanted: ConnSettings, standing: ConnSettings | None) -> None:
        """Makes a gate for another key."""
        if standing is None or (standing.public_key, standing.stamped) != (wanted.public_key, wanted.stamped):
            self._gate = gate.Gate(
                wanted.public_key,
                secrets.token_bytes,
                self._stage.counters,
                boot_time(),
                stamped=wanted.stamped,
                macs=self._kernel.macs,
                admits=self._kernel.admits,
            )

    def listen(self, sockets: Sockets) -> None:
        """Reads the sockets for handshakes from now on."""
        self.stop()
        self._udp = sockets
        for opened in sockets.queues:
            self._sockets[opened.fileno()] = opened
            self._lost[opened.fileno()] = _lost(opened)
            self._ready.register(opened.fileno(), select.EPOLLIN)

    def stop(self) -> None:
        """Leaves all sockets unread."""
        for descriptor in self._sockets:
            self._ready.unregister(descriptor)
        self._sockets.clear()
        self._lost.clear()
        self._udp = None

    # --- in ------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns when the rest ends."""
        return self._rests_until

    def act(self, _now: float) -> None:
        """Ends the rest."""
        self._rests_until = None
        self._stage.loop.resume(self._ready.fileno())

    def _on_ready(self, now: float) -> None:
        # Not the clock alone: while the machine is busy, most of that would be others' time.
        begun, begun_at = time.thread_time(), boot_time()
        ready = self._ready.poll(0)
        most = max(1, MOST // max(1, len(ready)))
        more = False
        for descriptor, _ in ready:
            more |= self._visit(self._sockets[descriptor], most, now) == most
        self._pass_on(now)
        self._stage.loop.pause(self._ready.fileno())
        worked, over = time.thread_time() - begun, boot_time()
        self._worked, self._took = self._worked + worked, self._took + over - begun_at
        rest = worked * (1 / SHARE - 1)
        self._rests_until = over + (rest if more else max(rest, GATHER))

    def _visit(self, opened: socket.socket, most: int, now: float) -> int:
        """Takes a batch; returns the number of datagrams and runs in it. hot: bench handshakes"""
        assert self._gate is not None  # noqa: S101 - the sockets are read after it is made
        assert self._udp is not None  # noqa: S101
        received, waiting = 0, False
        batch, judge, reaches = self._batch, self._gate.judge_untrusted, self._udp.reaches
        arrivals = batch.receive(opened, most)
        for number, (data, size, source) in enumerate(arrivals):
            for datagram in (data,) if len(data) <= size else Block(data, size):
                received += 1
                if is_transport(datagram):
                    self._move(datagram, batch.endpoint(number), now)
                    continue
                verdict, answer = judge(datagram, source, now, known=reaches(source))
                if answer:
                    batch.answer(number, answer)
                    waiting = True
                elif verdict:
                    self._queue(datagram, batch.endpoint(number), now, first=verdict == gate.PASS_FIRST)
        self._stage.counters["datagrams_in"] += received
        if waiting:
            batch.send(opened)
        return len(arrivals)

    def take(self, datagram: bytes, endpoint: bytes, now: float) -> bytes:
        """Takes a message that came by a socket for transport messages. Returns an answer or nothing.

        It costs time of theirs. An attacker can have the kernel merge handshakes with them, so STRAYS bounds how many count.
        """
        if self._sockets and not self._strays.spend(now):
            self._stage.counters.note("handshake_merged", place=places.place_of(endpoint), size=len(datagram))
            return b""
        assert self._gate is not None  # noqa: S101 - the sockets are read after it is made
        assert self._udp is not None  # noqa: S101
        place = places.place_of(endpoint)
        verdict, answer = self._gate.judge_untrusted(datagram, place, now, known=self._udp.reaches(place))
        if verdict:
            self._queue(datagram, endpoint, now, first=verdict == gate.PASS_FIRST)
            self._pass_on(now)
        return answer

    def _note_wait(self, now: float) -> None:
        """Tells the gate how far other work keeps this process from a processor: a visit itself never waits."""
        if self._gate is not None and self._took:
            self._gate.note_wait(1 - self._worked / self._took, now)
        self._worked = self._took = 0.0

    def _count_lost(self, _now: float) -> None:
        for descriptor, opened in self._sockets.items():
            lost = _lost(opened)
            self._stage.counters["handshake_overflow"] += (lost - self._lost[descriptor]) & 0xFFFFFFFF
            self._lost[descriptor] = lost

    # --- to key-service ------------------------------------------------------------------------------------

    def _queue(self, datagram: bytes, endpoint: bytes, now: float, *, first: bool) -> None:
        if len(self._first) + len(self._later) >= gate.QUEUE_LIMIT:
            self._stage.counters.note("key_full", place=places.place_of(endpoint), size=len(datagram))
            return
        (self._first if first else self._later).append(trains.pack_handshake(endpoint, datagram, now))
        self._note_queue()

    def _note_queue(self) -> None:
        if self._gate is not None:
            self._gate.note_queue(len(self._first) + len(self._later))

    def _pass_on(self, _now: float) -> None:
        for queue in (self._first, self._later):
            while queue:
                taken = self._sender.send_each(list(islice(queue, TOGETHER)))
                if not taken:
                    self._sender.when_room(self._pass_on)
                    self._note_queue()
                    return
                for _ in range(taken):
                    queue.popleft()
        self._note_queue()
        self._sender.when_room(None)

    # --- out -----------------------------------------------------------------------------------------------

    def sent(self, message: bytes, endpoint: bytes, now: float) -> None:
        """Notes a message of ours, so that its answers are let in."""
        if self._gate is not None:
            self._gate.note_sent(message, places.place_of(endpoint), now)


def _lost(opened: socket.socket) -> int:
    with suppress(OSError, struct.error):  # an older kernel doesn't say
        return int(_MEMINFO.unpack(opened.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[0])
    return 0
