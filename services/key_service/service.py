"""Carries out the effects of `proto.handshaker`, and tells the Handshaker what happens elsewhere.

handshake-in ──▶ Handshaker ──effects, in order──▶ timestamps on disk │ sessions to workers │ handshake-out
control      ──▶     ▲
deadlines    ────────┘
"""

import os
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import assert_never

from key_service import denials, in_force, report, unsent
from key_service.announce import Announcer
from key_service.answers import Answers
from key_service.clock import Clock
from key_service.event_makers import events_of_change, events_of_peers
from key_service.expiry import LOOK_INTERVAL as LOOK_FOR_EXPIRY
from key_service.expiry import Expiry
from key_service.file_writer import FileWriter
from key_service.hub import Hub, Member
from key_service.last_words import LastWords
from key_service.live import LiveConfiguration
from key_service.moves import Moves
from key_service.names import LOOK as LOOK_FOR_NAMES
from key_service.names import Names
from key_service.nesting import LOOK_INTERVAL, Nesting
from key_service.odd_stamps import OddStamps
from key_service.peer_reports import INTERVAL as REPORT_INTERVAL
from key_service.peer_reports import PeerReports
from key_service.quotas import LOOK_INTERVAL as LOOK_AT_QUOTAS
from key_service.quotas import Quotas
from key_service.registry import Registry
from key_service.reload_door import ReloadDoor
from key_service.remembered import INTERVAL as REMEMBER_INTERVAL
from key_service.remembered import Remembered
from key_service.snapshots import Snapshots
from key_service.sweeps import Sweeps
from key_service.timestamps import FLUSH_INTERVAL, TimestampStore
from key_service.wg_events import WgEvents
from key_service.wg_socket import WgSocket
from key_service.workers import Workers
from stagewire.audit import Asker, Audit
from stagewire.config import InterfaceConfig, PeerConfig, operations
from stagewire.control.chains import ChainJudged, Nested
from stagewire.control.confirm import Cleared, Confirmed
from stagewire.control.event import Event
from stagewire.control.gateway import PacketsDenied
from stagewire.control.messages import (
    Applied,
    EndpointFound,
    FromCommand,
    FromStage,
    FromWorkerAlone,
    HandshakeGaveUp,
    HandshakeSent,
    Heartbeat,
    Hello,
    HostEndpoints,
    HostState,
    LinkState,
    Listening,
    LiveSessions,
    MovedIn,
    Resolved,
    SessionRefused,
    SessionsInstalled,
)
from stagewire.control.questions import HandshakeBegun, HandshakeNow, Scale, StatusQuery
from stagewire.control.session_keys import SessionsGiver
from stagewire.control.status import GatewayStatus
from stagewire.control.telemetry import LastCount, LastReport, PeerTraffic
from stagewire.limits import DEFAULT_MTU
from stagewire.loop import Every, Handler, boot_time
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame
from stagewire.pipe.names import HANDSHAKE_IN, HANDSHAKE_OUT, SESSIONS
from stagewire.pipe.send_queue import SendQueue
from stagewire.process import worker_count
from stagewire.process.stage import Stage
from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto.events import (
    Effect,
    EndpointMoved,
    GaveUp,
    InstallSession,
    RememberTimestamp,
    SendHandshake,
    SessionConfirmed,
    SessionsEnded,
    WantHandshake,
)
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.messages import BadMessage, OldStamp
from stagewire.randomness import jitter
from stagewire.stages import WORKER

STRANGERS_OF_BARE = 16_384
"""Peers without configuration whose time stamps a bare interface keeps."""
CONN_PATIENCE = 1.0
"""s that handshake messages wait for a missing conn-service."""


