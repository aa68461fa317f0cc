"""Does what the words of the other stages ask for."""

from typing import assert_never

from key_service import denials
from key_service.answers import Answers
from key_service.handshakes import Handshakes
from key_service.hub import Member
from key_service.last_words import LastWords
from key_service.live import LiveConfiguration
from key_service.names import Names
from key_service.nesting import Nesting
from key_service.peer_reports import PeerReports
from key_service.registry import Registry
from key_service.snapshots import Snapshots
from key_service.strangers import Strangers
from key_service.workers import Workers
from stagewire.control.chains import ChainJudged, Nested
from stagewire.control.confirm import Cleared, Confirmed
from stagewire.control.gateway import PacketsDenied
from stagewire.control.messages import (
    Applied,
    FromStage,
    FromWorkerAlone,
    Heartbeat,
    Hello,
    HostState,
    LinkState,
    Listening,
    LiveSessions,
    MovedIn,
    Resolved,
    SessionRefused,
    SessionsInstalled,
)
from stagewire.control.questions import HandshakeNow, Scale, StatusQuery
from stagewire.control.telemetry import LastCount, PeerTraffic
from stagewire.loop import boot_time
from stagewire.process.stage import Stage
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake
from stagewire.proto.handshaker import Handshaker
from stagewire.stages import WORKER


class StageWords:
    """Hands each message to the part of key-service that it concerns."""

    def __init__(
        self,
        stage: Stage,
        registry: Registry,
        handshaker: Handshaker,
        handshakes: Handshakes,
        workers: Workers,
        live: LiveConfiguration,
        answers: Answers,
        snapshots: Snapshots,
        names: Names,
        nesting: Nesting,
        reports: PeerReports,
        strangers: Strangers,
        last_words: LastWords,
    ) -> None:
        self._stage, self._registry, self._handshaker, self._handshakes = stage, registry, handshaker, handshakes
        self._workers, self._live, self._answers, self._snapshots = workers, live, answers, snapshots
        self._names, self._nesting, self._reports = names, nesting, reports
        self._strangers, self._last_words = strangers, last_words

    def on_hello(self, member: Member) -> None:
        """Takes a process in, and sends its snapshot."""
        self._stage.log.info("stage said hello", stage=member.stage, number=member.number, pid=member.pid)
        if member.stage == WORKER:
            self._workers.on_hello(member)
            if self._workers.know_homes():
                self._snapshots.release()
        if member.stage == "conn":
            self._nesting.start_anew()
        if member.stage == "status":
            self._reports.start_anew()
        self._snapshots.begin(member)

    def on_worker_gone(self, number: int, generation: int) -> None:
        """Does without a worker whose line for sessions has ended."""
        self._workers.on_gone(number, generation)
        self._answers.on_gone(number, boot_time())

    def on_message(self, member: Member, message: FromStage, now: float) -> None:
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
                    moved = public_key in found.moved
                    self._handshakes.endpoint_found(public_key, now, late=found.late, moved=moved)
            case Confirmed() | Cleared():
                self._answers.take(member, message, now)
            case Nested():
                self._nesting.on_nested(message, now)
            case ChainJudged():
                self._nesting.on_judged(message)
            case Listening():
                self._live.on_listening(message)
            case LinkState():
                self._live.on_link_state(message)
            case HostState():
                self._live.on_host_state(message)
            case PacketsDenied():
                denials.note(message, self._registry, self._stage.counters)
            case Hello() | LiveSessions() | Heartbeat() | StatusQuery() | Scale() | HandshakeNow():
                pass  # the hub handles these
            case _:
                self._on_worker_message(member, message, now)

    def _on_applied(self, member: Member, now: float) -> None:
        if member.stage == WORKER:
            self._workers.consider(member.number, now)
        elif member.stage == "resolver":
            self._names.start_anew(now)
        self._strangers.look(now)

    def _on_worker_message(self, member: Member, message: FromWorkerAlone, now: float) -> None:
        handshaker, workers = self._handshaker, self._workers
        match message:
            case WantHandshake(public_key=public_key):
                if handshaker.peers[public_key].worker == member.number:  # not the worker that the peer leaves
                    # A dead worker may still count as up. An initiation for it, and a second soon after for its
                    # successor, would cost REKEY_TIMEOUT: the peer takes the second initiation for a flood.
                    ready = workers.up.get(member.number) == member.generation
                    self._handshakes.want(public_key, now, ready=ready)
            case SessionsInstalled(indices=indices):
                workers.on_installed(indices, member, now)
            case SessionRefused(index=index):
                handshaker.refused(index)
            case SessionConfirmed(public_key=public_key, at=at):
                workers.on_confirmed(public_key, member, now, at)
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
