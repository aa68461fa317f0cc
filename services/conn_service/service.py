"""The shell around `proto.gate`.

UDP ──▶ transport? ──▶ cipher-in.<n>, n from its receiver index     read only while the pipes have room
    └─▶ Gate ────────▶ handshake-in (through a queue: its length is the load)
cipher-out    ──▶ UDP                                               read only while the sockets have room
handshake-out ──▶ UDP
"""

import errno
import secrets
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from conn_service import udp
from conn_service.egress import Egress
from conn_service.names import Resolver
from stagewire.ipc import endpoints, trains
from stagewire.ipc.control import ConnSettings, FromKey, Hello, Listening, Resolve, SnapshotEnd, Welcome
from stagewire.ipc.frames import CipherFrame
from stagewire.ipc.loop import boot_time
from stagewire.ipc.outlet import Outlet
from stagewire.ipc.stage import ControlLine, Stage
from stagewire.ipc.zmtp import Frame
from stagewire.proto import endpoint as places
from stagewire.proto import gate, steer
from stagewire.proto.offload.block import Block

WORKER_PATIENCE = 0.15
"""s that a worker may take nothing before its packets are dropped for it; less hits one that got no CPU."""
BIND_RETRY = 1.0
BIND_SOON = 0.05
"""s between attempts in the first second: who was at work before us may still be closing its sockets."""