class KeyService:
    """Connects all parts of an interface's key-service."""

    def __init__(
        self,
        stage: Stage,
        registry: Registry,
        timestamps: TimestampStore,
        wg_listener: socket.socket | None,
        store: Path,
        kernel: str = "",
    ) -> None:
        """Takes what `rule.load` says of `proto.kernel.symmetric` as `kernel`."""
        self._stage, self._timestamps, self._kernel = stage, timestamps, kernel
        self._wg_listener = wg_listener
        self._version = secrets.randbits(62) | 1
        environment = stage.environment
        self._audit = Audit(environment.state, environment.interface)
        self._clock = Clock(environment.run / "key", stage.log)
        self._handshaker = _handshaker(registry, timestamps, self._clock)
        self._handshaker.failures = stage.counters
        self._odd_stamps = OddStamps(stage.log, registry.label)
        self._strangers_forgotten = False
        self._registry = registry
        moves = Moves(self._handshaker, worker_count.wanted(environment.run, environment.workers))
        mtu = registry.interface.mtu or DEFAULT_MTU
        self._announcer = Announcer(registry, self._handshaker, moves, environment.managed, mtu)
        self._sweeps = Sweeps()
        self._quotas = self._announcer.quotas = Quotas(environment.state, registry, stage.log, time.time)
        self._endpoints_told = HostEndpoints(())
        # Giver and hub bind their sockets here, and read nothing before `set_up`.
        self._giver = SessionsGiver(
            stage.loop, stage.pipes.path(SESSIONS), stage.pipes.admission(SESSIONS), self._handshaker.refused
        )
        self._hub = Hub(stage, self._giver.generation)
        self._nesting = Nesting(registry, self._handshaker, partial(self._hub.tell, "conn", 0))
        self._answers = Answers(self._hub, stage.log)
        self._snapshots = Snapshots(self._hub, self._announcer, stage.generation, self._version, self._answers.again)
        self._live = LiveConfiguration(
            *(self._announcer, self._hub, self._snapshots, self._answers, timestamps, store, stage.log),
            on_prefixes=self._nesting.changed,
            on_key_dropped=self._sweeps.key_dropped,
            show_private_key=environment.show_private_key,
        )
        self._live.begin()
        self._remembered = Remembered(environment.run / "key", registry, self._handshaker)
        self._remembered.recall()
        self._workers = Workers(
            *(self._announcer, self._hub, self._giver, self._live, self._version, self._carry_out),
            *(environment, stage.log, self._quotas),
        )

    def set_up(self) -> None:
        """Begins to read. From here on, the loop drives everything."""
        stage, pipes = self._stage, self._stage.pipes
        self._giver.serve(self._workers.consider, self._on_worker_gone)
        self._hub.serve(self._on_hello, self._on_message, self._on_query)
        if self._wg_listener is not None:
            self._wg = WgSocket(stage.loop, self._wg_listener, self._live, stage.log)
        pipes.receiver(stage.loop, HANDSHAKE_IN, self._on_handshakes, stage.drop)
        sender, count = pipes.sender(stage.loop, HANDSHAKE_OUT), partial(unsent.note, stage.counters)
        self._handshake_out = SendQueue(
            stage.loop, sender, stage.counters, "conn_full", patience=CONN_PATIENCE, count=count
        )
        self._names = Names(
            stage.log,
            partial(self._hub.tell, "resolver", 0),
            self._handshaker,
            self._live.known_peers.names,
            lambda: self._registry.interface.dns,
            self._registry.label,
            stage.counters,
        )
        tell = stage.tell_status if stage.environment.telemetry else None
        self._reports = PeerReports(self._registry, self._handshaker, tell)
        self._quotas.happened = self._live.withheld.happened = self._reports.happened
        self._workers.touched = self._reports.touch
        if self._wg_listener is not None:
            self._wg_events = WgEvents(self._registry.label, self._reports.happened, self._audit, stage.log)
            self._wg.changed = self._wg_events.note
            stage.loop.add_paced(REPORT_INTERVAL, self._wg_events.tell)
        self._quotas.look_by = stage.loop.add_paced(LOOK_AT_QUOTAS, self._quotas.look).at
        self._last_words = LastWords(self._hub, self._say_last)
        stage.loop.at_stop(self._last_words.begin, self._last_words.heard)
        for timed in (self, self._workers, self._snapshots, self._live, self._answers, self._names, self._sweeps):
            stage.loop.add_timed(timed)
        stage.loop.add_timed(Every(FLUSH_INTERVAL, lambda _now: self._timestamps.flush()))
        looks: list[tuple[float, Handler]] = [(REPORT_INTERVAL, self._report), (LOOK_FOR_NAMES, self._names.look)]
        looks += [(1.0, self._look_after_stages), (LOOK_INTERVAL, self._nesting.look)]
        looks += [(REMEMBER_INTERVAL, lambda _now: self._remembered.look())]
        for interval, look in looks:
            stage.loop.add_paced(interval, look)

    def open_door(self, door: socket.socket, text: in_force.Kept) -> None:
        """Lets the command apply another file, and hands the accepted configuration down to the spares."""
        text.leave()
        self._live.forget = text.forget
        if lost := self._registry.lost():  # an earlier life may have died before it forgot them
            self._registry.forget(lost)
            text.forget(lost)
        self._door = ReloadDoor(self._stage, door, self._live, text, self._audit, self._on_changed)
        self._file_writer = FileWriter(self._stage)
        if operations.has_expired(text.kept.text, time.time()):
            self._file_writer.ask()
        self._stage.loop.add_timed(self._file_writer)
        expiry = Expiry(self._live, self._stage.log, self._write_expired, self._on_expiry)
        expiry.look_by = self._stage.loop.add_paced(LOOK_FOR_EXPIRY, expiry.look).at

    def _write_expired(self, lines: list[str]) -> None:
        with suppress(OSError):  # the log has it too
            self._audit.write(Asker(os.geteuid(), os.getpid(), "key-service"), "expire", lines)
        self._file_writer.ask()

    def _on_changed(self, what: str, changes: list[str], before: InterfaceConfig, after: InterfaceConfig) -> None:
        for event in events_of_change(what, changes, before, after):
            self._reports.happened(event)

    def _on_expiry(self, kind: str, peers: list[PeerConfig]) -> None:
        for event in events_of_peers(kind, peers):
            self._reports.happened(event)

    # --- deadlines -----------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        return self._handshaker.next_deadline()

    def act(self, now: float) -> None:
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
                self._refuse(bad, endpoint, len(message))
                if isinstance(bad, OldStamp):
                    self._odd_stamps.refused(bad, now)

    def _refuse(self, bad: BadMessage, endpoint: bytes, size: int) -> None:
        counters, place = self._stage.counters, places.place_of(endpoint)
        if bad.public_key and bad.public_key not in self._registry.peers:
            counters.note_stranger(bad.reason, bad.public_key, place, size)
        else:
            counters.note(bad.reason, peer=bad.public_key, place=place, size=size)

    def _carry_out(self, effects: Iterable[Effect], now: float) -> None:
        leaving: list[bytes] = []
        for effect in effects:
            match effect:
                case RememberTimestamp():
                    self._remember(effect, now)
                case InstallSession():
                    if self._stage.log.says("debug"):
                        # Each peer makes such a line every two minutes: too many for the usual log.
                        role = "initiator" if effect.initiator else "responder"
                        self._stage.log.debug(
                            "session", peer=self._registry.label(effect.public_key), worker=effect.worker, role=role
                        )
                    self._giver.give(effect)
                    self._sweeps.session_given(now)
                    self._names.answered(effect.public_key)
                case SendHandshake():
                    leaving.append(trains.pack_handshake(effect.endpoint, effect.data, now))
                    if effect.initiation:
                        self._tell_home(effect.public_key, HandshakeSent(effect.public_key))
                        self._names.initiation_sent(effect.public_key, now)
                case GaveUp():
                    self._stage.log.info("handshake gave up", peer=self._registry.label(effect.public_key))
                    self._tell_home(effect.public_key, HandshakeGaveUp(effect.public_key))
                    self._names.doubt(effect.public_key, now)
        if leaving:
            self._handshake_out.offer_each(leaving, now)

    def _remember(self, effect: RememberTimestamp, now: float) -> None:
        if effect.kind != "own":
            self._odd_stamps.taken(effect.public_key, effect.timestamp, now, time.time_ns())
        try:
            self._timestamps.store(effect.public_key, effect.kind, effect.timestamp)
        except OSError as error:
            # The stamp counts in memory: an attacker can replay the initiation only after a restart.
            self._stage.set_fault(f"cannot store time stamps in {self._stage.environment.state}: {error.strerror}")
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
        if member.stage == "conn":
            self._nesting.start_anew()
        if member.stage == "status":
            self._reports.start_anew()
        self._snapshots.begin(member)

    def _on_message(self, member: Member, message: FromStage, now: float) -> None:
        """Handles a stage's message, which the hub has checked against ALLOWED."""
        if not self._workers.may_say(member, message):
            self._stage.counters["control_unexpected"] += 1
            return
        match message:
            case Applied():
                self._on_applied(member, now)
            case Resolved():
                found = self._names.on_resolved(message, now)
                for public_key in found.peers:
                    self._on_found(public_key, now, late=found.late, moved=public_key in found.moved)
            case Confirmed() | Cleared():
                self._answers.take(member, message, now)
            case Nested():
                self._nesting.on_nested(message, now)
            case ChainJudged():
                self._nesting.on_judged(message)
            case Listening():
                self._live.on_listening(message)
            case LinkState():
                self._on_link_state(message)
            case HostState():
                self._on_host_state(message)
            case PacketsDenied():
                denials.note(message, self._registry, self._stage.counters)
            case Hello() | LiveSessions() | Heartbeat() | StatusQuery() | Scale() | HandshakeNow():
                pass  # the hub handles these
            case _:
                self._on_worker_message(member, message, now)

    def _on_worker_gone(self, number: int, generation: int) -> None:
        self._workers.on_gone(number, generation)
        self._answers.on_gone(number, boot_time())

    def _on_applied(self, member: Member, now: float) -> None:
        if member.stage == WORKER:
            self._workers.consider(member.number, now)
        elif member.stage == "resolver":
            self._names.start_anew(now)
        self._forget_strangers(now)

    def _on_worker_message(self, member: Member, message: FromWorkerAlone, now: float) -> None:
        handshaker, workers = self._handshaker, self._workers
        match message:
            case WantHandshake(public_key=public_key):
                if handshaker.peers[public_key].worker == member.number:  # not the worker that the peer leaves
                    # A dead worker may still count as up. An initiation for it, and a second soon after for its
                    # successor, would cost REKEY_TIMEOUT: the peer takes the second initiation for a flood.
                    ready = workers.up.get(member.number) == member.generation
                    self._carry_out(handshaker.want(public_key, now, time.time_ns(), ready=ready), now)
            case SessionsInstalled(indices=indices):
                workers.on_installed(indices, member, now)
            case SessionRefused(index=index):
                handshaker.refused(index)
            case SessionConfirmed(public_key=public_key):
                workers.on_confirmed(public_key, member, now)
            case SessionsEnded(indices=indices):
                handshaker.ended(member.number, indices)
            case EndpointMoved(public_key=public_key, endpoint=endpoint, at=at):
                handshaker.endpoint_moved(public_key, endpoint, at)
            case PeerTraffic():
                workers.on_traffic(member, message, now)
            case MovedIn():
                workers.on_moved_in(member, message, now)
            case LastCount():
                self._last_words.on_counted(member)
            case _:
                assert_never(message)

    def _forget_strangers(self, now: float) -> None:
        """Forgets the time stamps of unconfigured peers, once all stages are ready.

        As in the kernel, removing a peer forgets its stamps. This peer left the file while key-service was down.
        """
        if self._strangers_forgotten or report.away(self._living(now), self._version, self._workers):
            return
        self._strangers_forgotten = True
        # A bare interface starts without peers, and gets its peers through the `wg` socket.
        keep = 0 if self._stage.environment.managed else STRANGERS_OF_BARE
        known = {*self._registry.peers, self._handshaker.public_key or b""}
        if gone := self._timestamps.forget_strangers(known, keep):
            self._stage.log.info("forgot the time stamps of peers that are not configured", peers=gone)

    def _report(self, now: float) -> None:
        self._reports.report_paced(self._stage.loop, now, ready=self._is_ready(now))

    def _say_last(self) -> None:
        now = boot_time()
        self._reports.report_rest(now, ready=self._is_ready(now))
        self._quotas.save_rest(now)
        if self._wg_listener is not None:
            self._wg_events.tell(now)
        self._stage.tell_status(LastReport())  # what ends us may wait for status-service alone

    def _is_ready(self, now: float) -> bool:
        return not report.away(self._living(now), self._version, self._workers) and self._live.link_up is not False

    def _look_after_stages(self, now: float) -> None:
        self._hub.forget_silent(now)
        self._stage.loop.worked += self._hub.awaits_heartbeat(now)  # so that it looks again in a second
        self._clock.look(self._handshaker, now, time.time_ns())
        self._tell_endpoints()
        self._workers.look_after(now)

    def _tell_endpoints(self) -> None:
        """Tells host-service the present endpoints, whose routes bound the MTU."""
        if self._announcer.managed and not self._registry.interface.mtu:
            endpoints = self._announcer.host_endpoints()
            if endpoints != self._endpoints_told:
                self._endpoints_told = endpoints
                self._hub.tell("host", 0, endpoints)

    def _on_found(self, public_key: bytes, now: float, *, late: bool, moved: bool) -> None:
        """Tells a peer's home workers the new address of its host name, and may begin a handshake.

        A peer with a keepalive gets a handshake, and a `late` peer, as packets to it have been refused. A peer that has
        `moved` gets a handshake even if its session is young.
        """
        peer = self._handshaker.peers[public_key]
        peer.endpoint_set_at = now
        self._tell_home(public_key, EndpointFound(public_key, peer.endpoint or b"", now))
        if moved:
            self._carry_out(self._handshaker.renew(public_key, now, time.time_ns()), now)
        elif late or self._registry.peers[public_key].persistent_keepalive:
            self._carry_out(self._handshaker.want(public_key, now, time.time_ns()), now)

    def _on_link_state(self, state: LinkState) -> None:
        """Takes the link's state, which other programs may set. The MTU bounds the padding."""
        self._live.link_up = state.up
        if state.mtu != self._announcer.mtu:
            self._announcer.mtu = state.mtu
            self._live.tell_workers()

    def _on_host_state(self, state: HostState) -> None:
        self._announcer.host_mark = state.mark
        self._live.on_host_state(state)

    # --- the command line ----------------------------------------------------------------------------------

    def _on_query(self, identity: bytes, message: FromCommand) -> None:
        now = boot_time()
        match message:
            case Scale():
                before = self._workers.moves.wanted
                scaled = self._workers.scale(message)
                self._hub.send(identity, scaled)
                if not scaled.error and message.workers != before:
                    self._reports.happened(Event("scaled", workers=message.workers, workers_before=before))
            case HandshakeNow(public_key=public_key):
                self._hub.send(identity, HandshakeBegun(self._handshake_now(public_key, now)))
            case StatusQuery():
                self._hub.send(identity, self._status(now))

    def _handshake_now(self, public_key: bytes, now: float) -> str:
        """Begins a handshake, or lets one wait its turn. Returns why there is none, or an empty text."""
        peer = self._handshaker.peers.get(public_key)
        if peer is None:
            return "no peer has this key"
        if peer.endpoint is None:
            return "its endpoint is not known"
        self._carry_out(self._handshaker.renew(public_key, now, time.time_ns()), now)
        return ""

    def _status(self, now: float) -> GatewayStatus:
        return report.status(
            *(self._stage, self._kernel, self._live, self._handshaker, self._living(now), self._version, self._workers),
            self._names.unresolved,
            self._nesting.fault_of,
            now,
        )

    def _living(self, now: float) -> list[Member]:
        # Omits dead predecessors, which count as living until they have been silent for SILENT_AFTER.
        return [each for each in self._hub.members(now) if self._hub.member(each.stage, each.number) is each]


def _handshaker(registry: Registry, timestamps: TimestampStore, clock: Clock) -> Handshaker:
    private_key = registry.interface.private_key
    identity = Identity.from_private_bytes(private_key) if private_key else None
    own = timestamps.own(identity.public_key) if identity else bytes(c.TIMESTAMP_LENGTH)
    return Handshaker(identity, own, secrets.token_bytes, jitter, clock.anchor)
