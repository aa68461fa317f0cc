"""Takes questions from key-service, runs each look-up in a thread, and sends the answers back."""

import socket
from collections import deque
from threading import Thread
from typing import Final, assert_never

from resolver_service.answers import FAMILIES, Pending
from resolver_service.door import HostDoor
from resolver_service.lookup import Door, Outcome, Question, look_up
from resolver_service.servers import Sources
from stagewire.control.messages import Hello, LiveSessions, Resolve, Resolved, SnapshotEnd, ToResolver, Welcome
from stagewire.pipe.names import SOCKETS
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage

MOST_THREADS: Final = 64
"""Look-ups at once; the others wait."""


class ResolverService:
    """Looks up the names of one interface's endpoints."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._sources = Sources(before=stage.environment.resolv_conf_before)
        self._pending: dict[str, Pending] = {}
        self._waiting: deque[tuple[Pending, Question]] = deque()
        self._at_work = 0
        self._done: deque[tuple[Pending, int, Outcome]] = deque()
        """Outcomes of finished threads; each thread then sends a byte into `_theirs`."""
        self._ours, self._theirs = socket.socketpair()
        self._door: Door = HostDoor(stage.pipes.path(SOCKETS))

    def set_up(self) -> None:
        """Opens the pipes."""
        self._line = ControlLine(self._stage, self)
        self._stage.loop.add(self._ours.fileno(), self._collect)
        self._stage.loop.add_timed(self)

    def hello(self) -> list[Hello | LiveSessions]:
        return [self._stage.hello()]

    def on_control(self, message: ToResolver, now: float) -> None:  # noqa: ARG002 - nothing here depends on the time
        match message:
            case Resolve(host=host) if host not in self._pending:
                pending = self._pending[host] = Pending(host)
                self._waiting.extend((pending, Question(host, family, message.avoid)) for family in FAMILIES)
                self._begin()
            case SnapshotEnd():
                self._line.applied(message.version)
            case Welcome() | Resolve():
                pass
            case _:
                assert_never(message)

    def _begin(self) -> None:
        while self._waiting and self._at_work < MOST_THREADS:
            self._at_work += 1
            # A daemon: a running look-up must not delay the end of the process.
            Thread(target=self._work, args=self._waiting.popleft(), daemon=True).start()

    def _work(self, pending: Pending, question: Question) -> None:
        outcome = look_up(question, self._door, self._sources)
        self._done.append((pending, question.family, outcome))
        self._theirs.send(b"\0")

    def _collect(self, now: float) -> None:
        self._ours.recv(4096)
        while self._done:
            pending, family, outcome = self._done.popleft()
            self._at_work -= 1
            if pending.take(family, outcome, now):
                self._answer(pending)
        self._begin()

    def _answer(self, pending: Pending) -> None:
        if self._pending.get(pending.host) is pending:  # else `act` has answered it already
            del self._pending[pending.host]
            places, error = pending.answer()
            if error:
                self._stage.counters["look_ups_failed"] += 1
            self._line.say(Resolved(pending.host, places, error))

    def next_deadline(self) -> float | None:
        """Returns when to answer a host although one look-up still runs."""
        return min((each.until for each in self._pending.values() if each.until is not None), default=None)

    def act(self, now: float) -> None:
        """Answers the hosts whose grace is over."""
        for pending in list(self._pending.values()):
            if pending.until is not None and pending.until <= now:
                self._answer(pending)
