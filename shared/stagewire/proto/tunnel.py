"""One peer in its home worker: sessions, timers, staged packets, endpoint.

Outbound, per train (paper, sections 5.4.6, 6.1, 6.5):
    1. no session that may send: stage (128 packets, oldest out first) and want a handshake
    2. seal under the current session, counters in order
    3. timers; want a new session when this one is getting old

Inbound, per train, after the cipher and the replay window have accepted at least one packet:
    1. the endpoint moves to where it came from
    2. the first packet under `next` promotes it, completes the handshake and lets the staged packets go
    3. timers; want a new session when this one is getting old
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

from cryptography.exceptions import InvalidTag

from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto import ip
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake, WorkerEvent
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.coalesce import Item
from stagewire.proto.offload.segment import SuperPacket
from stagewire.proto.session import Session, SessionSlots
from stagewire.proto.staging import Room, Staged
from stagewire.proto.timers import Jitter, SessionTimers

if TYPE_CHECKING:  # it needs NumPy, which may be missing
    from stagewire.proto.offload.lane import Lane, Received
    from stagewire.proto.offload.uniform import Uniform

Packet = Union[bytes, SuperPacket, "Uniform"]
"""One from the OS, or something that stands for several of them."""
WANT_INTERVAL = 1.0
"""Seconds between two requests for a handshake: key-service spaces initiations anyway, and a request may be lost."""


@dataclass(slots=True)
class Output:
    """What follows from a call: runs of datagrams to one endpoint each, packets for the OS, events for key-service.

    A run may be a `Block`, which is good until the next call.
    """

    runs: list[tuple[bytes, Sequence[bytes]]] = field(default_factory=list)
    packets: list[Item] = field(default_factory=list)
    events: list[WorkerEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What holds for every peer of an interface. Times in s, the MTU (bytes) is the inner one."""

    mtu: int = 1420
    rekey_after_time: float = c.REKEY_AFTER_TIME


