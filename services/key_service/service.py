"""The shell around `proto.handshaker`: carries its effects out, and tells it what happens elsewhere.

handshake-in ──▶ Handshaker ──effects, in order──▶ timestamps on disk │ sessions to workers │ handshake-out
control      ──▶     ▲
deadlines    ────────┘
"""

import secrets
import time
from collections.abc import Iterable
from ipaddress import ip_address

import zmq

from key_service import report, snapshot
from key_service.homes import home_of
from key_service.hub import Hub, Member
from key_service.timestamps import FLUSH_INTERVAL, TimestampStore
from stagewire import privileges
from stagewire.config import HostPort, InterfaceConfig
from stagewire.ipc import endpoints, trains
from stagewire.ipc.control import (
    Applied,
    EndpointFound,
    FromStage,
    HandshakeGaveUp,
    HandshakeSent,
    Hello,
    PeerTraffic,
    Resolve,
    Resolved,
    SessionInstalled,
    SessionRefused,
    SnapshotEnd,
    StatusReply,
    Welcome,
)
from stagewire.ipc.handover import SessionsGiver
from stagewire.ipc.loop import Every, boot_time
from stagewire.ipc.outlet import Outlet
from stagewire.ipc.stage import Stage
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Effect, GaveUp, Handshaker, InstallSession, RememberTimestamp, SendHandshake
from stagewire.proto.index import worker_of
from stagewire.proto.messages import BadMessage

HANDSHAKES_PER_TURN = 16
"""Some 0.3 ms each; then control messages get their turn."""
RESOLVE_AGAIN = 5.0
"""s between questions for a host name that nobody knew, perhaps because we were up before the resolver."""
CONN_PATIENCE = 1.0
"""s that handshake messages wait for a conn-service that is on its way."""


def jitter() -> float:
    """Seconds, uniformly."""
    return secrets.randbelow(1000) * c.REKEY_TIMEOUT_JITTER_MAX / 1000


