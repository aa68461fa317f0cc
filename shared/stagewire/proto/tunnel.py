"""Keeps one peer in its home worker: sessions, timers, staged packets, endpoint.

Outbound, per train (paper, sections 5.4.6, 6.1, 6.5):

  1. no session that may send: stage (128 packets, oldest out first) and want a handshake
  2. seal under the current session, counters in order
  3. timers; want a new session when this one is getting old

Inbound, per train, after the cipher and the replay window have accepted at least one packet:

  1. the endpoint moves to the train's source
  2. the first packet under `next` promotes it, completes the handshake and lets the staged packets go
  3. timers; want a new session when this one is getting old
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag

from stagewire.limits import DEFAULT_MTU
from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake, WorkerEvent
from stagewire.proto.packets import carried, ip
from stagewire.proto.packets.merge import Item
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.session import Session, SessionSlots
from stagewire.proto.shaping import Limits
from stagewire.proto.staging import Room, Staged
from stagewire.proto.timers import Jitter, SessionTimers
from stagewire.reasons import Drops

Packet = bytes | SuperPacket
"""A packet from the OS, or an object that stands for several packets."""
Train = tuple[memoryview, int]
"""A whole train, and the number of its packets."""
WANT_INTERVAL = 1.0
"""s between two requests for a handshake, as one may be lost; key-service spaces initiations anyway."""


@dataclass(slots=True, init=False)
class Output:
    """Collects a call's results: runs of datagrams to one endpoint each, packets for the OS, events for key-service.

    A train is a view, good until the next call.
    """

    sealed: list[Train]
    """Cipher trains as the pipe takes them, before the runs."""
    opened: list[Train]
    """Plain trains as the pipe takes them, before the packets."""
    runs: list[tuple[bytes, Sequence[bytes]]]
    packets: list[Item]
    events: list[WorkerEvent]
    born: float
    """Birth (s) of the oldest packet in `sealed` or `opened`, and in the runs or packets behind them."""

    def __init__(self) -> None:
        # A dataclass's own would call each list's factory, which costs more than twice as much.
        self.sealed, self.opened, self.runs, self.packets, self.events = [], [], [], [], []
        self.born = math.inf


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """Holds the settings of all peers of an interface. Times are in s; the MTU (bytes) is the inner one."""

    mtu: int = DEFAULT_MTU
    rekey_after_time: float = c.REKEY_AFTER_TIME


class Tunnel:
    """Holds one peer's sessions with timers, staged packets and endpoint. Each call adds its results to an Output."""

    def __init__(
        self,
        public_key: bytes,
        settings: TunnelSettings,
        jitter: Jitter,
        drops: Drops,
        room: Room,
    ) -> None:
        """Begins without a session. `room` bounds the worker's staged packets."""
        self.public_key = public_key
        self.settings = settings
        self.slots = SessionSlots()
        self.timers = SessionTimers(jitter)
        self.endpoint: bytes | None = None
        self.endpoint_at = 0.0
        """When the operator or a look-up set the endpoint (s), by key-service's clock."""
        self.tx_bytes = 0
        """Bytes of UDP payload, without handshakes."""
        self.rx_bytes = 0
        self.limits: Limits | None = None
        self._refused = 0
        """Bytes that earlier limits refused."""
        self.staged = Staged(room, drops)
        self._drops = drops
        self._carried = carried.Carried()
        self._last_want: float | None = None

    def __repr__(self) -> str:
        return f"Tunnel({self.public_key.hex()[:8]})"

    @property
    def refused(self) -> int:
        """Returns the received bytes that the peer's limits did not let pass."""
        return self._refused + (self.limits.refused if self.limits is not None else 0)

    @property
    def traffic(self) -> int:
        """Returns the bytes of UDP payload both ways that count towards a quota, without handshakes."""
        return self.tx_bytes + self.rx_bytes - self.refused

    def set_limits(
        self, rates: tuple[int, int], cap: int | None, held_back: bool, now: float, out: Output
    ) -> list[bytes]:
        """Changes the peer's limits. What waits goes on waiting for another rate; for none, it passes.

        Returns those packets that come from the peer.
        """
        limits, to_peer, from_peer = self.limits, list[bytes](), list[bytes]()
        if limits is not None:
            limits.cap, limits.held_back = cap, held_back
            if limits.rates != rates:
                to_peer, from_peer = limits.change(rates, self.traffic, now)
        if not (any(rates) or cap is not None or held_back):
            self._refused, self.limits = self.refused, None
        elif limits is None:
            limits = self.limits = Limits(rates, cap, self._drops, now)
            limits.held_back = held_back
        if to_peer:
            self.send(to_peer, now, out)
        return from_peer

    # --- outbound ------------------------------------------------------------------------------------------

    def admit(self, packets: Sequence[Packet], now: float) -> Sequence[Packet]:
        """Returns the packets that the peer's limits let pass now; others may follow at `release`."""
        if self.limits is None or not self.limits.divert(self.traffic):
            return packets
        return self.limits.to_peer(_one_by_one(packets), self.traffic, now)

    def release(self, now: float, out: Output) -> list[bytes]:
        """Sends the packets that have waited for the rate to the peer; returns those from the peer."""
        if self.limits is None:
            return []
        if packets := self.limits.to_peer((), self.traffic, now):
            self.send(packets, now, out)
        return self.limits.from_peer((), self.traffic, now)

    def send(self, packets: Sequence[Packet], now: float, out: Output) -> None:
        """Seals a train, or stages it until there is a session."""
        session = self.slots.current
        if len(packets) == 1 and session is not None and self._send_lone(session, packets[0], now, out):
            return
        if session is None or self.endpoint is None or not session.may_send(now):
            self.staged.add(_one_by_one(packets))
            self.want("no_session", now, out)
            return
        if not carried.any_may_be(packets):
            self._send_to(self.endpoint, session, packets, now, out)
            return
        for limit, group in self._by_limit(packets).items():
            place = places.with_limit(self.endpoint, limit) if limit else self.endpoint
            self._send_to(place, session, group, now, out)

    def _by_limit(self, packets: Iterable[Packet]) -> dict[int, list[Packet]]:
        """Sorts packets by the hop limit of what is made of them, and drops those that have passed too many tunnels."""
        found: dict[int, list[Packet]] = {}
        for packet in packets:
            limit = self._carried.limit(packet if isinstance(packet, bytes) else packet.packet)
            if limit == carried.TOO_DEEP:
                self._drop("nested_too_deep", packet)
            else:
                found.setdefault(limit, []).append(packet)
        return found

    def _drop(self, reason: str, packet: Packet) -> None:
        count, packet = (1, packet) if isinstance(packet, bytes) else (packet.count, packet.first())
        self._drops.note(reason, count, place=ip.destination(packet) or b"", size=len(packet))

    def _send_to(self, place: bytes, session: Session, packets: Sequence[Packet], now: float, out: Output) -> None:
        total = sum([1 if isinstance(packet, bytes) else packet.count for packet in packets])
        if total > session.counters_left:
            packets = _one_by_one(packets)
        run = session.seal(_in_order(packets), self.settings.mtu)
        if len(run) < total:
            rest = _one_by_one(packets[len(run) :])
            self._drops.note("counter_exhausted", place=ip.destination(rest[0]) or b"", size=len(rest[0]))
            self.staged.add(rest)
        if not run:
            self.want("no_session", now, out)
            return
        self._sent(place, run, out)
        self.sealed(session, 0, now, out)

    def ready(self, count: int, now: float) -> Session | None:
        """Returns the session that may seal `count` packets to the endpoint; None if `send` must see to them."""
        session = self.slots.current
        if session is None or self.endpoint is None or not session.may_send(now, count):
            return None
        return session

    def sealed(self, session: Session, size: int, now: float, out: Output) -> None:
        """Notes packets of the OS that were sealed, in datagrams of `size` bytes that `out` doesn't count yet."""
        self.tx_bytes += size
        self.timers.packet_sent(now)
        if self._stale(session, now):
            self.want("rekey", now, out)

    def _send_lone(self, session: Session, packet: Packet, now: float, out: Output) -> bool:
        """Seals the only packet of a train the short way, without a train's costs. Returns False if `send` must do it."""
        if self.endpoint is None or not isinstance(packet, bytes) or not session.may_send(now):
            return False
        if carried.any_may_be((packet,)) and self._carried.limit(packet):
            return False
        sealed = session.seal([packet], self.settings.mtu)
        if not sealed:  # no counter left
            return False
        out.runs.append((self.endpoint, sealed))
        self.sealed(session, len(sealed[0]), now, out)
        return True

    def send_keepalive(self, now: float, out: Output) -> None:
        """Sends the staged packets, or an empty packet if there are none."""
        if self.staged:
            self.flush(now, out)
        elif (session := self.slots.current) and self.endpoint is not None and session.may_send(now):
            self._sent(self.endpoint, session.seal([b""], self.settings.mtu), out)
            self._after_sending(session, now, out)
        else:
            # The handshake itself says what an empty packet would.
            self.want("persistent", now, out)

    def flush(self, now: float, out: Output) -> None:
        if self.staged:
            self.send(self.staged.take(), now, out)

    def want(self, reason: str, now: float, out: Output) -> None:
        """Asks key-service for a handshake, at most once a WANT_INTERVAL."""
        if self._last_want is None or now - self._last_want >= WANT_INTERVAL:
            self._last_want = now
            out.events.append(WantHandshake(self.public_key, reason))

    def want_again(self, now: float, out: Output) -> None:
        """Repeats a request that key-service may never have heard, without waiting for WANT_INTERVAL."""
        self._last_want = None
        if self.slots.current is not None:
            self.slots.current.asked_for_rekey = False
        if self.staged:
            self.want("no_session", now, out)

    def _sent(self, place: bytes, run: Sequence[bytes], out: Output) -> None:
        self.tx_bytes += sum(map(len, run))
        out.runs.append((place, run))

    def _after_sending(self, session: Session, now: float, out: Output) -> None:
        self.timers.any_sent(now)
        if self._stale(session, now):
            self.want("rekey", now, out)

    def _stale(self, session: Session, now: float) -> bool:
        """Tells whether the sending side must rekey (paper, section 6.2).

        Only the initiator rekeys by age, or both sides would at once. If our operator lowered the interval, the other
        side may keep the default, so the responder then rekeys too, a REKEY_TIMEOUT later.
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

        hot: bench Worker.inbound
        """
        drops = self._drops
        if session.expired(now):
            drops.note("session_expired", len(datagrams), place=places.place_of(endpoint), size=len(datagrams[0]))
            return []
        decrypt, accept = session.receiver.decrypt, session.window.accept
        opened = []
        keepalives = received = 0
        for datagram in datagrams:
            counter = datagram[8:16]
            try:
                packet = decrypt(b"\0\0\0\0" + counter, datagram[16:], None)
            except (InvalidTag, ValueError):  # ValueError: too short for a counter
                drops.note("transport_not_authentic", place=places.place_of(endpoint), size=len(datagram))
                continue
            # Only after authentication: a forged counter must not move the window. The window also enforces the limit.
            if not accept(int.from_bytes(counter, "little")):
                drops.note("replayed", place=places.place_of(endpoint), size=len(datagram))
                continue
            received += len(datagram)
            if packet:
                opened.append(packet)
            else:
                keepalives += 1
        if opened or keepalives:
            self.received(session, received, endpoint, now, out, data=bool(opened))
        return opened

    def received(self, session: Session, size: int, endpoint: bytes, now: float, out: Output, *, data: bool) -> None:
        """Notes datagrams that were authentic and new, `size` bytes of them; `data` unless all were empty packets."""
        self.rx_bytes += size
        if endpoint != self.endpoint:
            self._move(endpoint, out)
        if data:
            self.timers.packet_received(now)
        else:
            self.timers.any_received(now)
        if session is self.slots.next:
            self._ended(self.slots.promote(), out)
            session.shaken = now
            out.events.append(SessionConfirmed(self.public_key, session.index, now))
            self.flush(now, out)
        if session is self.slots.current and session.initiator and not session.asked_for_rekey:
            # The last chance before the session expires, for a peer that only receives.
            limit = c.REJECT_AFTER_TIME - c.KEEPALIVE_TIMEOUT - c.REKEY_TIMEOUT
            if now - session.created > limit:
                session.asked_for_rekey = True
                self.want("rekey", now, out)

    def _move(self, endpoint: bytes, out: Output) -> None:
        self.endpoint = endpoint
        out.events.append(EndpointMoved(self.public_key, endpoint, self.endpoint_at))

    # --- handshakes and time -------------------------------------------------------------------------------

    def install(self, session: Session, endpoint: bytes | None, now: float, out: Output) -> None:
        """Takes a new session in. As initiator, sends its first packet, which confirms the handshake."""
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
        """Notes that key-service sent this peer an initiation."""
        self.timers.any_sent(now)

    def handshake_gave_up(self, now: float) -> None:
        """Drops the staged packets: the peer has not answered for REKEY_ATTEMPT_TIME."""
        self.staged.give_up("handshake_gave_up")
        self.timers.handshake_gave_up(now)

    def set_persistent_keepalive(self, interval: int, now: float, out: Output) -> None:
        """Changes the interval (s, 0 is off). Switching it on sends a keepalive at once."""
        if interval != self.timers.persistent_interval and self.timers.set_persistent_interval(interval, now):
            self.send_keepalive(now, out)

    def act(self, now: float, out: Output) -> None:
        for reason in self.timers.take_due(now):
            match reason:
                case "keepalive" | "persistent":
                    self.send_keepalive(now, out)
                case "no_answer":
                    # Our own source address may no longer work.
                    if self.endpoint is not None:
                        self._move(places.without_source(self.endpoint), out)
                    self.want("no_answer", now, out)
                case "wipe":
                    self.staged.give_up("key_wiped_staged")
                    self.end(out)

    def end(self, out: Output) -> None:
        """Forgets sessions, and packets that wait."""
        self.staged.take()
        if self.limits is not None:
            self.limits.clear()
        self._ended(self.slots.clear(), out)

    def next_deadline(self) -> float | None:
        """Returns the time (s) of the next `act`, or None."""
        deadline = self.timers.soonest()
        if self.limits is not None and (passes := self.limits.next_deadline()) is not None:
            return min(deadline, passes)
        return deadline if deadline < math.inf else None

    def _ended(self, sessions: list[Session], out: Output) -> None:
        if sessions:
            out.events.append(SessionsEnded(tuple(session.index for session in sessions)))


def _in_order(packets: Sequence[Packet]) -> list[bytes]:
    """Returns the packets one by one, each flow's in order.

    Super-packets overtake single packets of other flows, mostly acknowledgements, which would cut the runs short.
    """
    found: list[bytes] = []
    train: list[bytes] = []
    behind: set[bytes | None] = set()
    mixed = any(isinstance(packet, SuperPacket) for packet in packets)
    for packet in packets:
        if isinstance(packet, bytes):
            train.append(packet)
            if mixed:
                behind.add(ip.flow(packet))
            continue
        if behind and (None in behind or ip.flow(packet.packet) in behind):
            found += train
            train.clear()
            behind.clear()
        found += packet.packets()
    return found + train


def _one_by_one(packets: Iterable[Packet]) -> list[bytes]:
    found: list[bytes] = []
    for packet in packets:
        if isinstance(packet, bytes):
            found.append(packet)
        else:
            found += packet.packets()
    return found
