"""The shell around the TUN device.

TUN      ──▶ destination -> worker by longest prefix ──▶ plain-out.<n>    read only while the pipes have room
         └─▶ nobody's: an ICMP unreachable, back into the TUN
plain-in ──▶ TUN
"""

import os
from collections import Counter
from ipaddress import ip_network

import zmq

from stagewire import privileges
from stagewire.ipc import endpoints, trains
from stagewire.ipc.control import FromKey, Hello, Routes, SnapshotEnd, TunSettings, Welcome
from stagewire.ipc.outlet import Outlet
from stagewire.ipc.stage import ControlLine, Stage
from stagewire.proto import ip
from stagewire.proto.allowed_ips import AllowedIps
from tun_service import network, tun

WORKER_PATIENCE = 0.15
"""s that a worker may take nothing before its packets are dropped for it; less hits one that got no CPU."""
TRAINS_PER_TURN = 4
RETRY = 1.0
MAX_TRAIN_BYTES = 64 * 1024


class TunService:
    """The OS side of one interface."""

    def __init__(self, stage: Stage, clone: int) -> None:
        self._stage = stage
        self._tun = clone
        self._attached = False
        self._version = 0
        self._pending: TunSettings | None = None
        self._settings: TunSettings | None = None
        self._pending_routes: list[tuple[network.Network, int]] = []
        self._owners: AllowedIps[int] = AllowedIps()
        self._workers: list[Outlet] = []
        self._retry: float | None = None

    def set_up(self) -> None:
        """Opens the pipes, and the device if nobody else has it."""
        stage = self._stage
        self._line = ControlLine(stage, self)
        self._plain_in = stage.pipes.bind(zmq.PULL, endpoints.PLAIN_IN)
        stage.loop.add(self._plain_in, self._on_plain_in)
        stage.loop.add_timed(self)

    # --- packets -------------------------------------------------------------------------------------------

    def _on_tun(self, now: float) -> None:
        """Hot: 1.6 us per packet for the read, 0.5 us for the worker."""
        counters = self._stage.counters
        packets: dict[int, list[bytes]] = {}
        read, lookup, clone = os.read, self._owners.lookup, self._tun
        taken = size = 0
        while taken < trains.MAX_PACKETS and size < MAX_TRAIN_BYTES:
            try:
                packet = read(clone, tun.MAX_PACKET)
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(error)
                return
            taken += 1
            size += len(packet)
            destination = ip.destination(packet)
            worker = lookup(destination) if destination is not None else None
            if worker is not None:
                train = packets.get(worker)
                if train is None:
                    packets[worker] = [packet]
                else:
                    train.append(packet)
            elif destination is None:
                counters["outbound_malformed"] += 1
            else:
                self._refuse(packet)
        counters["tun_packets_in"] += taken
        for worker, train in packets.items():
            self._workers[worker].offer(trains.pack_plain(train, now), len(train), now)

    def _refuse(self, packet: bytes) -> None:
        self._stage.counters["no_peer"] += 1
        unreachable = ip.unreachable(packet)
        if unreachable is not None:
            self._write([unreachable])

    def _on_plain_in(self, now: float) -> None:
        for _ in range(TRAINS_PER_TURN):
            try:
                packets = trains.unpack_plain_untrusted(self._plain_in.recv(zmq.DONTWAIT), now)
            except zmq.Again:
                return
            except trains.BadTrain as bad:
                self._stage.counters[bad.reason] += 1
                continue
            self._write(packets)

    def _write(self, packets: list[bytes]) -> None:
        counters: Counter[str] = self._stage.counters
        write, clone = os.write, self._tun
        for packet in packets:
            try:
                write(clone, packet)
            except OSError:
                counters["tun_write_failed"] += 1
            else:
                counters["tun_packets_out"] += 1

    def _lost(self, error: OSError) -> None:
        # A descriptor of /dev/net/tun can't be attached twice, and as ourselves we can't open another.
        self._stage.log.error("TUN device lost", reason=error.strerror)
        self._stage.loop.stop()

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """The plain one."""
        return self._stage.hello()

    def on_control(self, message: FromKey, now: float) -> None:
        """One message from key-service."""
        match message:
            case Welcome():
                self._pending, self._pending_routes = None, []
            case TunSettings():
                self._pending = message
            case Routes():
                for route in message.routes:
                    self._pending_routes += [(ip_network(prefix), route.worker) for prefix in route.prefixes]
            case SnapshotEnd(version=version):
                self._version = version
                self._configure(now)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def _configure(self, now: float) -> None:
        settings = self._pending
        if settings is None:
            return
        try:
            if not self._attached:
                tun.attach(self._tun, self._stage.environment.interface, privileges.uid_of("tun"))
                self._attached = True
            self._set_owners(settings.workers)
            network.apply(
                self._stage.environment.interface,
                network.Wanted(
                    settings.addresses,
                    settings.mtu,
                    settings.table,
                    settings.fwmark,
                    tuple(prefix for prefix, _ in self._pending_routes),
                ),
            )
        except (tun.TunUnavailable, network.NetworkRefused) as refused:
            self._stage.set_fault(str(refused))
            self._retry = now + RETRY
            return
        self._settings = settings
        self._retry = None
        self._stage.set_fault("")
        self._line.applied(self._version)

    def _set_owners(self, workers: int) -> None:
        owners: AllowedIps[int] = AllowedIps()
        for prefix, worker in self._pending_routes:
            owners.insert(prefix, worker)
        self._owners = owners
        if self._settings is None or workers != self._settings.workers:
            self._connect_workers(workers)

    def _connect_workers(self, workers: int) -> None:
        stage = self._stage
        if not self._workers:
            stage.loop.add(self._tun, self._on_tun)
        for outlet in self._workers:
            outlet.close()
        self._workers = [
            Outlet(
                stage.loop,
                stage.pipes.connect(zmq.PUSH, endpoints.PLAIN_OUT, number),
                stage.counters,
                "worker_full",
                [self._tun],
                WORKER_PATIENCE,
            )
            for number in range(workers)
        ]

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When to try again what the kernel refused."""
        return self._retry

    def act(self, now: float) -> None:
        """Tries again."""
        self._configure(now)
