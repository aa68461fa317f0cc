"""Connects all parts of an interface's key-service, and has them look after what nothing tells them of."""

import os
import secrets
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from key_service import in_force, report, strangers
from key_service.announce import Announcer
from key_service.answers import Answers
from key_service.clock import Clock
from key_service.event_makers import events_of_change, events_of_peers
from key_service.expiry import LOOK_INTERVAL as LOOK_FOR_EXPIRY
from key_service.expiry import Expiry
from key_service.file_writer import FileWriter
from key_service.handshakes import Handshakes
from key_service.hub import Hub
from key_service.last_words import LastWords
from key_service.live import LiveConfiguration
from key_service.moves import Moves
from key_service.names import LOOK as LOOK_FOR_NAMES
from key_service.names import Names
from key_service.nesting import LOOK_INTERVAL, Nesting
from key_service.peer_reports import INTERVAL as REPORT_INTERVAL
from key_service.peer_reports import PeerReports
from key_service.quotas import LOOK_INTERVAL as LOOK_AT_QUOTAS
from key_service.quotas import Quotas
from key_service.readiness import Readiness
from key_service.registry import Registry
from key_service.reload_door import ReloadDoor
from key_service.remembered import INTERVAL as REMEMBER_INTERVAL
from key_service.remembered import Remembered
from key_service.snapshots import Snapshots
from key_service.stage_words import StageWords
from key_service.strangers import Strangers
from key_service.sweeps import Sweeps
from key_service.timestamps import FLUSH_INTERVAL, TimestampStore
from key_service.unswapped import LOOK_INTERVAL as LOOK_AT_FILES
from key_service.unswapped import Unswapped
from key_service.wg_events import WgEvents
from key_service.wg_socket import WgSocket
from key_service.workers import HOMES_WITHIN, Workers
from stagewire.audit import Asker, Audit
from stagewire.config import InterfaceConfig, PeerConfig, operations
from stagewire.control.event import Event
from stagewire.control.messages import FromCommand, HostEndpoints
from stagewire.control.questions import HandshakeBegun, HandshakeNow, Scale, StatusQuery
from stagewire.control.session_keys import SessionsGiver
from stagewire.control.status import GatewayStatus
from stagewire.control.telemetry import LastReport
from stagewire.deadlines import Every
from stagewire.limits import DEFAULT_MTU
from stagewire.loop import Handler, boot_time
from stagewire.pipe.names import SESSIONS
from stagewire.process import worker_count
from stagewire.process.stage import Stage
from stagewire.proto import constants as c
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.randomness import jitter


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
        version = secrets.randbits(62) | 1
        environment = stage.environment
        self._audit = Audit(environment.state, environment.interface)
        self._clock = Clock(environment.run / "key", stage.log)
        self._handshaker = handshaker = _handshaker(registry, timestamps, self._clock)
        handshaker.failures = stage.counters
        self._registry = registry
        moves = Moves(handshaker, worker_count.wanted(environment.run, environment.workers))
        mtu = registry.interface.mtu or DEFAULT_MTU
        self._announcer = Announcer(registry, handshaker, moves, environment.managed, mtu)
        self._sweeps = Sweeps()
        self._quotas = self._announcer.quotas = Quotas(environment.state, registry, stage.log, time.time)
        self._endpoints_told = HostEndpoints(())
        # Giver and hub bind their sockets here, and read nothing before `set_up`.
        self._giver = SessionsGiver(
            stage.loop, stage.pipes.path(SESSIONS), stage.pipes.admission(SESSIONS), handshaker.refused
        )
        self._hub = hub = Hub(stage, self._giver.generation)
        self._nesting = Nesting(registry, handshaker, partial(hub.tell, "conn", 0))
        self._answers = Answers(hub, stage.log)
        self._snapshots = Snapshots(hub, self._announcer, stage.generation, version, self._answers.again)
        self._live = self._configuration(store)
        self._remembered = Remembered(environment.run / "key", registry, handshaker)
        recalled = self._remembered.recall()
        self._unswapped = Unswapped(environment.run / "key")
        self._names = self._known_names()
        self._handshakes = Handshakes(
            *(stage, registry, handshaker, timestamps, self._giver, hub, moves, self._names, self._sweeps)
        )
        self._workers = Workers(
            *(self._announcer, hub, self._giver, self._live, version, self._handshakes.carry_out),
            *(environment, stage.log, self._quotas, self._answers),
        )
        self._readiness = Readiness(hub, self._workers, version)
        tell = stage.tell_status if environment.telemetry else None
        self._reports = PeerReports(registry, handshaker, tell, recalled)
        self._last_words = LastWords(hub, self._say_last)
        self._words = self._stage_words()

    def _configuration(self, store: Path) -> LiveConfiguration:
        live = LiveConfiguration(
            *(self._announcer, self._hub, self._snapshots, self._answers, self._timestamps, store, self._stage.log),
            on_prefixes=self._nesting.changed,
            on_key_dropped=self._sweeps.key_dropped,
            show_private_key=self._stage.environment.show_private_key,
        )
        live.begin()
        return live

    def _known_names(self) -> Names:
        return Names(
            self._stage.log,
            partial(self._hub.tell, "resolver", 0),
            self._handshaker,
            self._live.known_peers.names,
            lambda: self._registry.interface.dns,
            self._registry.label,
            self._stage.counters,
        )

    def _stage_words(self) -> StageWords:
        stage, registry, handshaker = self._stage, self._registry, self._handshaker
        keep = 0 if stage.environment.managed else strangers.OF_BARE
        return StageWords(
            *(stage, registry, handshaker, self._handshakes, self._workers, self._live, self._answers),
            *(self._snapshots, self._names, self._nesting, self._reports),
            Strangers(self._timestamps, registry, handshaker, self._readiness, stage.log, keep=keep),
            self._last_words,
        )

    def set_up(self) -> None:
        """Begins to read. From here on, the loop drives everything."""
        stage = self._stage
        self._unswapped.look()
        if not self._workers.know_homes():
            self._snapshots.hold(boot_time() + HOMES_WITHIN)
        self._giver.serve(self._workers.consider, self._words.on_worker_gone)
        self._hub.serve(self._words.on_hello, self._words.on_message, self._on_query)
        self._handshakes.set_up()
        self._quotas.happened = self._live.withheld.happened = self._reports.happened
        self._workers.touched = self._reports.touch
        if self._wg_listener is not None:
            wg = WgSocket(stage.loop, self._wg_listener, self._live, stage.log)
            self._wg_events = WgEvents(self._registry.label, self._reports.happened, self._audit, stage.log)
            wg.changed = self._wg_events.note
            stage.loop.add_paced(REPORT_INTERVAL, self._wg_events.tell)
        self._quotas.look_by = stage.loop.add_paced(LOOK_AT_QUOTAS, self._quotas.look).at
        stage.loop.at_stop(self._last_words.begin, self._last_words.heard)
        for timed in (
            *(self._handshakes, self._workers, self._snapshots, self._live),
            *(self._answers, self._names, self._sweeps),
        ):
            stage.loop.add_timed(timed)
        stage.loop.add_timed(Every(FLUSH_INTERVAL, lambda _now: self._timestamps.flush()))
        looks: list[tuple[float, Handler]] = [(REPORT_INTERVAL, self._report), (LOOK_FOR_NAMES, self._names.look)]
        looks += [(1.0, self._look_after_stages), (LOOK_INTERVAL, self._nesting.look)]
        looks += [(REMEMBER_INTERVAL, lambda _now: self._remembered.look())]
        looks += [(LOOK_AT_FILES, lambda _now: self._unswapped.look())]
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

    # --- looks ---------------------------------------------------------------------------------------------

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
        return not self._readiness.away(now) and self._live.link_up is not False

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
                self._hub.send(identity, HandshakeBegun(self._handshakes.renew(public_key, now)))
            case StatusQuery():
                self._hub.send(identity, self._status(now))

    def _status(self, now: float) -> GatewayStatus:
        return report.status(
            *(self._stage, self._kernel, self._live, self._handshaker, self._readiness, self._workers),
            self._names.unresolved,
            self._nesting.fault_of,
            now,
        )


def _handshaker(registry: Registry, timestamps: TimestampStore, clock: Clock) -> Handshaker:
    private_key = registry.interface.private_key
    identity = Identity.from_private_bytes(private_key) if private_key else None
    own = timestamps.own(identity.public_key) if identity else bytes(c.TIMESTAMP_LENGTH)
    return Handshaker(identity, own, secrets.token_bytes, jitter, clock.anchor)
