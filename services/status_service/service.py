"""Reads counters from every stage, and answers the command's queries."""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import zmq

from stagewire.control import messages
from stagewire.control.codec import BadControl
from stagewire.control.messages import Hello, LiveSessions, SnapshotEnd, ToEvery
from stagewire.control.questions import EventsQuery, StatusQuery
from stagewire.control.speakers import Speaker, Speakers
from stagewire.control.status import CountersStatus, EventsStatus
from stagewire.control.telemetry import Counters, GatewayReport, LastReport
from stagewire.loop import boot_time
from stagewire.pipe.names import STATUS_QUERY, TELEMETRY
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage
from status_service.beats import Beats
from status_service.exposition import CONTENT_TYPE, Metrics
from status_service.happenings import Happenings
from status_service.health import Health
from status_service.http import Answer, Server
from status_service.peers import Peers
from status_service.presence import Presence
from status_service.records import Records, life_of, new_life
from status_service.ring import Ring
from status_service.tally import Tally

PER_TURN = 64
"""Messages."""
MOST_EVENTS = 256
"""Events in one answer."""
LAST_FOR = 1.0
"""s for which key-service's last report holds: within it, an ending status-service awaits no other."""
WORK_EVERY = 10.0
"""s between two looks at what the stages have done."""


class StatusService:
    """Keeps the counters of one interface's stages."""

    def __init__(self, stage: Stage, listener: socket.socket | str = "off", folder: Path | None = None) -> None:
        """Takes the socket for metrics, or why there is none, and the folder of the history."""
        self._stage = stage
        self._tally = Tally()
        self._peers = Peers()
        self._health = Health(self._tally, self._peers, Beats(stage.slot))
        self._metrics = Metrics(stage.environment.interface, self._tally, self._peers, self._health)
        self._listener = listener
        self._place = "" if isinstance(listener, socket.socket) else listener
        self._speakers = Speakers()
        self._said: dict[object, object] = {}
        """What each process said last, apart from what grows with time."""
        self._work_at = 0.0
        self._key_ended = -LAST_FOR
        self._records = Records(folder, stage.log)
        self._happenings: Happenings

    def set_up(self) -> None:
        """Opens the pipes."""
        stage = self._stage
        self._telemetry, _ = stage.pipes.guarded(stage.loop, TELEMETRY)
        self._query, _ = stage.pipes.guarded(stage.loop, STATUS_QUERY)
        stage.loop.add(self._telemetry, self._on_telemetry, routine=True)
        stage.loop.add(self._query, self._on_query, routine=True)
        self._line = ControlLine(stage, self)
        self._begin_records()
        if stage.took_over:
            self._happenings.on_taken_over(stage.name, stage.number, os.getpid(), time.time())
        stage.loop.at_stop(self._note_work, lambda: boot_time() - self._key_ended < LAST_FOR)
        stage.loop.add_paced(1.0, self._look)
        stage.loop.add_paced(1.0, self._health.look)
        if isinstance(self._listener, socket.socket):
            self._place = Server(stage.loop, self._listener, self._answer, stage.environment.metrics_names).url

    def _begin_records(self) -> None:
        now, unix_s, records = boot_time(), time.time(), self._records
        kept = records.begin(life_of(self._stage.environment.run, new_life), now, unix_s)
        self._peers.resume(kept.seen)
        presence = Presence(unix_s, kept.connections, records.history.on_ended)
        self._happenings = Happenings(self._stage.log, self._peers, presence, Ring(kept.events), records.history)
        if not kept.goes_on:
            self._happenings.end_all(unix_s)
        self._stage.at_end = records.close

    def _look(self, now: float) -> None:
        unix_s = time.time()
        self._happenings.look(now, unix_s)
        if now >= self._work_at:
            self._note_work(now)
        self._records.look(now, unix_s)

    def _note_work(self, now: float) -> None:
        self._work_at = now + WORK_EVERY
        self._records.history.on_services(self._tally.services.items(), time.time())

    def _answer(self, path: str, now: float) -> Answer:
        match path:
            case "/metrics":
                return 200, CONTENT_TYPE, self._metrics.text(now)
            case "/healthz":
                return _told(self._health.unwell(now))
            case "/readyz":
                return _told(self._health.unready(now))
            case _:
                return 404, "text/plain", b"there are /metrics, /healthz and /readyz\n"

    def _on_telemetry(self, now: float) -> None:
        for _ in range(PER_TURN):
            try:
                frame = self._telemetry.recv(zmq.DONTWAIT, copy=False)
                message = messages.TO_STATUS.unpack_untrusted(frame.bytes)
            except zmq.Again:
                return
            except BadControl as bad:
                self._stage.drop(bad)
                continue
            if isinstance(message, GatewayReport | LastReport):
                self._on_report(message, self._speakers.of(frame), now)
            elif not isinstance(message, Counters) or Counters not in messages.allowed(message.stage).to_status:
                self._stage.counters["control_unexpected"] += 1
            elif not (speaker := self._speakers.of(frame)).may_be(message.stage, message.number):
                self._stage.refuse(TELEMETRY, speaker.credentials)
            else:
                said = message.generation, message.values, message.incidents, message.captures, message.waits
                self._note((message.stage, message.number), said)
                counters = replace(message, pid=speaker.credentials.pid or message.pid)
                taken_over = self._tally.take(counters, now)
                self._happenings.on_counters(counters, now, time.time(), taken_over=taken_over)

    def _note(self, place: object, said: object) -> None:
        """Counts a report as work if it says anything new."""
        if self._said.get(place) != said:
            self._said[place] = said
            self._stage.loop.worked += 1

    def _on_report(self, message: GatewayReport | LastReport, speaker: Speaker, now: float) -> None:
        if speaker.may_be("key", 0):
            if isinstance(message, LastReport):
                self._key_ended = now
            else:
                self._note("report", (message.ready, message.peers, message.gone, message.events))
                if not self._happenings.on_report(message, now, time.time()):
                    self._stage.counters["control_unexpected"] += 1
        else:
            self._stage.refuse(TELEMETRY, speaker.credentials)

    def _on_query(self, now: float) -> None:
        answer: CountersStatus | EventsStatus = CountersStatus(())
        try:
            message = messages.TO_STATUS.unpack_untrusted(self._query.recv(zmq.DONTWAIT))
        except zmq.Again:
            return
        except BadControl as bad:
            self._stage.drop(bad)
        else:
            match message:
                case StatusQuery():
                    unready = tuple(self._health.unready(now))
                    answer = replace(self._tally.status(now), metrics=self._place, unready=unready)
                case EventsQuery(after=after, kinds=kinds, most=most):
                    ring = self._happenings.ring
                    found, lost = ring.after(after, kinds, min(most, MOST_EVENTS))
                    answer = EventsStatus(found, ring.newest, lost)
                case _:
                    self._stage.counters["control_unexpected"] += 1
        self._query.send(messages.TO_STATUS.pack(answer), zmq.DONTWAIT)

    def hello(self) -> list[Hello | LiveSessions]:
        return [self._stage.hello()]

    def on_control(self, message: ToEvery, now: float) -> None:  # noqa: ARG002 - nothing here depends on the time
        """Takes the end of a snapshot; the rest concerns other stages."""
        if isinstance(message, SnapshotEnd):
            self._line.applied(message.version)


def _told(reasons: list[str]) -> Answer:
    """Answers a question about health."""
    text = "\n".join(reasons or ["ok"]) + "\n"
    return (503 if reasons else 200), "text/plain; charset=utf-8", text.encode()
