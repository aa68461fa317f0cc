"""Speaks with key-service for a stage.

The line says Hello until key-service welcomes the stage, then Heartbeat, rarely while the stage is idle. It says Hello again
to a new key-service. It rings key-service's bell before anything but a heartbeat.
"""

import gc
import math
from typing import Any, Final, Protocol

import zmq

from stagewire.control import messages
from stagewire.control.codec import BadControl
from stagewire.control.messages import (
    Applied,
    Beat,
    ConnSettings,
    FromKey,
    FromStage,
    Heartbeat,
    Hello,
    LiveSessions,
    PeersSet,
    PrefixesGone,
    PrefixesSet,
    RoutesGone,
    RoutesSet,
    SnapshotEnd,
    TunSettings,
    Welcome,
)
from stagewire.loop import boot_time
from stagewire.pipe.names import CONTROL
from stagewire.process import handed
from stagewire.process.bell import Ringer
from stagewire.process.hand_down import Said
from stagewire.process.stage import Stage

HELLO_INTERVAL: Final = 0.05
"""s between two hellos that key-service doesn't answer: more often than heartbeats, so that a start is quick."""
JUST_WELCOMED: Final = 1.0
"""s after a Welcome during which `introduce` has nothing to do."""


class Handler(Protocol):
    """Acts on key-service's messages; each stage's service does."""

    def hello(self) -> list[Hello | LiveSessions]:
        """Describes the stage as it is now: a Hello, and a worker's sessions behind it."""

    def on_control(self, message: Any, now: float) -> None:
        """Takes a message that `ALLOWED` lists for the stage, Welcome and SnapshotEnd included."""


_RECALLED = Welcome | ConnSettings | TunSettings | RoutesSet | RoutesGone | SnapshotEnd
"""The messages that tun- and conn-service need before packets can pass."""


class ControlLine:
    """Connects a stage to key-service."""

    MAX_PER_TURN = 4
    """Messages read in one turn."""
    BUDGET = 0.001
    """s of reading at a time. The line then rests as long as it read: a snapshot must not keep packets waiting."""

    def __init__(self, stage: Stage, handler: Handler) -> None:
        self._stage = stage
        self._handler = handler
        self._allowed = messages.ALLOWED[stage.name].from_key
        self._socket = stage.pipes.connect(CONTROL, announced=True)
        self._ringer = Ringer(stage.pipes.run / "key")
        self._key_generation: int | None = None
        self._welcomed_at = -math.inf
        self._said: Said | None = None
        self._told: tuple[str, int] | None = None
        """The fault and the number of spares of the last heartbeat."""
        self._greets_at: float | None = boot_time()
        """Time (s) of the next hello, or of the first heartbeat behind a Welcome."""
        stage.loop.add(self._socket, self._read)
        stage.loop.add_paced(messages.HEARTBEAT_INTERVAL, self._beat)
        self._rest: float | None = None
        stage.loop.add_timed(self)

    def say(self, message: FromStage) -> bool:
        """Sends a message. Returns False if key-service is away; the next one makes every stage say hello."""
        if not isinstance(message, Heartbeat):
            self._ringer.ring()
        try:
            self._socket.send(messages.FROM_STAGE.pack(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        finally:
            self._stage.loop.sent(self._socket)
        return True

    def introduce(self, now: float) -> None:
        """Says hello at once to a new key-service, whose first beat may come late.

        Does nothing just after a Welcome: it came from that same key-service, which wouldn't answer again so soon.
        """
        if now >= self._welcomed_at + JUST_WELCOMED:
            self._forget_key(now)

    def recall(self, now: float) -> bool:
        """Gives the handler the messages that key-service sent to our predecessor, without SnapshotEnd.

        Returns False if they aren't known. So a stage can serve an inherited kernel's queue before key-service answers.
        From now on the line keeps key-service's messages for a successor.
        """
        self._said = Said(self._stage.said)
        self._stage.bequest.leave({handed.SAID: self._said.descriptor}, handed.SAID)
        try:
            said = [messages.FROM_KEY.unpack_untrusted(message) for message in self._said.messages()]
        except BadControl:  # from another version
            said = []
        said = [message for message in said if type(message) in self._allowed]
        if not any(isinstance(message, SnapshotEnd) for message in said):
            self._said.begin()
            return False
        for message in said:
            if not isinstance(message, SnapshotEnd):
                self._handler.on_control(message, now)
        return True

    def _note(self, message: FromKey, data: bytes) -> None:
        if self._said is not None and isinstance(message, _RECALLED):
            if isinstance(message, Welcome):
                self._said.begin()
            self._said.add(data)

    def applied(self, version: int) -> None:
        """Says that the snapshot is in force."""
        self.say(Applied(version))

    def _forget_key(self, now: float) -> None:
        self._key_generation, self._greets_at = None, now

    def _greet(self, now: float) -> None:
        if self._key_generation is not None:
            self._greets_at = None
            self._beat(now)
            return
        self._greets_at = now + HELLO_INTERVAL
        if not all(map(self.say, self._handler.hello())):
            # The connection may stand any moment, and during a take-over packets wait for it.
            self._stage.loop.when_writable(self._socket, self._on_line)

    def _beat(self, _now: float) -> None:
        if self._key_generation is not None:
            self._told = self._state()
            self.say(Heartbeat(self._stage.generation, *self._told))

    def _state(self) -> tuple[str, int]:
        return self._stage.fault, self._stage.bequest.spares

    def _has_news(self) -> bool:
        told, stage = self._told, self._stage
        if told is None or (told[0] == stage.fault and told[1] == stage.bequest.spares):
            return False
        return self._key_generation is not None

    def _on_line(self, now: float) -> None:
        self._stage.loop.when_writable(self._socket, None)
        self._greets_at = now

    def next_deadline(self) -> float | None:
        """Returns the time of a hello, or the end of a rest; 0 when a heartbeat has news."""
        if self._has_news():
            return 0.0
        if self._greets_at is None or self._rest is None:
            return self._rest if self._greets_at is None else self._greets_at
        return min(self._greets_at, self._rest)

    def act(self, now: float) -> None:
        """Ends the rest, says hello, and tells the news."""
        if self._rest is not None and self._rest <= now:
            self._rest = None
            self._stage.loop.resume(self._socket)
        if self._greets_at is not None and self._greets_at <= now:
            self._greet(now)
        elif self._has_news():
            self._beat(now)

    def _read(self, _now: float) -> None:
        begun = boot_time()
        self._read_some(begun)
        now = boot_time()
        if now >= begun + self.BUDGET:
            self._stage.loop.pause(self._socket)
            self._rest = now + (now - begun)

    def _read_some(self, now: float) -> None:
        until = now + self.BUDGET
        for position in range(self.MAX_PER_TURN):
            if position and boot_time() >= until:
                return
            try:
                data = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = messages.FROM_KEY.unpack_untrusted(data)
            except BadControl as bad:
                self._stage.drop(bad)
                continue
            if type(message) not in self._allowed:
                self._stage.counters["control_unexpected"] += 1
                continue
            if isinstance(message, Beat):
                if message.generation != self._key_generation:
                    self._forget_key(now)
                continue
            if isinstance(message, Welcome):
                self._key_generation = message.generation
                self._welcomed_at = now
            self._note(message, data)
            self._handler.on_control(message, now)
            if isinstance(message, PeersSet | PrefixesSet | PrefixesGone | RoutesSet | RoutesGone):
                # Prefixes form no cycles, and a collector that searches 130,000 of them delays packets.
                gc.freeze()
            if isinstance(message, SnapshotEnd):
                self._stage.log.info("configured", version=message.version)