class KeyService:
    """One interface's key-service."""

    def __init__(self, stage: Stage, config: InterfaceConfig, timestamps: TimestampStore) -> None:
        assert config.private_key is not None  # noqa: S101 - the configuration is refused without one
        self._stage = stage
        self._config = config
        self._timestamps = timestamps
        self._workers = stage.environment.workers
        self._version = secrets.randbits(62) | 1
        identity = Identity.from_private_bytes(config.private_key)
        own = timestamps.latest(identity.public_key, "own")
        self._handshaker = Handshaker(identity, own, secrets.token_bytes, jitter)
        self._handshaker.failures = stage.counters
        self._names: dict[bytes, HostPort] = {}
        self._asked: set[bytes] = set()
        self._unresolved: dict[bytes, str] = {}
        self._keepalives: set[bytes] = set()
        self._traffic: dict[bytes, tuple[int, int, int]] = {}
        self._workers_up: dict[int, int] = {}
        self._add_peers()

    def _add_peers(self) -> None:
        for peer in self._config.peers:
            known = self._handshaker.add_peer(
                peer.public_key,
                peer.preshared_key,
                home_of(peer.public_key, self._workers),
                stamped=peer.response_timestamp,
            )
            known.latest_initiation = self._timestamps.latest(peer.public_key, "initiation")
            known.latest_response = self._timestamps.latest(peer.public_key, "response")
            if peer.persistent_keepalive:
                self._keepalives.add(peer.public_key)
            if peer.endpoint is not None:
                try:
                    known.endpoint = Endpoint(ip_address(peer.endpoint.host).packed, peer.endpoint.port).pack()
                except ValueError:
                    self._names[peer.public_key] = peer.endpoint

    def set_up(self) -> None:
        """Opens the pipes; from here on the loop drives everything."""
        stage, pipes = self._stage, self._stage.pipes
        self._hub = Hub(stage, self._on_hello, self._on_message, self._on_query)
        self._giver = SessionsGiver(
            stage.loop,
            pipes.path(endpoints.SESSIONS),
            privileges.uid_of("device"),
            self._on_worker_connected,
            self._on_worker_gone,
        )
        self._handshake_in = pipes.bind(zmq.PULL, endpoints.HANDSHAKE_IN)
        stage.loop.add(self._handshake_in, self._on_handshakes)
        self._handshake_out = Outlet(
            stage.loop,
            pipes.connect(zmq.PUSH, endpoints.HANDSHAKE_OUT),
            stage.counters,
            "conn_full",
            patience=CONN_PATIENCE,
        )
        stage.loop.add_timed(self)
        stage.loop.add_timed(Every(FLUSH_INTERVAL, lambda _now: self._timestamps.flush()))
        stage.loop.add_timed(Every(5.0, self._hub.forget_silent))
        stage.loop.add_timed(Every(RESOLVE_AGAIN, self._resolve_unknown))

    # --- deadlines -----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The Handshaker's."""
        return self._handshaker.next_deadline()

    def act(self, now: float) -> None:
        """What the Handshaker has due."""
        self._carry_out(self._handshaker.act(now, time.time_ns()), now)

    # --- from the network ----------------------------------------------------------------------------------

    def _on_handshakes(self, now: float) -> None:
        for _ in range(HANDSHAKES_PER_TURN):
            try:
                frame = self._handshake_in.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                endpoint, message = trains.unpack_handshake_untrusted(frame, now)
                self._carry_out(self._handshaker.receive_untrusted(message, endpoint, now, time.time_ns()), now)
            except (BadMessage, trains.BadTrain) as bad:
                self._stage.counters[bad.reason] += 1

    def _carry_out(self, effects: Iterable[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case RememberTimestamp():
                    self._remember(effect)
                case InstallSession():
                    if not self._giver.give(effect):
                        self._handshaker.refused(effect.index)
                case SendHandshake():
                    self._handshake_out.offer(trains.pack_handshake(effect.endpoint, effect.data, now), 1, now)
                    if effect.initiation:
                        self._tell_home(effect.public_key, HandshakeSent(effect.public_key))
                case GaveUp():
                    self._stage.log.info("handshake gave up", peer=report.short(effect.public_key))
                    self._tell_home(effect.public_key, HandshakeGaveUp(effect.public_key))
                    self._resolve(effect.public_key)

    def _remember(self, effect: RememberTimestamp) -> None:
        try:
            self._timestamps.store(effect.public_key, effect.kind, effect.timestamp)
        except OSError as error:
            # It is remembered in memory; what is at risk is a replay after a restart, not the tunnel now.
            self._stage.set_fault(f"timestamps cannot be stored: {error.strerror}")

    def _tell_home(self, public_key: bytes, message: HandshakeSent | HandshakeGaveUp | EndpointFound) -> None:
        self._hub.tell("device", self._handshaker.peers[public_key].worker, message)

    # --- from the other stages -----------------------------------------------------------------------------

    def _on_hello(self, member: Member, hello: Hello) -> None:
        self._stage.log.info("stage said hello", stage=member.stage, number=member.number, pid=member.pid)
        if member.stage == "device":
            self._meet_worker(member.number, hello)
        self._hub.send(member.identity, Welcome(self._stage.generation, self._version))
        for message in snapshot.for_stage(member.stage, member.number, self._config, self._handshaker, self._workers):
            self._hub.send(member.identity, message)
        self._hub.send(member.identity, SnapshotEnd(self._version))

    def _meet_worker(self, number: int, hello: Hello) -> None:
        standing = self._workers_up.get(number)
        if standing is not None and standing != hello.generation:
            self._on_worker_gone(number, standing)
        for session in hello.sessions:
            self._handshaker.adopt_session(
                session.public_key, session.index, session.endpoint or None, session.handshake_unix_ns
            )

    def _on_message(self, member: Member, message: FromStage, now: float) -> None:
        match member.stage, message:
            case _, Applied():
                self._on_applied(member, now)
            case "device", WantHandshake(public_key=public_key):
                self._carry_out(self._handshaker.want(public_key, now, time.time_ns()), now)
            case "device", SessionInstalled(index=index) if worker_of(index) == member.number:
                self._carry_out(self._handshaker.installed(index, now), now)
            case "device", SessionRefused(index=index) if worker_of(index) == member.number:
                self._handshaker.refused(index)
            case "device", SessionConfirmed(public_key=public_key):
                self._handshaker.confirmed(public_key, time.time_ns())
            case "device", SessionsEnded(indices=indices):
                self._handshaker.ended(member.number, indices)
            case "device", EndpointMoved(public_key=public_key, endpoint=endpoint):
                self._handshaker.endpoint_moved(public_key, endpoint)
            case "device", PeerTraffic():
                self._on_traffic(member, message)
            case "conn", Resolved():
                self._on_resolved(message, now)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def _on_applied(self, member: Member, now: float) -> None:
        if member.stage == "conn":
            self._asked.clear()  # what was asked of its forerunner
            self._resolve_unknown(now)
        elif member.stage == "device":
            self._consider_worker(member.number, now)

    def _on_worker_connected(self, number: int) -> None:
        self._consider_worker(number, boot_time())

    def _consider_worker(self, number: int, now: float) -> None:
        """A worker is up when the same life of it has its configuration and its line for sessions."""
        member = self._hub.member("device", number)
        if member is None or member.applied != self._version or number in self._workers_up:
            return
        if self._giver.generation(number) == member.generation:
            self._workers_up[number] = member.generation
            self._stage.log.info("worker up", worker=number, pid=member.pid)
            self._carry_out(self._handshaker.worker_up(number, now, time.time_ns()), now)

    def _on_worker_gone(self, number: int, generation: int) -> None:
        if self._workers_up.get(number) == generation:
            del self._workers_up[number]
            self._stage.log.warning("worker gone", worker=number)
            self._handshaker.worker_down(number)

    def _on_traffic(self, member: Member, message: PeerTraffic) -> None:
        for traffic in message.peers:
            peer = self._handshaker.peers.get(traffic.public_key)
            if peer is None or peer.worker != member.number:
                continue
            generation, tx, rx = self._traffic.get(traffic.public_key, (0, 0, 0))
            if generation != member.generation:
                tx = rx = 0
            peer.tx_bytes += traffic.tx_bytes - tx
            peer.rx_bytes += traffic.rx_bytes - rx
            self._traffic[traffic.public_key] = (member.generation, traffic.tx_bytes, traffic.rx_bytes)

    # --- host names ----------------------------------------------------------------------------------------

    def _resolve_unknown(self, _now: float) -> None:
        """Where a peer has been seen since counts for more than where its name said it would be."""
        for public_key in self._names:
            peer = self._handshaker.peers.get(public_key)
            if peer is not None and peer.endpoint is None:
                self._resolve(public_key)

    def _resolve(self, public_key: bytes) -> None:
        name = self._names.get(public_key)
        # A resolver may take longer to answer than we to ask again.
        if name is not None and public_key not in self._asked:
            self._asked.add(public_key)
            self._hub.tell("conn", 0, Resolve(public_key, name.host, name.port))

    def _on_resolved(self, message: Resolved, now: float) -> None:
        self._asked.discard(message.public_key)
        peer = self._handshaker.peers.get(message.public_key)
        if peer is None:
            return
        if message.error:
            if self._unresolved.get(message.public_key) != message.error:
                self._unresolved[message.public_key] = message.error
                self._stage.log.warning(
                    "endpoint unresolved", peer=report.short(message.public_key), reason=message.error
                )
            return
        self._unresolved.pop(message.public_key, None)
        if peer.endpoint != message.endpoint:
            peer.endpoint = message.endpoint
            self._tell_home(message.public_key, EndpointFound(message.public_key, message.endpoint))
            if message.public_key in self._keepalives:
                self._carry_out(self._handshaker.want(message.public_key, now, time.time_ns()), now)

    # --- the command line ----------------------------------------------------------------------------------

    def _on_query(self, identity: bytes) -> None:
        now = boot_time()
        text = report.status(
            self._config, self._handshaker, list(self._hub.members(now)), self._version, self._workers, self._stage
        )
        self._hub.send(identity, StatusReply(text))
