"""Passes datagrams between the UDP sockets and the other stages, around `proto.gate`.

UDP ──▶ transport? ──▶ cipher-in.<n>, n from its receiver index     read only while the pipes have room
    └─▶ Handshakes ──▶ handshake-in                                 sockets and time of their own
cipher-out    ──▶ UDP                                               read only while the sockets have room
handshake-out ──▶ UDP
"""

import errno
import math
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from conn_service import udp
from conn_service.egress import Egress
from conn_service.handshakes import Handshakes
from conn_service.nesting import Nesting, Undecided
from stagewire.control.chains import Chain, ChainsChanged
from stagewire.control.confirm import Cleared, Confirm, Confirmed
from stagewire.control.messages import (
    ConnSettings,
    Hello,
    LiveSessions,
    SnapshotEnd,
    ToConn,
    Welcome,
)
from stagewire.control.socket_door import TUNNEL, SocketsTaker
from stagewire.linux.uids import Place
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame, Handler
from stagewire.pipe.names import CIPHER_IN, CIPHER_OUT, HANDSHAKE_IN, HANDSHAKE_OUT, SOCKETS
from stagewire.pipe.speakers import speaks_for
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import CipherBuilder
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage
from stagewire.proto import endpoint as places
from stagewire.proto.index import is_transport, worker_of_datagram, worker_of_run
from stagewire.proto.packets.block import Block

if TYPE_CHECKING:  # it may not be built
    from stagewire.linux.udp_trains import UdpReader, UdpWriter, Unsent


