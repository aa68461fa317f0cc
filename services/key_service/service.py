"""The shell around `proto.handshaker`: carries its effects out, and tells it what happens elsewhere.

handshake-in ──▶ Handshaker ──effects, in order──▶ timestamps on disk │ sessions to workers │ handshake-out
control      ──▶     ▲
deadlines    ────────┘
"""

import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from key_service import report
from key_service.announce import DEFAULT_MTU, Announcer
from key_service.hub import Hub, Member
from key_service.live import LiveConfiguration
from key_service.moves import Moves
from key_service.names import Names
from key_service.registry import Registry
from key_service.timestamps import FLUSH_INTERVAL, TimestampStore
from key_service.wg_socket import WgSocket
from key_service.workers import Workers
from stagewire import privileges
from stagewire.ipc import endpoints, slots, trains
from stagewire.ipc.control import (
    Applied,
    EndpointFound,
    FromStage,
    HandshakeGaveUp,
    HandshakeSent,
    LinkState,
    Listening,
    MovedIn,
    PeerTraffic,
    Resolved,
    Scale,
    SessionInstalled,
    SessionRefused,
    SnapshotEnd,
    StatusQuery,
    StatusReply,
    Welcome,
    WorkerSettings,
)
from stagewire.ipc.handover import SessionsGiver
from stagewire.ipc.loop import Every, boot_time
from stagewire.ipc.outlet import Outlet
from stagewire.ipc.stage import Stage
from stagewire.ipc.zmtp import Frame
from stagewire.proto import constants as c
from stagewire.proto.effects import Effect, GaveUp, InstallSession, RememberTimestamp, SendHandshake
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.index import worker_of
from stagewire.proto.messages import BadMessage
from stagewire.randomness import jitter

LONG_WORK = 5.0
"""s that what is done for each peer or prefix in one go may take at most."""
CONN_PATIENCE = 1.0
"""s that handshake messages wait for a conn-service that is on its way."""