class Tunnel:
    """One peer's sessions and all that hangs on them. Calls add what follows from them to an Output."""

    def __init__(
        self,
        public_key: bytes,
        settings: TunnelSettings,
        jitter: Jitter,
        drops: Counter[str],
        room: Room,
        lane: "Lane | None" = None,
    ) -> None:
        """`room` is its worker's for staged packets. `lane` seals super-packets; without, they are sealed one by one."""
        self.public_key = public_key
        self.settings = settings
        self.slots = SessionSlots()
        self.timers = SessionTimers(jitter)
        self.endpoint: bytes | None = None
        self.tx_bytes = 0
        """UDP payload, handshakes not included."""
        self.rx_bytes = 0
        self.staged = Staged(room, drops)
        self._drops = drops
        self._lane = lane
        self._last_want: float | None = None

    def __repr__(self) -> str:
        return f"Tunnel({self.public_key.hex()[:8]})"

    # --- outbound ------------------------------------------------------------------------------------------

    def send(self, packets: Sequence[Packet], now: float, out: Output) -> None:
        """Seals a train, or stages it until there is a session."""
        session = self.slots.current
        if len(packets) == 1 and session is not None and self._send_lone(session, packets[0], now, out):
            return
        if session is None or self.endpoint is None or not session.may_send(now):
            self.staged.add(_one_by_one(packets))
            self.want("no_session", now, out)
            return
        total = sum([1 if isinstance(packet, bytes) else packet.count for packet in packets])
        if total > session.counters_left:
            packets = _one_by_one(packets)
        runs = self._seal(session, packets)
        sealed = sum(map(len, runs))
        if sealed < total:
            self._drops["counter_exhausted"] += 1
            self.staged.add(_one_by_one(packets[sealed:]))
        if not sealed:
            self.want("no_session", now, out)
            return
        for run in runs:
            self._sent(run, out)
        self._after_sending(session, now, out)
        self.timers.data_sent(now)

    def _send_lone(self, session: Session, packet: Packet, now: float, out: Output) -> bool:
        """Seals the only packet of a train, if nothing stands in the way; it mustn't pay for what a train needs."""
        if self.endpoint is None or not isinstance(packet, bytes) or not session.may_send(now):
            return False
        sealed = session.seal([packet], self.settings.mtu)
        if not sealed:  # no counter left
            return False
        self.tx_bytes += len(sealed[0])
        out.runs.append((self.endpoint, sealed))
        self._after_sending(session, now, out)
        self.timers.data_sent(now)
        return True

    def _seal(self, session: Session, packets: Sequence[Packet]) -> list[Sequence[bytes]]:
        """What is sealed: all of it, unless there are single packets alone and counters run out.

        Those of a flow stay in order. Between flows super-packets go before single ones, acknowledgements mostly, which
        would cut what can be sealed and sent at once into short pieces.
        """
        runs: list[Sequence[bytes]] = []
        train: list[bytes] = []
        alike: list[SuperPacket] = []
        behind: set[bytes | None] = set()
        """Flows of single packets that wait behind super-packets."""
        for packet in packets:
            if isinstance(packet, SuperPacket) and self._lane is not None:
                if (behind and (None in behind or ip.flow(packet.packet) in behind)) or (
                    alike and not self._lane.alike(alike[0], packet)
                ):
                    self._seal_some(session, train, alike, behind, runs)
                alike.append(packet)
            elif isinstance(packet, bytes):
                train.append(packet)
                if self._lane is not None and len(packets) > 1:
                    behind.add(ip.flow(packet))
            elif self._lane is None or isinstance(packet, SuperPacket):
                train += packet.packets()
            else:
                self._seal_some(session, train, alike, behind, runs)
                runs += self._lane.seal_uniform(session, packet, self.settings.mtu)
        self._seal_some(session, train, alike, behind, runs)
        return runs

    def _seal_some(
        self,
        session: Session,
        train: list[bytes],
        alike: list[SuperPacket],
        behind: set[bytes | None],
        runs: list[Sequence[bytes]],
    ) -> None:
        """Seals super-packets that are alike, then single packets, and empties all but `runs`."""
        mtu, lane = self.settings.mtu, self._lane
        if alike and lane is not None and lane.pays(alike):
            runs += lane.seal(session, alike, mtu)
        else:
            train[:0] = _one_by_one(alike)
        if train:
            runs.append(session.seal(train, mtu))
        for each in (train, alike, behind):
            each.clear()

    def send_keepalive(self, now: float, out: Output) -> None:
        """Sends what is staged, or, if nothing is, an empty packet."""
        if self.staged:
            self.flush(now, out)
        elif (session := self.slots.current) and self.endpoint is not None and session.may_send(now):
            self._sent(session.seal([b""], self.settings.mtu), out)
            self._after_sending(session, now, out)
        else:
            # An empty packet that waits for a session would only say what the handshake says itself.
            self.want("persistent", now, out)

    def flush(self, now: float, out: Output) -> None:
        """Sends what is staged."""
        if self.staged:
            self.send(self.staged.take(), now, out)

    def want(self, reason: str, now: float, out: Output) -> None:
        """Asks key-service for a handshake, at most once a WANT_INTERVAL."""
        if self._last_want is None or now - self._last_want >= WANT_INTERVAL:
            self._last_want = now
            out.events.append(WantHandshake(self.public_key, reason))

    def want_again(self, now: float, out: Output) -> None:
        """What was wanted may never have been heard: wants it anew, however lately it was."""
        self._last_want = None
        if self.slots.current is not None:
            self.slots.current.asked_for_rekey = False
        if self.staged:
            self.want("no_session", now, out)

    def _sent(self, run: Sequence[bytes], out: Output) -> None:
        assert self.endpoint is not None  # noqa: S101 - both callers have looked
        self.tx_bytes += len(run.data) if isinstance(run, Block) else sum(map(len, run))
        out.runs.append((self.endpoint, run))

    def _after_sending(self, session: Session, now: float, out: Output) -> None:
        self.timers.any_sent(now)
        if self._stale(session, now):
            self.want("rekey", now, out)

    def _stale(self, session: Session, now: float) -> bool:
        """Whether to rekey, seen from the sending side (paper, section 6.2).

        Only the initiator rekeys by age, or both would at once. When the operator lowered the interval the other side
        may not have, so then the responder rekeys too, a REKEY_TIMEOUT later.
        """
        if session.send_counter > c.REKEY_AFTER_MESSAGES:
            return True
        limit = self.settings.rekey_after_time
        if not session.initiator:
            if limit >= c.REKEY_AFTER_TIME:
                return False
            limit += c.REKEY_TIMEOUT
        return now - session.created > limit

    # --- inbound -------------------------------------------------------------------------------------------

    def receive(
        self, session: Session, datagrams: list[bytes], endpoint: bytes, now: float, out: Output
    ) -> list[bytes]:
        """Opens a train of transport messages of one session from one place; returns the packets, still padded.

        Hot: 2.1 us per 1,420-byte packet in a train of 64, of which 1.4 us are the cipher's.
        """
        drops = self._drops
        if session.expired(now):
            drops["session_expired"] += len(datagrams)
            return []
        decrypt, accept = session.decrypt, session.window.accept
        opened = []
        keepalives = received = 0
        for datagram in datagrams:
            counter = datagram[8:16]
            try:
                packet = decrypt(b"\0\0\0\0" + counter, datagram[16:], None)
            except (InvalidTag, ValueError):  # ValueError: too short even to have a counter
                drops["transport_not_authentic"] += 1
                continue
            # Only after authentication: a forged counter must not move the window. It also holds the upper limit.
            if not accept(int.from_bytes(counter, "little")):
                drops["replayed"] += 1
                continue
            received += len(datagram)
            if packet:
                opened.append(packet)
            else:
                keepalives += 1
        if opened or keepalives:
            self._received(session, received, endpoint, now, out, data=bool(opened))
        return opened

    def receive_rows(self, session: Session, received: "Received", endpoint: bytes, now: float, out: Output) -> None:
        """`receive`, for a run that lies in rows, where its packets are left. There must be a lane."""
        if session.expired(now):
            self._drops["session_expired"] += received.count
            return
        assert self._lane is not None  # noqa: S101 - it made the rows
        size = self._lane.open(session, received, self._drops)
        if size:
            self._received(session, size, endpoint, now, out, data=True)

    def _received(self, session: Session, size: int, endpoint: bytes, now: float, out: Output, *, data: bool) -> None:
        self.rx_bytes += size
        if endpoint != self.endpoint:
            self._move(endpoint, out)
        self.timers.any_received(now)
        if data:
            self.timers.data_received(now)
        if session is self.slots.next:
            self._ended(self.slots.promote(), out)
            out.events.append(SessionConfirmed(self.public_key, session.index))
            self.flush(now, out)
        if session is self.slots.current and session.initiator and not session.asked_for_rekey:
            # The last chance before the session can't be used any more, for a peer that only receives.
            limit = c.REJECT_AFTER_TIME - c.KEEPALIVE_TIMEOUT - c.REKEY_TIMEOUT
            if now - session.created > limit:
                session.asked_for_rekey = True
                self.want("rekey", now, out)

    def _move(self, endpoint: bytes, out: Output) -> None:
        self.endpoint = endpoint
        out.events.append(EndpointMoved(self.public_key, endpoint))

    # --- handshakes and time -------------------------------------------------------------------------------

    def install(self, session: Session, endpoint: bytes | None, now: float, out: Output) -> None:
        """Takes a new session in. As initiator this sends its first packet, which confirms the handshake."""
        self._ended(self.slots.install(session), out)
        if endpoint is not None:
            self.endpoint = endpoint
        self.timers.session_derived(now)
        self.timers.any_received(now)
        self._last_want = None
        if session.initiator:
            self.send_keepalive(now, out)
        else:
            self.timers.any_sent(now)

    def handshake_sent(self, now: float) -> None:
        """key-service sent this peer an initiation."""
        self.timers.any_sent(now)

    def handshake_gave_up(self, now: float) -> None:
        """Nobody answered for REKEY_ATTEMPT_TIME: what waited is dropped."""
        self._drops["handshake_gave_up"] += len(self.staged.take())
        self.timers.handshake_gave_up(now)

    def set_persistent_keepalive(self, interval: int, now: float, out: Output) -> None:
        """Changes the interval (s, 0 is off). Switching it on sends a keepalive at once."""
        if interval != self.timers.persistent_interval and self.timers.set_persistent_interval(interval, now):
            self.send_keepalive(now, out)

    def act(self, now: float, out: Output) -> None:
        """Does what is due."""
        for reason in self.timers.take_due(now):
            match reason:
                case "keepalive" | "persistent":
                    self.send_keepalive(now, out)
                case "no_answer":
                    # The address of ours that we speak from may be what no longer works.
                    if self.endpoint is not None:
                        self._move(places.without_source(self.endpoint), out)
                    self.want("no_answer", now, out)
                case "wipe":
                    self._drops["key_wiped_staged"] += len(self.staged)
                    self.end(out)

    def end(self, out: Output) -> None:
        """Forgets sessions and staged packets."""
        self.staged.take()
        self._ended(self.slots.clear(), out)

    def next_deadline(self) -> float | None:
        """When `act` is to be called (s)."""
        deadline = self.timers.next_deadline()
        return deadline[0] if deadline else None

    def _ended(self, sessions: list[Session], out: Output) -> None:
        if sessions:
            out.events.append(SessionsEnded(tuple(session.index for session in sessions)))


def _one_by_one(packets: Iterable[Packet]) -> list[bytes]:
    found: list[bytes] = []
    for packet in packets:
        if isinstance(packet, bytes):
            found.append(packet)
        else:
            found += packet.packets()
    return found