class ConnService:
    """Serves the UDP side of one interface."""

    def __init__(self, stage: Stage, kernel: tuple[Any, str] = (None, "")) -> None:
        """Takes what `rule.load` says of `linux.udp_trains`; by default, Python does all work."""
        self._stage = stage
        self._compiled, self._kernel = kernel
        self._settings: ConnSettings | None = None
        self._version: int | None = None
        """Version of a whole snapshot that isn't yet in force here; None without."""
        self._given: udp.Sockets | None = None
        self._udp: udp.Sockets
        """`_given`, once they are in use."""
        self._open: list[socket.socket] = []
        """The sockets that are being read. While there are none, the pipes to the network are paused as well."""
        make = CipherBuilder if self._compiled is None else self._compiled.CipherRoom
        self._workers = ToWorkers(stage.loop, stage.pipes, CIPHER_IN, make, stage.counters)
        self._reader: UdpReader | None = None
        if self._compiled is not None:
            self._reader = self._compiled.UdpReader(
                self._workers.builder,
                self._send_in_between,
                self._sort_run,
                lambda data, size, source: self._drop_late(data, size, source, boot_time()),
            )
        self._writer: UdpWriter | None = None
        self._blocked: deque[tuple[bytes, Sequence[bytes], float]] = deque()
        """What a full socket has no room for, each with its birth (s)."""
        self._born = math.inf
        """When the datagrams that are being sent were born (s); infinite for those that are never too old."""
        self._marks: list[Cleared] = []
        """Marks behind `_blocked`."""

    def set_up(self) -> None:
        """Opens the pipes. Takes the sockets that the holder before us handed down, and later those of host-service."""
        stage, pipes = self._stage, self._stage.pipes
        self._line = ControlLine(stage, self)
        self._egress = Egress(stage.loop, stage.environment.interface, self._on_routes)
        self._nesting = Nesting(self._egress, self._line.say, self._send)
        self._handshake_out = pipes.receiver(stage.loop, HANDSHAKE_OUT, self._on_handshake_out, stage.drop).source
        self._cipher_out = pipes.receiver(
            stage.loop, CIPHER_OUT, self._on_cipher_out, stage.drop, of_place=self._from_place
        ).source
        self._handshakes = Handshakes(stage, pipes.sender(stage.loop, HANDSHAKE_IN), self._stray)
        self._pause_sending()
        inherited: dict[str, int] = {name: stage.inherited.pop(name) for name in TUNNEL if name in stage.inherited}
        if inherited:
            self._on_given(inherited, boot_time())
        self._line.recall(boot_time())
        path = pipes.path(SOCKETS)
        SocketsTaker(stage.loop, path, lambda: self._given.descriptors if self._given else {}, self._on_given)

    # --- in ------------------------------------------------------------------------------------------------

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

    # --- out -----------------------------------------------------------------------------------------------

    def _on_handshake_out(self, frames: Sequence[Frame], now: float) -> None:
        self._born = math.inf
        for data, start, end in frames:
            try:
                endpoint, message = trains.unpack_handshake_untrusted(data, now, start, end)
            except trains.BadTrain as bad:
                self._stage.drop(bad)
                continue
            self._handshakes.sent(message, endpoint, now)
            self._send(endpoint, [message])

    def _from_place(self, place: Place | None) -> Handler:
        return partial(self._on_cipher_out, speaker=place)

    def _on_cipher_out(self, frames: Sequence[Frame], now: float, speaker: Place | None = None) -> None:
        writer, taken = self._writer, False
        for data, start, end in frames:
            if writer is not None and not self._blocked and writer.take(data, start, end, now, trains.MAX_AGE):
                taken = True
                continue
            if writer is not None and taken:
                self._send_trains(writer)
                taken = False
            try:
                lone = trains.lone_run_untrusted(data, now, start, end)
                runs: Sequence[tuple[bytes, Sequence[bytes]]] = (
                    [(lone[0], [lone[1]])]
                    if lone is not None
                    else trains.unpack_cipher_untrusted(data, now, start, end)
                )
            except trains.BadTrain as bad:
                mark = trains.mark_untrusted(data, start, end)
                if mark is not None and speaks_for(speaker, mark[0]):
                    self._marks.append(Cleared(*mark))
                    self._tell_marks()
                elif bad.reason == "train_too_old":
                    self._drop_train(data, start, end)
                else:
                    self._stage.drop(bad)
                continue
            self._born = trains.born_of(data, start)
            for endpoint, datagrams in runs:
                self._send(endpoint, datagrams)
        if writer is not None and taken:
            self._send_trains(writer)

    def _send_trains(self, writer: "UdpWriter") -> None:
        """Sends all runs that a writer took; those that it can't send go one by one."""
        whole, in_pieces = self._udp.whole, self._udp.in_pieces
        while True:
            sent, odd = writer.send(whole, in_pieces)
            self._stage.counters["datagrams_out"] += sent
            if odd is None:
                return
            self._send_odd(odd)
            if self._blocked:
                for each in writer.rest():
                    self._send_odd(each)
                return

    def _send_odd(self, odd: "Unsent") -> None:
        endpoint, data, size, self._born = odd
        self._send(endpoint, Block(data, size))

    def _send(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        if self._blocked:
            self._keep(endpoint, datagrams)
            return
        if isinstance(datagrams, Block) and len(datagrams) > 1 and self._udp.goes_whole(datagrams.size, endpoint):
            try:
                self._udp.send_run(datagrams, endpoint)
            except BlockingIOError:
                self._hold(endpoint, datagrams)
            except Undecided:
                self._await_chain(endpoint, datagrams)
            except OSError:
                # The kernel may refuse the run or the endpoint; sending one by one shows which.
                if self._send_each(endpoint, datagrams):
                    self._udp.send_in_pieces(datagrams.size, endpoint)
                    self._stage.counters["runs_in_pieces"] += 1
            else:
                self._stage.counters["datagrams_out"] += len(datagrams)
            return
        self._send_each(endpoint, datagrams)

    def _send_each(self, endpoint: bytes, datagrams: Sequence[bytes]) -> bool:
        """Sends datagrams one by one. Returns False if the kernel refused any."""
        send, sent, refused = self._udp.send, 0, False
        for position, datagram in enumerate(datagrams):
            try:
                send(datagram, endpoint)
                sent += 1
            except BlockingIOError:
                self._hold(endpoint, datagrams[position:])
                break
            except Undecided:
                self._await_chain(endpoint, datagrams[position:])
                break
            except OSError as error:
                endpoint, refused = self._after_error(error, datagram, endpoint), True
        self._stage.counters["datagrams_out"] += sent
        return not refused

    def _after_error(self, error: OSError, datagram: bytes, endpoint: bytes) -> bytes:
        """Sends again from an address that the routing table chooses, if ours is gone; otherwise counts a loss.

        Returns the endpoint for the datagrams after it.
        """
        if error.errno in udp.STALE_SOURCE and endpoint != places.without_source(endpoint):
            named, endpoint = endpoint, places.without_source(endpoint)
            with suppress(OSError):
                self._udp.send(datagram, endpoint)
                self._udp.forget_source(named)
                self._stage.counters["datagrams_out"] += 1
                return endpoint
        self._stage.counters.note(
            "endpoint_in_own_tunnel" if error.errno == errno.ELOOP else "send_failed",
            place=places.place_of(endpoint),
            size=len(datagram),
        )
        return endpoint

    def _await_chain(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        for lost, dropped in self._nesting.wait(endpoint, _kept(datagrams), boot_time()):
            place, size = places.place_of(lost), len(dropped[0])
            self._stage.counters.note("send_failed", len(dropped), place=place, size=size)

    def _on_routes(self) -> None:
        self._nesting.routes_changed()
        if self._open:
            self._udp.routes_changed()

    def _hold(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        self._keep(endpoint, datagrams)
        self._pause_sending()
        opened = self._udp.socket_of(endpoint)
        self._stage.loop.when_writable(opened.fileno(), partial(self._on_room, opened))

    def _keep(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        self._blocked.append((endpoint, _kept(datagrams), self._born))

    def _on_room(self, opened: socket.socket, now: float) -> None:
        waiting, self._blocked = self._blocked, deque()
        self._stage.loop.when_writable(opened.fileno(), None)
        self._resume_sending()
        for endpoint, datagrams, self._born in waiting:
            if now - self._born <= trains.MAX_AGE:
                self._send(endpoint, datagrams)
            else:
                self._drop_old(endpoint, datagrams)
        self._tell_marks()

    def _drop_train(self, data: trains.Data, start: int, end: int) -> None:
        try:
            for endpoint, datagrams in trains.unpack_cipher_untrusted(bytes(data[start:end]), -math.inf):
                self._drop_old(endpoint, datagrams)
        except trains.BadTrain as bad:  # its sender changes it meanwhile
            self._stage.drop(bad)

    def _drop_old(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        place, size = places.place_of(endpoint), len(datagrams[0])
        self._stage.counters.note("train_too_old", len(datagrams), place=place, size=size)

    def _tell_marks(self) -> None:
        """Tells key-service of the marks, once all before them has left."""
        while self._marks and not self._blocked:
            self._line.say(self._marks.pop(0))

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> list[Hello | LiveSessions]:
        return [replace(self._stage.hello(), kernel=self._kernel)]

    def on_control(self, message: ToConn, now: float) -> None:
        match message:
            case Welcome():
                self._version = None
                self._nesting.start_anew()
                self._look_anew()
            case Chain():
                self._born = now
                self._nesting.on_chain(message, now)
            case ChainsChanged():
                self._nesting.forget_chains()
                self._look_anew()
            case ConnSettings():
                self._configure(message)
                self._begin()
            case SnapshotEnd(version=version):
                self._version = version
                self._begin()
            case Confirm(number=number):
                self._line.say(Confirmed(number))
            case _:
                assert_never(message)

    def _look_anew(self) -> None:
        if self._given is not None:
            self._given.routes_changed()

    def _configure(self, wanted: ConnSettings) -> None:
        standing = self._settings
        self._workers.connect(wanted.workers)
        self._handshakes.configure(wanted, standing)
        self._settings = wanted

    def _on_given(self, descriptors: dict[str, int], _now: float) -> None:
        """Takes new sockets into use, or the new mark of the same ones."""
        try:
            offload = self._stage.environment.offload
            given = udp.Sockets(descriptors, self._nesting, offload=offload, compiled=self._compiled)
        except OSError as error:
            self._stage.log.warning("sockets refused", reason=str(error))
            return
        if self._given is not None and self._given.are(given.descriptors):
            given.close()
            self._given.mark_changed()
            return
        self._stop_listening()
        if self._given is not None:
            self._given.close()
        self._given = given
        self._stage.bequest.leave(given.descriptors)
        self._begin()

    def _begin(self) -> None:
        """Starts to read and send, as soon as both the sockets and the settings are there."""
        if self._given is None or self._settings is None:
            return
        self._listen(self._given)
        if self._version is not None:
            self._line.applied(self._version)
            self._version = None

    def _listen(self, sockets: udp.Sockets) -> None:
        if self._open:
            return
        loop = self._stage.loop
        self._udp, self._open = sockets, sockets.all
        if self._compiled is not None:
            self._writer = self._compiled.UdpWriter(sockets.ready)
        for opened in self._open:
            loop.add(opened.fileno(), partial(self._on_udp, opened))
        self._handshakes.listen(sockets)
        self._workers.throttle([opened.fileno() for opened in self._open])
        self._resume_sending()
        self._stage.log.info("listening", port=sockets.port, families=len(self._open))

    def _stop_listening(self) -> None:
        if not self._open:
            return
        loop = self._stage.loop
        self._pause_sending()
        self._handshakes.stop()
        self._workers.throttle([])
        for opened in self._open:
            loop.remove(opened.fileno())
        self._open = []
        if self._blocked:
            self._blocked.clear()
            self._resume_sending()
            self._tell_marks()

    def _pause_sending(self) -> None:
        for pipe in (self._handshake_out, self._cipher_out):
            self._stage.loop.pause(pipe)

    def _resume_sending(self) -> None:
        for pipe in (self._handshake_out, self._cipher_out):
            self._stage.loop.resume(pipe)


def _kept(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    """Copies a run out of its train: the sender reuses the train's memory after this visit."""
    return Block(bytes(datagrams.data), datagrams.size) if isinstance(datagrams, Block) else datagrams