class KeyService:
    """One interface's key-service."""

    def __init__(
        self,
        stage: Stage,
        registry: Registry,
        timestamps: TimestampStore,
        wg_listener: socket.socket | None,
        store: Path,
    ) -> None:
        self._stage = stage
        self._timestamps = timestamps
        self._wg_listener = wg_listener
        self._version = secrets.randbits(62) | 1
        environment = stage.environment
        private_key = registry.interface.private_key
        identity = Identity.from_private_bytes(private_key) if private_key else None
        own = timestamps.latest(identity.public_key, "own") if identity else bytes(c.TIMESTAMP_LENGTH)
        self._handshaker = Handshaker(identity, own, secrets.token_bytes, jitter)
        self._handshaker.failures = stage.counters
        self._registry = registry
        moves = Moves(self._handshaker, slots.wanted_workers(environment.run, environment.workers))
        self._announcer = Announcer(registry, self._handshaker, moves, environment.managed)
        self._mtu = registry.interface.mtu or DEFAULT_MTU
        self._live = LiveConfiguration(
            self._announcer,
            timestamps,
            store,
            stage.log,
            show_private_key=environment.show_private_key,
        )
        self._live.begin()
        self._workers = Workers(self._announcer, self._live, self._version, self._carry_out, environment, stage.log)

    def set_up(self) -> None:
        """Opens the pipes; from here on the loop drives everything."""
        stage, pipes = self._stage, self._stage.pipes
        giver = self._workers.giver = SessionsGiver(
            stage.loop,
            pipes.path(endpoints.SESSIONS),
            privileges.uid_of("device"),
            lambda number: self._workers.consider(number, boot_time()),
            self._workers.on_gone,
            self._handshaker.refused,
        )
        self._hub = self._live.hub = self._workers.hub = Hub(
            stage, self._on_hello, self._on_message, self._on_query, giver.generation
        )
        if self._wg_listener is not None:
            self._wg = WgSocket(stage.loop, self._wg_listener, self._live, stage.log)
        pipes.inlet(stage.loop, endpoints.HANDSHAKE_IN, self._on_handshakes, stage.drop)
        self._handshake_out = Outlet(
            stage.loop,
            pipes.line(stage.loop, endpoints.HANDSHAKE_OUT),
            stage.counters,
            "conn_full",
            patience=CONN_PATIENCE,
        )
        stage.loop.add_timed(self)
        stage.loop.add_timed(self._workers)
        stage.loop.add_timed(self._live)
        stage.loop.add_timed(Every(FLUSH_INTERVAL, lambda _now: self._timestamps.flush()))
        stage.loop.add_timed(Every(1.0, self._look_after_stages))
        self._names = Names(stage, self._hub, self._handshaker, self._live.names)

    # --- deadlines -----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The Handshaker's."""
        return self._handshaker.next_deadline()

    def act(self, now: float) -> None:
        """What the Handshaker has due."""
        self._carry_out(self._handshaker.act(now, time.time_ns()), now)

    # --- from the network ----------------------------------------------------------------------------------

    def _on_handshakes(self, frames: Sequence[Frame], now: float) -> None:
        for data, start, end in frames:
            try:
                endpoint, message = trains.unpack_handshake_untrusted(data, now, start, end)
                self._carry_out(self._handshaker.receive_untrusted(message, endpoint, now, time.time_ns()), now)
            except trains.BadTrain as bad:
                self._stage.drop(bad)
            except BadMessage as bad:
                self._stage.counters[bad.reason] += 1

    def _carry_out(self, effects: Iterable[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case RememberTimestamp():
                    self._remember(effect)
                case InstallSession():
                    if self._stage.log.says("debug"):
                        # Every two minutes with every peer: not for the eyes of who didn't ask for it.
                        role = "initiator" if effect.initiator else "responder"
                        self._stage.log.debug(
                            "session", peer=report.short(effect.public_key), worker=effect.worker, role=role
                        )
                    self._workers.giver.give(effect)
                case SendHandshake():
                    self._handshake_out.offer(trains.pack_handshake(effect.endpoint, effect.data, now), 1, now)
                    if effect.initiation:
                        self._tell_home(effect.public_key, HandshakeSent(effect.public_key))
                case GaveUp():
                    self._stage.log.info("handshake gave up", peer=report.short(effect.public_key))
                    self._tell_home(effect.public_key, HandshakeGaveUp(effect.public_key))
                    self._names.resolve(effect.public_key)

    def _remember(self, effect: RememberTimestamp) -> None:
        try:
            self._timestamps.store(effect.public_key, effect.kind, effect.timestamp)
        except OSError as error:
            # It is remembered in memory; what is at risk is a replay after a restart, not the tunnel now.
            self._stage.set_fault(f"timestamps cannot be stored: {error.strerror}")
        else:
            self._stage.set_fault("")

    def _tell_home(self, public_key: bytes, message: HandshakeSent | HandshakeGaveUp | EndpointFound) -> None:
        for worker in self._announcer.moves.homes(public_key):
            self._hub.tell("device", worker, message)

    # --- from the other stages -----------------------------------------------------------------------------

    def _on_hello(self, member: Member) -> None:
        self._stage.log.info("stage said hello", stage=member.stage, number=member.number, pid=member.pid)
        if member.stage == "device":
            self._workers.on_hello(member)
        # 130,000 prefixes are half a second's work, during which a spare shall not take us for hung.
        self._stage.slot.expect_silence(LONG_WORK, boot_time())
        self._hub.send(member.identity, Welcome(self._stage.generation, self._version))
        for message in self._announcer.snapshot(member.stage, member.number, self._mtu):
            self._hub.send(member.identity, message)
        self._hub.send(member.identity, SnapshotEnd(self._version))

    def _on_message(self, member: Member, message: FromStage, now: float) -> None:
        match member.stage, message:
            case "device", _:
                self._on_worker_message(member, message, now)
            case "conn", Applied():
                self._names.start_anew()
            case _, Applied():
                pass
            case "conn", Resolved():
                if self._names.on_resolved(message):
                    self._on_found(message.public_key, now)
            case "conn", Listening():
                self._live.on_listening(message)
            case "tun", LinkState():
                self._on_link_state(message)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def _on_worker_message(self, member: Member, message: FromStage, now: float) -> None:
        handshaker, workers = self._handshaker, self._workers
        match message:
            case Applied():
                workers.consider(member.number, now)
            case WantHandshake(public_key=public_key) if workers.at_home(public_key, member):
                if handshaker.peers[public_key].worker == member.number:  # not one that the peer is moving out of
                    # The life before may seem to be up still. To initiate for it, and a moment later again for the
                    # new one, costs 5 s: the other side takes the second initiation for a flood.
                    ready = workers.up.get(member.number) == member.generation
                    self._carry_out(handshaker.want(public_key, now, time.time_ns(), ready=ready), now)
            case SessionInstalled(index=index) if worker_of(index) == member.number:
                workers.on_installed(index, member, now)
            case SessionRefused(index=index) if worker_of(index) == member.number:
                handshaker.refused(index)
            case SessionConfirmed(public_key=public_key) if workers.at_home(public_key, member):
                workers.on_confirmed(public_key, member, now)
            case SessionsEnded(indices=indices):
                handshaker.ended(member.number, indices)
            case EndpointMoved(public_key=public_key, endpoint=endpoint) if workers.at_home(public_key, member):
                handshaker.endpoint_moved(public_key, endpoint)
            case PeerTraffic():
                workers.on_traffic(member, message)
            case MovedIn():
                workers.on_moved_in(member, message, now)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def _look_after_stages(self, now: float) -> None:
        self._hub.forget_silent(now)
        self._workers.look_after(now)

    def _on_found(self, public_key: bytes, now: float) -> None:
        """A host name led to a new place: its worker is told, and a peer that is to be kept alive hears from us."""
        endpoint = self._handshaker.peers[public_key].endpoint
        self._tell_home(public_key, EndpointFound(public_key, endpoint or b""))
        if self._registry.peers[public_key].persistent_keepalive:
            self._carry_out(self._handshaker.want(public_key, now, time.time_ns()), now)

    def _on_link_state(self, state: LinkState) -> None:
        """Somebody has set the interface: its MTU bounds the padding, and coming up is when keepalives begin."""
        if state.mtu != self._mtu:
            self._mtu = state.mtu
            settings = WorkerSettings(self._mtu, self._registry.interface.rekey_after_time)
            for worker in self._hub.numbers("device"):
                self._hub.tell("device", worker, settings)

    # --- the command line ----------------------------------------------------------------------------------

    def _on_query(self, identity: bytes, message: StatusQuery | Scale) -> None:
        if isinstance(message, Scale):
            self._hub.send(identity, self._workers.scale(message))
            return
        # Not the one that has just died as well, which is silent for two seconds before it counts as away.
        living = self._hub.members(boot_time())
        members = [member for member in living if self._hub.member(member.stage, member.number) is member]
        text = report.status(self._stage, self._live, self._handshaker, members, self._version, self._workers)
        self._hub.send(identity, StatusReply(text))
