"""Carries out the effects of `proto.handshaker`, and hands it handshake messages and deadlines.

handshake-in ──▶ Handshaker ──effects, in order──▶ timestamps on disk │ sessions to workers │ handshake-out
deadlines    ────────┘
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from key_service import unsent
from key_service.hub import Hub
from key_service.moves import Moves
from key_service.names import Names
from key_service.odd_stamps import OddStamps
from key_service.registry import Registry
from key_service.sweeps import Sweeps
from key_service.timestamps import TimestampStore
from stagewire.control.messages import EndpointFound, HandshakeGaveUp, HandshakeSent
from stagewire.control.session_keys import SessionsGiver
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame
from stagewire.pipe.names import HANDSHAKE_IN, HANDSHAKE_OUT
from stagewire.pipe.send_queue import SendQueue
from stagewire.process.stage import Stage
from stagewire.proto import endpoint as places
from stagewire.proto.events import Effect, GaveUp, InstallSession, RememberTimestamp, SendHandshake
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.messages import BadMessage, OldStamp

CONN_PATIENCE: Final = 1.0
"""s that handshake messages wait for a missing conn-service."""


class Handshakes:
    """Connects one Handshaker to the pipes, the disk and the workers."""

    def __init__(
        self,
        stage: Stage,
        registry: Registry,
        handshaker: Handshaker,
        timestamps: TimestampStore,
        giver: SessionsGiver,
        hub: Hub,
        moves: Moves,
        names: Names,
        sweeps: Sweeps,
    ) -> None:
        self._stage, self._registry, self._handshaker, self._timestamps = stage, registry, handshaker, timestamps
        self._giver, self._hub, self._moves, self._names, self._sweeps = giver, hub, moves, names, sweeps
        self._odd_stamps = OddStamps(stage.log, registry.label)
        timestamps.on_forget = self._odd_stamps.forget

    def set_up(self) -> None:
        """Opens the pipes, and begins to read."""
        stage, pipes = self._stage, self._stage.pipes
        pipes.receiver(stage.loop, HANDSHAKE_IN, self._on_handshakes, stage.drop)
        sender, count = pipes.sender(stage.loop, HANDSHAKE_OUT), partial(unsent.note, stage.counters)
        self._out = SendQueue(stage.loop, sender, stage.counters, "conn_full", patience=CONN_PATIENCE, count=count)

    def next_deadline(self) -> float | None:
        return self._handshaker.next_deadline()

    def act(self, now: float) -> None:
        self.carry_out(self._handshaker.act(now, time.time_ns()), now)

    # --- from the network ----------------------------------------------------------------------------------

    def _on_handshakes(self, frames: Sequence[Frame], now: float) -> None:
        for data, start, end in frames:
            try:
                endpoint, message = trains.unpack_handshake_untrusted(data, now, start, end)
                self.carry_out(self._handshaker.receive_untrusted(message, endpoint, now, time.time_ns()), now)
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

    # --- wishes --------------------------------------------------------------------------------------------

    def want(self, public_key: bytes, now: float, *, ready: bool = True) -> None:
        """Begins a handshake if the peer has no young session. `ready` is as in `Handshaker.want`."""
        self.carry_out(self._handshaker.want(public_key, now, time.time_ns(), ready=ready), now)

    def renew(self, public_key: bytes, now: float) -> str:
        """Begins a handshake, or lets one wait its turn. Returns why there is none, or an empty text."""
        peer = self._handshaker.peers.get(public_key)
        if peer is None:
            return "no peer has this key"
        if peer.endpoint is None:
            return "its endpoint is not known"
        self.carry_out(self._handshaker.renew(public_key, now, time.time_ns()), now)
        return ""

    def endpoint_found(self, public_key: bytes, now: float, *, late: bool, moved: bool) -> None:
        """Tells a peer's home workers the new address of its host name, and may begin a handshake.

        A peer with a keepalive gets a handshake, and a `late` peer, as packets to it have been refused. A peer that has
        `moved` gets a handshake even if its session is young.
        """
        peer = self._handshaker.peers[public_key]
        peer.endpoint_set_at = now
        self._tell_home(public_key, EndpointFound(public_key, peer.endpoint or b"", now))
        if moved:
            self.renew(public_key, now)
        elif late or self._registry.peers[public_key].persistent_keepalive:
            self.want(public_key, now)

    # --- effects -------------------------------------------------------------------------------------------

    def carry_out(self, effects: Iterable[Effect], now: float) -> None:
        """Does what the Handshaker returns, in its order."""
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
            self._out.offer_each(leaving, now)

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
        for worker in self._moves.homes(public_key):
            self._hub.tell("device", worker, message)
