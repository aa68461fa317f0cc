"""The shell around `proto.device`.

plain-out.<n> ──▶ Device.outbound ──▶ cipher-out      read only while cipher-out has room
cipher-in.<n> ──▶ Device.inbound  ──▶ plain-in        read only while plain-in has room
                  (short trains that are there at once are sealed, opened and sent on as one)
sessions      ──▶ Device.install
control      ◀──▶ settings, peers, events
"""

import time
from collections.abc import Iterable, Sequence

from stagewire import privileges
from stagewire.ipc import endpoints, trains
from stagewire.ipc.control import (
    EndpointFound,
    FromKey,
    HandshakeGaveUp,
    HandshakeSent,
    Hello,
    LiveSession,
    MovedIn,
    MoveIn,
    PeersGone,
    PeersSet,
    PeerTraffic,
    Prefixes,
    PrefixesGone,
    PrefixesSet,
    Retire,
    SendEmpty,
    SendingExpired,
    SendStaged,
    SessionInstalled,
    SessionRefused,
    SnapshotEnd,
    Traffic,
    Welcome,
    WorkerPeer,
    WorkerSettings,
)
from stagewire.ipc.handover import Grant, SessionsTaker, WorkerHello
from stagewire.ipc.loop import Every, boot_time
from stagewire.ipc.outlet import Outlet
from stagewire.ipc.stage import ControlLine, Stage
from stagewire.ipc.zmtp import Frame
from stagewire.proto import prefix
from stagewire.proto.device import Device, PeerFacts
from stagewire.proto.offload import segment
from stagewire.proto.offload.virtio import BadSuperPacket
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Output, Packet, Tunnel, TunnelSettings
from stagewire.randomness import jitter

try:
    from stagewire.proto.offload import uniform
    from stagewire.proto.offload.uniform import Uniform
except ImportError:  # without NumPy every packet goes by itself
    uniform = None  # type: ignore[assignment]

ENOUGH_TO_SEAL = 112 * 1024
ENOUGH_TO_OPEN = 32 * 1024
"""Bytes of trains that are worth a call by themselves; shorter ones that are there at once are joined, as each call costs.
The more is sealed at once, the better it fills its runs."""
MIN_ITEM = 40
"""Bytes of the least packet in a train."""
TRAFFIC_INTERVAL = 1.0
TRAFFIC_BATCH = 1024


