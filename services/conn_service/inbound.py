"""Takes datagrams from the UDP sockets to the workers and to the gate.

UDP ──▶ transport? ──▶ cipher-in.<n>, n from its receiver index     read only while the pipes have room
    └─▶ Handshakes ──▶ handshake-in                                 sockets and time of their own
"""

import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from conn_service.handshakes import Handshakes
from conn_service.kernel import Kernel
from conn_service.udp import Sockets
from stagewire.control.messages import ConnSettings
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CIPHER_IN, HANDSHAKE_IN
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import CipherBuilder
from stagewire.process.stage import Stage
from stagewire.proto import endpoint as places
from stagewire.proto.index import is_transport, worker_of_datagram, worker_of_run
from stagewire.proto.packets.block import Block

if TYPE_CHECKING:  # it may not be built
    from stagewire.linux.udp_trains import UdpReader


class Inbound:
    """Reads the sockets in use, and sorts what comes. While there are none, the pipes are paused as well."""

    def __init__(self, stage: Stage, kernel: Kernel) -> None:
        compiled = kernel.trains
        self._stage, self._kernel = stage, kernel
        self._udp: Sockets
        """The sockets that are being read, or were last."""
        self._open: list[socket.socket] = []
        make = CipherBuilder if compiled is None else compiled.CipherRoom
        self._workers = ToWorkers(stage.loop, stage.pipes, CIPHER_IN, make, stage.counters)
        self._reader: UdpReader | None = None
        if compiled is not None:
            self._reader = compiled.UdpReader(
                self._workers.builder,
                self._send_in_between,
                self._sort_run,
                lambda data, size, source: self._drop_late(data, size, source, boot_time()),
            )

    def set_up(self) -> None:
        """Opens the pipe to key-service."""
        stage = self._stage
        self._handshakes = Handshakes(stage, stage.pipes.sender(stage.loop, HANDSHAKE_IN), self._stray, self._kernel)

    def configure(self, wanted: ConnSettings, standing: ConnSettings | None) -> None:
        """Connects the workers, and makes a gate for another key."""
        self._workers.connect(wanted.workers)
        self._handshakes.configure(wanted, standing)

    def sent(self, message: bytes, endpoint: bytes, now: float) -> None:
        """Notes a handshake message of ours, so that its answers are let in."""
        self._handshakes.sent(message, endpoint, now)

    @property
    def listening(self) -> bool:
        """Tells whether sockets are being read."""
        return bool(self._open)

    def listen(self, sockets: Sockets) -> None:
        """Reads the sockets from now on."""
        self._udp, self._open = sockets, sockets.all
        for opened in self._open:
            self._stage.loop.add(opened.fileno(), partial(self._on_udp, opened))
        self._handshakes.listen(sockets)
        self._workers.throttle([opened.fileno() for opened in self._open])

    def stop(self) -> None:
        """Leaves all sockets unread."""
        self._handshakes.stop()
        self._workers.throttle([])
        for opened in self._open:
            self._stage.loop.remove(opened.fileno())
        self._open = []

    def _on_udp(self, opened: socket.socket, now: float) -> None:
        """Receives one visit's datagrams into trains, and sends them. hot: bench traffic"""
        workers, reader = self._workers, self._reader
        if reader is None:
            received = self._receive(opened, now)
        else:
            rested = workers.visit(now)
            unix_time = self._udp.wall_clock()
            begun = self._udp.begun
            received, workers.last, workers.alone = reader.visit(
                opened.fileno(), workers.last, len(workers), rested, begun, unix_time - trains.MAX_AGE
            )
            if begun < reader.arrived < unix_time - 0.001:
                workers.age = trains.age_of(reader.arrived, unix_time)
        self._stage.counters["datagrams_in"] += received
        workers.send(now)

    def _receive(self, opened: socket.socket, now: float) -> int:
        """Receives one visit's datagrams into trains. Returns how many."""
        receive, received = self._udp.receive, 0
        workers = self._workers
        rested, train, late = workers.visit(now), workers.builder(workers.last), False
        for _ in range(trains.MAX_PACKETS):
            if train.full:
                break
            room = train.room()
            try:
                length, size, source = receive(opened, room)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error for a datagram of ours
            if late or not received:  # what comes after it in the queue is younger
                waited = self._udp.waited(self._udp.wall_clock())
                late = waited > trains.MAX_AGE
                workers.age = trains.age_of(-waited, 0.0)
            received += (length + size - 1) // size if size else 1
            if late:
                self._drop_late(bytes(room[:length]), size, source, now)
                continue
            worker = worker_of_run(room[:length], size)
            if worker == workers.last:
                train.add(source, size, length)
            else:
                if worker is not None:
                    self._move(worker, bytes(room[:length]), size, source, now)
                else:
                    self._sort(bytes(room[:length]), size, source, now)
                train = workers.builder(workers.last)
            if rested and received == 1:
                workers.alone = True
                break
        return received

    def _send_in_between(self) -> None:
        """Sends all trains, one of which is full, before a visit ends."""
        reader, unix_time = self._reader, time.time()
        if reader is not None and self._udp.begun < reader.arrived:
            self._workers.age = trains.age_of(reader.arrived, unix_time)
        self._workers.send(boot_time())

    def _sort_run(self, data: bytes, size: int, source: bytes) -> int:
        """Sorts a run that isn't for one worker; returns the worker whose train a datagram joined last."""
        self._sort(data, size, source, boot_time())
        return self._workers.last

    def _move(self, worker: int, data: bytes, size: int, source: bytes, now: float) -> None:
        """Copies a run from the train that it was received in to its own worker's train."""
        workers = self._workers
        if worker >= len(workers):
            count, place = (len(data) + size - 1) // size, places.place_of(source)
            self._stage.counters.note("unknown_worker", count, place=place, size=min(size, len(data)))
            return
        workers.last = worker
        train = workers.builder(worker)
        if train.full:
            workers.send(now)
        train.room()[: len(data)] = data
        train.add(source, size, len(data))

    def _sort(self, data: bytes, size: int, source: bytes, now: float) -> None:
        """Sorts a run's datagrams, which belong to several workers or include other messages."""
        for datagram in Block(data, size) if data else [data]:
            if is_transport(datagram):
                self._move(worker_of_datagram(datagram), datagram, len(datagram), source, now)
            else:
                self._on_handshake_in(datagram, source, now)

    def _drop_late(self, data: bytes, size: int, source: bytes, now: float) -> None:
        """Drops transport messages of a queue that this process was too slow to read; handshakes are never too old."""
        for datagram in Block(data, size) if data else [data]:
            if is_transport(datagram):
                place = places.place_of(source)
                self._stage.counters.note("datagram_too_old", place=place, size=len(datagram))
            else:
                self._on_handshake_in(datagram, source, now)

    def _on_handshake_in(self, data: bytes, source: bytes, now: float) -> None:
        if answer := self._handshakes.take(data, source, now):
            with suppress(OSError):
                self._udp.answer(answer, source)

    def _stray(self, datagram: bytes, source: bytes, now: float) -> None:
        """Passes on a transport message that the kernel had merged with a handshake."""
        self._move(worker_of_datagram(datagram), datagram, len(datagram), source, now)
        self._workers.send(now)