class ConnService:
    """The UDP side of one interface."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._settings: ConnSettings | None = None
        self._wanted: ConnSettings | None = None
        self._in_snapshot = False
        self._version = 0
        self._gate: gate.Gate | None = None
        self._udp: udp.Sockets
        self._inherited = stage.inherited
        """The sockets of the conn-service before us, until we know what is wanted."""
        self._open: list[socket.socket] = []
        """Those that are being read; while there are none, nothing is taken to be sent either."""
        self._workers: list[Outlet] = []
        self._queue: deque[bytes] = deque()
        self._blocked: deque[tuple[bytes, Sequence[bytes]]] = deque()
        self._frames: dict[int, CipherFrame] = {}
        self._last = 0
        """The worker whose train the last datagrams joined; the next ones are received where they will most likely stay."""
        self._visited = 0.0
        self._alone = False
        """Whether the last visit took one datagram and didn't look for another; the next one does."""
        self._retry: float | None = None
        self._began = boot_time()

    def set_up(self) -> None:
        """Opens the pipes. The sockets are opened when key-service says where."""
        stage, pipes = self._stage, self._stage.pipes
        self._line = ControlLine(stage, self)
        self._resolver = Resolver(stage.loop, self._line.say)
        self._egress = Egress(stage.loop, stage.environment.interface, self._on_routes)
        self._handshake_out = pipes.inlet(
            stage.loop, endpoints.HANDSHAKE_OUT, self._on_handshake_out, stage.drop
        ).source
        self._cipher_out = pipes.inlet(stage.loop, endpoints.CIPHER_OUT, self._on_cipher_out, stage.drop).source
        self._handshake_in = pipes.line(stage.loop, endpoints.HANDSHAKE_IN)
        self._pause_sending()
        stage.loop.add_timed(self)
        now = boot_time()
        if self._line.recall(now) and self._wanted is not None and self._inherited:
            self._try(self._wanted, now)

    # --- in ------------------------------------------------------------------------------------------------

    def _on_udp(self, opened: socket.socket, now: float) -> None:
        """Hot: beside `Sockets.receive`, 1.5 us for a datagram and 4 us for a run."""
        receive, received = self._udp.receive, 0
        rested, self._visited = now > self._visited + trains.REST and not self._alone, now
        self._alone = False
        for _ in range(trains.MAX_PACKETS):
            frame = self._frame(self._last)
            if frame.full:
                break
            room = frame.room()
            try:
                length, size, source = receive(opened, room)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error that belongs to something we sent
            received += (length + size - 1) // size if size else 1
            worker = steer.worker_of_run(room[:length], size)
            if worker == self._last:
                frame.add(source, size, length)
            elif worker is not None:
                self._move(worker, bytes(room[:length]), size, source, now)
            else:
                self._sort(bytes(room[:length]), size, source, now)
            if rested and received == 1:
                self._alone = True
                break
        self._stage.counters["datagrams_in"] += received
        self._pass_trains(now)

    def _frame(self, worker: int) -> CipherFrame:
        frame = self._frames.get(worker)
        if frame is None:
            frame = self._frames[worker] = CipherFrame()
        return frame

    def _move(self, worker: int, data: bytes, size: int, source: bytes, now: float) -> None:
        """To another worker's train than it was received in."""
        if worker >= len(self._workers):
            self._stage.counters["unknown_worker"] += (len(data) + size - 1) // size
            return
        self._last = worker
        frame = self._frame(worker)
        if frame.full:
            self._pass_trains(now)
        frame.room()[: len(data)] = data
        frame.add(source, size, len(data))

    def _sort(self, data: bytes, size: int, source: bytes, now: float) -> None:
        """A run in which not all are for one worker, or something that is no transport message."""
        for datagram in Block(data, size) if data else [data]:
            if steer.is_transport(datagram):
                self._move(steer.worker_of_datagram(datagram), datagram, len(datagram), source, now)
            else:
                self._on_handshake_in(datagram, source, now)

    def _pass_trains(self, now: float) -> None:
        for worker, frame in self._frames.items():
            count = frame.count
            if count and worker < len(self._workers):
                self._workers[worker].offer(frame.finish(now), count, now)

    def _on_handshake_in(self, data: bytes, source: bytes, now: float) -> None:
        assert self._gate is not None  # noqa: S101 - the sockets are opened after it is made
        passed, answer = self._gate.judge_untrusted(data, places.unpack_untrusted(source), now)
        if answer:
            with suppress(OSError):
                self._udp.answer(answer, source)
        if not passed:
            return
        if len(self._queue) >= gate.QUEUE_LIMIT:
            self._stage.counters["key_full"] += 1
            return
        self._queue.append(trains.pack_handshake(source, data, now))
        self._gate.note_queue(len(self._queue), now)
        self._pass_on(now)

    def _pass_on(self, _now: float) -> None:
        while self._queue:
            if not self._handshake_in.send(self._queue[0]):
                self._handshake_in.when_room(self._pass_on)
                return
            self._queue.popleft()
        self._handshake_in.when_room(None)

    # --- out -----------------------------------------------------------------------------------------------

    def _on_handshake_out(self, frames: Sequence[Frame], now: float) -> None:
        for data, start, end in frames:
            try:
                endpoint, message = trains.unpack_handshake_untrusted(data, now, start, end)
            except trains.BadTrain as bad:
                self._stage.drop(bad)
                continue
            self._send(endpoint, [message])

    def _on_cipher_out(self, frames: Sequence[Frame], now: float) -> None:
        for data, start, end in frames:
            try:
                if (lone := trains.lone_run_untrusted(data, now, start, end)) is not None:
                    self._send(lone[0], [lone[1]])
                    continue
                runs = trains.unpack_cipher_untrusted(data, now, start, end)
            except trains.BadTrain as bad:
                self._stage.drop(bad)  # too old, mostly
                continue
            for endpoint, datagrams in runs:
                self._send(endpoint, datagrams)

    def _send(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        if self._blocked:
            self._keep(endpoint, datagrams)
            return
        if isinstance(datagrams, Block) and len(datagrams) > 1 and self._udp.goes_whole(datagrams.size, endpoint):
            try:
                self._udp.send_run(datagrams, endpoint)
            except BlockingIOError:
                self._hold(endpoint, datagrams)
            except OSError:
                # Whether it was the run, or the place: one by one, we shall see.
                if self._send_each(endpoint, datagrams):
                    self._udp.send_in_pieces(datagrams.size, endpoint)
                    self._stage.counters["runs_in_pieces"] += 1
            else:
                self._stage.counters["datagrams_out"] += len(datagrams)
            return
        self._send_each(endpoint, datagrams)

    def _send_each(self, endpoint: bytes, datagrams: Sequence[bytes]) -> bool:
        """Sends one by one; whether none was refused."""
        send, sent, refused = self._udp.send, 0, False
        for position, datagram in enumerate(datagrams):
            try:
                send(datagram, endpoint)
                sent += 1
            except BlockingIOError:
                self._hold(endpoint, datagrams[position:])
                break
            except OSError as error:
                endpoint, refused = self._after_error(error, datagram, endpoint), True
        self._stage.counters["datagrams_out"] += sent
        return not refused

    def _after_error(self, error: OSError, datagram: bytes, endpoint: bytes) -> bytes:
        """Once more from whatever address the routing table says, if ours is gone; otherwise it is lost."""
        if error.errno in udp.STALE_SOURCE and endpoint != places.without_source(endpoint):
            named, endpoint = endpoint, places.without_source(endpoint)
            with suppress(OSError):
                self._udp.send(datagram, endpoint)
                self._udp.forget_source(named)
                self._stage.counters["datagrams_out"] += 1
                return endpoint
        self._stage.counters["send_failed"] += 1
        return endpoint

    def _on_routes(self) -> None:
        if self._open:
            self._udp.routes_changed()

    def _hold(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        self._keep(endpoint, datagrams)
        self._stage.loop.pause(self._cipher_out)
        opened = self._udp.socket_of(endpoint)
        self._stage.loop.when_writable(opened.fileno(), partial(self._on_room, opened))

    def _keep(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        """A train's memory is its sender's again when it has been dealt with."""
        if isinstance(datagrams, Block):
            datagrams = Block(bytes(datagrams.data), datagrams.size)
        self._blocked.append((endpoint, datagrams))

    def _on_room(self, opened: socket.socket, _now: float) -> None:
        waiting, self._blocked = self._blocked, deque()
        self._stage.loop.when_writable(opened.fileno(), None)
        self._stage.loop.resume(self._cipher_out)
        for endpoint, datagrams in waiting:
            self._send(endpoint, datagrams)

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """The plain one."""
        return self._stage.hello()

    def on_control(self, message: FromKey, now: float) -> None:
        """One message from key-service."""
        match message:
            case Welcome():
                self._in_snapshot = True
            case ConnSettings():
                self._wanted = message
                if not self._in_snapshot:
                    self._try(message, now)
            case SnapshotEnd(version=version):
                self._in_snapshot = False
                self._version = version
                self.act(now)
            case Resolve():
                self._resolver.ask(message)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def act(self, now: float) -> None:
        """Does as the snapshot says; what can't be done is tried again."""
        if self._wanted is None:
            return
        fault = self._try(self._wanted, now)
        self._stage.set_fault(fault)
        self._retry = now + (BIND_SOON if now < self._began + 1.0 else BIND_RETRY) if fault else None
        if not fault:
            self._line.applied(self._version)

    def _try(self, wanted: ConnSettings, _now: float) -> str:
        """Does as key-service says and tells it what came of it; what was open stays open if that can't be done."""
        standing = self._settings
        self._connect_workers(wanted.workers)
        try:
            self._set_sockets(wanted)
        except OSError as error:
            self._line.say(Listening(self._udp.port if self._open else 0, error.errno or errno.EIO, wanted.request))
            return self._explain(error, wanted)
        if standing is None or (standing.public_key, standing.stamped) != (wanted.public_key, wanted.stamped):
            self._gate = gate.Gate(wanted.public_key, secrets.token_bytes, self._stage.counters, stamped=wanted.stamped)
        self._settings = wanted
        self._listen()
        self._line.say(Listening(self._udp.port, 0, wanted.request))
        return ""

    @staticmethod
    def _explain(error: OSError, wanted: ConnSettings) -> str:
        if error.errno == errno.EADDRINUSE:
            return f"UDP port {wanted.listen_port} is taken by another program; choose another ListenPort or stop it"
        return f"UDP port {wanted.listen_port} cannot be opened: {error.strerror}"

    def _set_sockets(self, wanted: ConnSettings) -> None:
        """Opens the port that is wanted, or keeps the one that is open if it will do. Raises OSError."""
        standing = self._settings
        if self._open and standing is not None:
            same = wanted.listen_port in {standing.listen_port, self._udp.port}
            if same:
                if wanted.fwmark != standing.fwmark:
                    self._udp.set_mark(wanted.fwmark)
                return
        inherited, self._inherited = self._inherited, {}
        fresh = udp.Sockets(
            wanted.listen_port,
            wanted.fwmark,
            self._egress,
            inherited,
            offload=self._stage.environment.offload,
        )
        self._close_sockets()
        self._udp = fresh
        self._stage.bequest.leave(fresh.descriptors)

    def _listen(self) -> None:
        """Reads the sockets, from when there is a gate before them and workers behind."""
        if self._open:
            return
        loop = self._stage.loop
        self._open = self._udp.all
        for opened in self._open:
            loop.add(opened.fileno(), partial(self._on_udp, opened))
        for outlet in self._workers:
            outlet.throttle([opened.fileno() for opened in self._open])
        for pipe in (self._handshake_out, self._cipher_out):
            loop.resume(pipe)
        self._stage.log.info("listening", port=self._udp.port, families=len(self._open))

    def _close_sockets(self) -> None:
        if not self._open:
            return
        loop = self._stage.loop
        self._pause_sending()
        for outlet in self._workers:
            outlet.throttle([])
        for opened in self._open:
            loop.remove(opened.fileno())
        self._udp.close()
        self._open = []
        if self._blocked:
            self._blocked.clear()
            loop.resume(self._cipher_out)

    def _pause_sending(self) -> None:
        for pipe in (self._handshake_out, self._cipher_out):
            self._stage.loop.pause(pipe)

    def _connect_workers(self, workers: int) -> None:
        """To so many; what waits for those that stay, goes on waiting."""
        while len(self._workers) > workers:
            self._workers.pop().close()
        first = not self._workers  # those that come later have to be started, and what is for them until then is old
        self._workers += [
            Outlet(
                self._stage.loop,
                self._stage.pipes.line(self._stage.loop, endpoints.CIPHER_IN, number),
                self._stage.counters,
                "worker_full",
                [opened.fileno() for opened in self._open],
                WORKER_PATIENCE,
                expected=first,
            )
            for number in range(len(self._workers), workers)
        ]

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When to try to open the sockets again."""
        return self._retry