class DeviceService:
    """One crypto worker."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._device = Device(jitter)
        self._device.drops = stage.counters
        self._named: dict[bytes, set[bytes]] | None = None
        """While a snapshot comes in: what it has named so far, packed, as to free 130,000 networks takes 40 ms."""
        self._reported: dict[bytes, tuple[int, int]] = {}
        self._handshake_times: dict[int, int] = {}

    def set_up(self) -> None:
        """Opens the pipes; from here on the loop drives everything."""
        stage, pipes, number = self._stage, self._stage.pipes, self._stage.number
        loop, counters = stage.loop, stage.counters
        # Each is served once a turn: no train must wait for a key, nor a key for a train.
        self._line = ControlLine(stage, self)
        self._taker = SessionsTaker(
            loop,
            pipes.path(endpoints.SESSIONS),
            privileges.uid_of("key"),
            WorkerHello(number, stage.generation),
            self._on_session,
            counters,
            self._line.introduce,
        )
        plain_out = pipes.inlet(loop, endpoints.PLAIN_OUT, self._on_plain, stage.drop, number)
        cipher_in = pipes.inlet(loop, endpoints.CIPHER_IN, self._on_cipher, stage.drop, number)
        to_conn, to_tun = pipes.line(loop, endpoints.CIPHER_OUT), pipes.line(loop, endpoints.PLAIN_IN)
        self._to_conn = Outlet(loop, to_conn, counters, "conn_full", [plain_out.source])
        self._to_tun = Outlet(loop, to_tun, counters, "tun_full", [cipher_in.source])
        loop.add_timed(self)
        loop.add_timed(Every(TRAFFIC_INTERVAL, self._report_traffic))

    # --- packets -------------------------------------------------------------------------------------------

    def _on_plain(self, frames: Sequence[Frame], _now: float) -> None:
        packets: list[Packet] = []
        size, now = 0, boot_time()
        for data, start, end in frames:
            try:
                packets += self._packets(data, start, end, now)
            except trains.BadTrain as bad:  # too old, mostly: who comes late has many of them, and they take little
                self._stage.drop(bad)
                continue
            size += end - start
            if size >= ENOUGH_TO_SEAL or len(packets) >= trains.MAX_PACKETS:
                self._emit(self._device.outbound(packets, now), now)
                # A train may wait while the ones before it are sealed: its age counts from here.
                packets, size, now = [], 0, boot_time()
        if packets:
            self._emit(self._device.outbound(packets, now), now)

    def _on_cipher(self, frames: Sequence[Frame], _now: float) -> None:
        runs: list[tuple[bytes, Sequence[bytes]]] = []
        size, now = 0, boot_time()
        for data, start, end in frames:
            try:
                if (lone := trains.lone_run_untrusted(data, now, start, end)) is not None:
                    runs.append((lone[0], [lone[1]]))
                else:
                    runs += trains.unpack_cipher_untrusted(data, now, start, end)
            except trains.BadTrain as bad:
                self._stage.drop(bad)
                continue
            size += end - start
            if size >= ENOUGH_TO_OPEN or len(runs) >= trains.MAX_PACKETS:
                self._emit(self._device.inbound(runs, now), now)
                runs, size, now = [], 0, boot_time()
        if runs:
            self._emit(self._device.inbound(runs, now), now)

    def _packets(self, data: trains.Data, start: int, end: int, now: float) -> list[Packet]:
        """What is in a train. Raises BadTrain."""
        packets: list[Packet] = []
        if (lone := trains.lone_untrusted(data, now, start, end)) is not None:
            packets.append(lone)
        elif (alike := self._alike(data, start, end, now)) is not None:
            packets.append(alike)
        else:
            for item in trains.unpack_plain_untrusted(data, now, start, end):
                try:
                    packets.append(
                        item if isinstance(item, bytes) else segment.open_untrusted(item.header, item.packet)
                    )
                except BadSuperPacket:
                    self._stage.counters["outbound_malformed"] += trains.weight([item])
        self._device.takes = trains.takes_of(data, start)
        return packets

    @staticmethod
    def _alike(data: trains.Data, start: int, end: int, now: float) -> "Uniform | None":
        """The whole train, if all its packets have one length and one destination, and are enough."""
        if uniform is None or end - start < uniform.LEAST * MIN_ITEM:
            return None
        stride = trains.stride_untrusted(data, now, start, end)
        if stride is None or (end - stride[0]) // stride[1] < uniform.LEAST:
            return None
        return uniform.of_items(memoryview(data)[:end], *stride)

    def _emit(self, out: Output, now: float) -> None:
        if out.runs:
            for runs in trains.cut_runs(out.runs):
                weight = sum([len(datagrams) for _, datagrams in runs])
                self._to_conn.offer_parts(trains.cipher_parts(runs, now), weight, now)
        if out.packets:
            for packets in trains.cut_packets(out.packets):
                self._to_tun.offer_parts(trains.plain_parts(packets, now), trains.weight(packets), now)
        for event in out.events:
            self._line.say(event)

    # --- sessions ------------------------------------------------------------------------------------------

    def _on_session(self, grant: Grant, session: Session) -> None:
        now = boot_time()
        out = self._device.install(grant.public_key, session, grant.endpoint or None, now)
        if out is None:
            self._line.say(SessionRefused(grant.index))
            return
        self._line.say(SessionInstalled(grant.index))
        self._handshake_times[grant.index] = time.time_ns()
        self._emit(out, now)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The Device's."""
        return self._device.next_deadline()

    def act(self, now: float) -> None:
        """What the Device has due."""
        self._emit(self._device.act(now), now)

    def _report_traffic(self, _now: float) -> None:
        self._report(self._device.tunnels())

    def _report(self, tunnels: Iterable[Tunnel]) -> None:
        changed: list[Traffic] = []
        for tunnel in tunnels:
            totals = (tunnel.tx_bytes, tunnel.rx_bytes)
            if self._reported.get(tunnel.public_key, (0, 0)) != totals and len(changed) < TRAFFIC_BATCH:
                self._reported[tunnel.public_key] = totals
                changed.append(Traffic(tunnel.public_key, *totals))
        if changed:
            self._line.say(PeerTraffic(tuple(changed)))

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """With the sessions that run here, for a key-service that doesn't know them."""
        live = self._device.sessions()
        standing = {session.index for _, session in live}
        self._handshake_times = {index: at for index, at in self._handshake_times.items() if index in standing}
        sessions = tuple(
            LiveSession(
                tunnel.public_key, session.index, tunnel.endpoint or b"", self._handshake_times.get(session.index, 0)
            )
            for tunnel, session in live
        )
        plain = self._stage.hello()
        return Hello(plain.stage, plain.number, plain.generation, plain.pid, sessions)

    def on_control(self, message: FromKey, now: float) -> None:  # noqa: C901 - one case for each message
        """One message from key-service."""
        device = self._device
        match message:
            case Welcome():
                self._named = {}
            case WorkerSettings():
                device.set_settings(TunnelSettings(message.mtu, message.rekey_after_time))
            case PeersSet():
                for peer in message.peers:
                    self._set_peer(peer, now)
            case MoveIn():
                for peer in message.peers:
                    self._set_peer(peer, now)
                self._line.say(MovedIn(tuple(peer.public_key for peer in message.peers)))
            case SendEmpty():
                for public_key in message.public_keys:
                    self._emit(device.send_empty(public_key, now), now)
            case Retire():
                self._stage.log.info("told to go")
                self._stage.loop.stop()
            case PeersGone():
                for public_key in message.public_keys:
                    self._emit(device.remove_peer(public_key), now)
            case PrefixesSet():
                for entry in message.entries:
                    self._allow(entry)
            case PrefixesGone():
                for entry in message.entries:
                    device.disallow(entry.public_key, map(prefix.unpack_untrusted, entry.prefixes))
            case SnapshotEnd():
                self._end_snapshot(message.version, now)
            case SendingExpired():
                device.expire_sending()
                self._emit(device.want_again(now), now)  # what was asked for was under the old key
            case SendStaged():
                for public_key in message.public_keys:
                    self._emit(device.send_staged(public_key, now), now)
            case EndpointFound():
                device.endpoint_found(message.public_key, message.endpoint)
            case HandshakeSent():
                device.handshake_sent(message.public_key, now)
            case HandshakeGaveUp():
                device.handshake_gave_up(message.public_key, now)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def _set_peer(self, peer: WorkerPeer, now: float) -> None:
        if self._named is not None:
            self._named[peer.public_key] = set()
        tunnel = None if peer.home else self._device.tunnel(peer.public_key)
        if tunnel is not None:  # it leaves, and what it counted goes with it
            self._report([tunnel])
            self._reported.pop(peer.public_key, None)
        facts = PeerFacts(peer.public_key, None, peer.home, peer.persistent_keepalive, peer.endpoint or None)
        self._emit(self._device.set_peer(facts, now), now)

    def _allow(self, entry: Prefixes) -> None:
        prefixes = [prefix.unpack_untrusted(packed) for packed in entry.prefixes]
        self._device.allow(entry.public_key, prefixes)
        if self._named is not None:
            self._named[entry.public_key].update(entry.prefixes)

    def _end_snapshot(self, version: int, now: float) -> None:
        """Drops what the snapshot didn't name."""
        named, self._named = self._named or {}, None
        for public_key in self._device.public_keys() - named.keys():
            self._emit(self._device.remove_peer(public_key), now)
        for public_key, prefixes in named.items():
            self._device.retain(public_key, prefixes)
        self._reported.clear()  # a new key-service has heard nothing of them
        self._line.applied(version)
        self._emit(self._device.want_again(now), now)
