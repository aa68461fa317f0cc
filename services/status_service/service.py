"""The shell around the tally."""

import json

import zmq

from stagewire.ipc import control, endpoints
from stagewire.ipc.codec import BadControl
from stagewire.ipc.control import Counters, FromKey, Hello, SnapshotEnd, StatusQuery, StatusReply
from stagewire.ipc.stage import ControlLine, Stage
from status_service.tally import Tally

PER_TURN = 64


class StatusService:
    """Counters and health of one interface."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._tally = Tally()

    def set_up(self) -> None:
        """Opens the pipes."""
        stage = self._stage
        self._telemetry = stage.pipes.bind(zmq.PULL, endpoints.TELEMETRY)
        self._query = stage.pipes.bind(zmq.REP, endpoints.STATUS_QUERY)
        stage.loop.add(self._telemetry, self._on_telemetry)
        stage.loop.add(self._query, self._on_query)
        self._line = ControlLine(stage, self)

    def _on_telemetry(self, now: float) -> None:
        for _ in range(PER_TURN):
            try:
                message = control.TO_STATUS.unpack_untrusted(self._telemetry.recv(zmq.DONTWAIT))
            except zmq.Again:
                return
            except BadControl as bad:
                self._stage.drop(bad)
                continue
            if isinstance(message, Counters):
                self._tally.take(message, now)
            else:
                self._stage.counters["control_unexpected"] += 1

    def _on_query(self, now: float) -> None:
        try:
            message = control.TO_STATUS.unpack_untrusted(self._query.recv(zmq.DONTWAIT))
        except zmq.Again:
            return
        except BadControl as bad:
            self._stage.drop(bad)
            message = None
        answer = self._snapshot(now) if isinstance(message, StatusQuery) else {}
        self._query.send(control.TO_STATUS.pack(StatusReply(json.dumps(answer))), zmq.DONTWAIT)

    def _snapshot(self, now: float) -> dict[str, object]:
        return {
            "services": [
                {
                    "stage": stage,
                    "number": number,
                    "pid": service.pid,
                    "heard_s_ago": round(now - service.heard, 3),
                    "lives": service.lives,
                    "counters": service.total(),
                }
                for (stage, number), service in sorted(self._tally.services.items())
            ]
        }

    def hello(self) -> Hello:
        """The plain one."""
        return self._stage.hello()

    def on_control(self, message: FromKey, now: float) -> None:  # noqa: ARG002 - nothing here depends on the time
        """Nothing in a snapshot is for us but its end."""
        if isinstance(message, SnapshotEnd):
            self._line.applied(message.version)
