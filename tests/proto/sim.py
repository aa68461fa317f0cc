"""Whole gateways joined in memory: the protocol core as the services run it, over a clock and a wire of our own.

A Gateway is a Handshaker, a Gate and some Workers (workers). Its effects and events are carried out in their order, as
the services do. A World has the clock, which jumps to the next delivery or deadline, and the wire, which loses,
duplicates, delays and thereby reorders datagrams by a seeded generator.

Always asserted: no (receiver index, counter) ever leaves a gateway twice, no inner packet is delivered twice, and time
never stands still while there is something due.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.proto import endpoint as places
from stagewire.proto.endpoint import Endpoint, place_of
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
    WorkerEvent,
)
from stagewire.proto.gate import Gate
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.index import is_transport, worker_of_datagram
from stagewire.proto.messages import BadMessage
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Output, Tunnel, TunnelSettings
from stagewire.proto.worker import PeerFacts, Worker
from stagewire.reasons import Reasons

UNIX_NS = 1_700_000_000 * 10**9
"""The wall clock when the virtual clock stands at 0."""
START = 1000.0
PROTOCOL = 253
"""IP's protocol number for experiments: what our inner packets carry."""


def packet(source: str, destination: str, number: int, size: int = 64) -> bytes:
    """An inner packet that says which one it is."""
    addresses = IPv4Address(source).packed + IPv4Address(destination).packed
    header = b"\x45\0" + size.to_bytes(2) + bytes(5) + bytes([PROTOCOL, 0, 0]) + addresses
    return (header + number.to_bytes(8)).ljust(size, b"\xaa")


def number_of(inner: bytes) -> int | None:
    """Which packet this is; None if none of ours (an ICMP answer)."""
    return int.from_bytes(inner[20:28]) if inner[9] == PROTOCOL else None


@dataclass(slots=True)
class Wire:
    """How bad the network is. Probabilities are 0 to 1, delays in s."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.01
    delay_spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A datagram that left a gateway."""

    when: float
    sender: "Gateway"
    place: bytes
    data: bytes

    @property
    def kind(self) -> int:
        """1 to 4."""
        return self.data[0]


class World:
    """The clock, the wire, the gateways."""

    def __init__(self, seed: int = 1, wire: Wire | None = None) -> None:
        self.now = START
        self.rng = random.Random(seed)
        self.wire = wire or Wire()
        self.gateways: list[Gateway] = []
        self.log: list[Sent] = []
        """All that set out, and of that what arrived, each once."""
        self.arrived: dict[bytes, Sent] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._counters: set[tuple[str, bytes]] = set()
        self._next_number = 0

    @property
    def unix_ns(self) -> int:
        """The wall clock."""
        return UNIX_NS + int(self.now * 1e9)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Has something happen at a time."""
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, action))

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        until = self.now + seconds
        turns, last = 0, self.now
        while (when := self._next()) <= until:
            self.now = max(self.now, when)
            turns, last = (turns + 1, last) if self.now == last else (0, self.now)
            assert turns < 10_000, "time stands still"
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            for gateway in self.gateways:
                gateway.act()
        self.now = until

    def _next(self) -> float:
        deadlines = [gateway.next_deadline() for gateway in self.gateways]
        if self._events:
            deadlines.append(self._events[0][0])
        return min(deadlines, default=float("inf"))

    def send(self, sender: "Gateway", place: bytes, data: bytes) -> None:
        """A gateway's datagram sets out."""
        sent = Sent(self.now, sender, place, data)
        self.log.append(sent)
        if is_transport(data):
            use = (sender.name, data[4:16])
            assert use not in self._counters, "a counter was used twice"
            self._counters.add(use)
        source = sender.place
        for _ in range(2 if self.rng.random() < self.wire.duplicate else 1):
            if self.rng.random() >= self.wire.loss:
                when = self.now + self.wire.delay + self.rng.random() * self.wire.delay_spread
                self.at(when, lambda: self._deliver(sent, source))

    def _deliver(self, sent: Sent, source: Endpoint) -> None:
        for gateway in self.gateways:
            if places.same_place(gateway.place.pack(), sent.place):
                self.arrived[sent.data] = sent
                gateway.receive(sent.data, source)

    def number(self) -> int:
        """A number that no inner packet has yet."""
        self._next_number += 1
        return self._next_number

    def sent(self, kind: int, sender: "Gateway | None" = None, since: float = 0.0) -> list[Sent]:
        """What left of one type, in order."""
        return [s for s in self.log if s.kind == kind and sender in (None, s.sender) and s.when >= since]


@dataclass(slots=True)
class Known:
    """What a gateway is configured to know of another."""

    public_key: bytes
    allowed_ips: tuple[IPv4Network, ...]
    worker: int
    psk: bytes
    place: bytes | None
    keepalive: int
    stamped: bool


class Gateway:
    """One peer, whole. Inner address 10.0.0.<n>, outer 192.0.2.<n>:51820, unless it moves."""

    def __init__(self, world: World, number: int, workers: int = 1) -> None:
        self.world = world
        self.name = f"gateway {number}"
        self.inner = f"10.0.0.{number}"
        self.place = Endpoint(IPv4Address(f"192.0.2.{number}").packed, 51820)
        self.rng = random.Random(world.rng.random())
        self.identity = Identity.from_private_bytes(self.rng.randbytes(32))
        self.drops = Reasons()
        self.failures = Reasons()
        self.stored: dict[tuple[bytes, str], bytes] = {}
        """Time stamps, as the disk has them."""
        self.delivered: dict[int, float] = {}
        self.answers: list[bytes] = []
        """ICMP, to our own hosts."""
        self.effects: list[Effect] = []
        self.events: list[WorkerEvent] = []
        self.known: dict[bytes, Known] = {}
        self.settings = TunnelSettings()
        self.pipe_delay = 0.0
        """s that a session takes from the Handshaker to its worker."""
        self.gate = Gate(self.identity.public_key, self.rng.randbytes, self.drops, world.now, stamped=True)
        self.handshaker = self._new_handshaker()
        self.workers: dict[int, Worker] = {}
        for worker in range(workers):
            self.start_worker(worker)
        world.gateways.append(self)

    def __repr__(self) -> str:
        return self.name

    # --- configuration and lives ---------------------------------------------------------------------------

    def knows(
        self, other: "Gateway", *, worker: int = 0, psk: bytes = bytes(32), place: bool = True, keepalive: int = 0,
        stamped: bool = False,
    ) -> None:  # fmt: skip
        """Adds a peer, or changes it."""
        where = other.place.pack() if place else None
        prefixes = (IPv4Network(other.inner),)
        known = Known(other.identity.public_key, prefixes, worker, psk, where, keepalive, stamped)
        self.known[known.public_key] = known
        self._tell_handshaker(known)
        for number, each in self.workers.items():
            self._tell_worker(number, each, known)

    def _new_handshaker(self) -> Handshaker:
        own = self.stored.get((self.identity.public_key, "own"), bytes(12))
        handshaker = Handshaker(self.identity, own, self.rng.randbytes, self._jitter)
        handshaker.failures = self.failures
        return handshaker

    def _jitter(self) -> float:
        return self.rng.random() * 0.333

    def _tell_handshaker(self, known: Known) -> None:
        peer = self.handshaker.peers.get(known.public_key)
        if peer is None:
            peer = self.handshaker.add_peer(known.public_key, known.psk, known.worker, stamped=known.stamped)
            peer.latest_initiation = self.stored.get((known.public_key, "initiation"), bytes(12))
            peer.latest_response = self.stored.get((known.public_key, "response"), bytes(12))
            peer.endpoint = known.place
        peer.preshared_key = known.psk

    def _tell_worker(self, number: int, worker: Worker, known: Known) -> None:
        home = number == known.worker
        facts = PeerFacts(known.public_key, known.allowed_ips, home, known.keepalive, known.place)
        self._emit(number, worker.set_peer(facts, self.world.now))

    def start_worker(self, number: int) -> None:
        """A worker comes to life, without sessions."""
        worker = Worker(self._jitter)
        worker.drops = self.drops
        worker.settings = self.settings
        self.workers[number] = worker
        for known in self.known.values():
            self._tell_worker(number, worker, known)
        self._carry_out(self.handshaker.worker_up(number, self.world.now, self.world.unix_ns))

    def kill_worker(self, number: int) -> None:
        """A worker dies, and its sessions with it."""
        del self.workers[number]
        self.handshaker.worker_down(number)

    def restart_key_service(self) -> None:
        """The Handshaker dies; its successor has the configuration, the disk, and what the workers say."""
        self.handshaker = self._new_handshaker()
        for known in self.known.values():
            self._tell_handshaker(known)
        for number, worker in self.workers.items():
            for tunnel, session in worker.sessions():
                self.handshaker.adopt_session(tunnel.public_key, session.index, tunnel.endpoint, 0)
            self._carry_out(self.handshaker.worker_up(number, self.world.now, self.world.unix_ns))
            self._emit(number, worker.want_again(self.world.now))

    def tunnel(self, other: "Gateway") -> Tunnel:
        """Our side of what we have with another."""
        public_key = other.identity.public_key
        worker = self.workers[self.known[public_key].worker]
        return next(tunnel for tunnel in worker.owners.tunnels() if tunnel.public_key == public_key)

    # --- what goes through ---------------------------------------------------------------------------------

    def send(self, other: "Gateway", count: int = 1, size: int = 64) -> list[int]:
        """Our hosts send to theirs; returns the packets' numbers."""
        numbers = [self.world.number() for _ in range(count)]
        worker = self.known[other.identity.public_key].worker
        packets = [packet(self.inner, other.inner, number, size) for number in numbers]
        self._emit(worker, self.workers[worker].outbound(packets, self.world.now))
        return numbers

    def receive(self, data: bytes, source: Endpoint) -> None:
        """A datagram arrives."""
        arrived = source._replace(source=self.place.address, source_interface=1)
        if is_transport(data):
            worker = worker_of_datagram(data)
            if worker in self.workers:
                self._emit(worker, self.workers[worker].inbound([(arrived.pack(), [data])], self.world.now))
            return
        passed, answer = self.gate.judge_untrusted(data, place_of(arrived.pack()), self.world.now)
        if answer:
            self.world.send(self, arrived.pack(), answer)
        if passed:
            try:
                effects = self.handshaker.receive_untrusted(data, arrived.pack(), self.world.now, self.world.unix_ns)
            except BadMessage as bad:
                self.failures[bad.reason] += 1
                return
            self._carry_out(effects)

    def next_deadline(self) -> float:
        """When `act` has something to do."""
        owners: list[Handshaker | Worker] = [self.handshaker, *self.workers.values()]
        deadlines = (owner.next_deadline() for owner in owners)
        return min((when for when in deadlines if when is not None), default=float("inf"))

    def act(self) -> None:
        """Does what is due."""
        self._carry_out(self.handshaker.act(self.world.now, self.world.unix_ns))
        for number, worker in list(self.workers.items()):
            self._emit(number, worker.act(self.world.now))

    # --- as the services do --------------------------------------------------------------------------------

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case RememberTimestamp(public_key, kind, timestamp):
                    assert timestamp > self.stored.get((public_key, kind), b"")
                    self.stored[public_key, kind] = timestamp
                case SendHandshake(public_key, endpoint, data, initiation):
                    self.gate.note_sent(data, place_of(endpoint), self.world.now)
                    self.world.send(self, endpoint, data)
                    home = self.workers.get(self.known[public_key].worker)
                    if initiation and home is not None:
                        home.handshake_sent(public_key, self.world.now)
                case InstallSession() if self.pipe_delay:
                    later = self.world.now + self.pipe_delay
                    self.world.at(later, lambda effect=effect: self._install(effect))  # type: ignore[misc]
                case InstallSession():
                    self._install(effect)
                case GaveUp(public_key):
                    home = self.workers.get(self.known[public_key].worker)
                    if home is not None:
                        home.handshake_gave_up(public_key, self.world.now)

    def _install(self, grant: InstallSession) -> None:
        worker = self.workers.get(grant.worker)
        if worker is None:
            return  # the pipe's other end is gone
        sender, receiver = ChaCha20Poly1305(grant.keys.send), ChaCha20Poly1305(grant.keys.receive)
        session = Session(
            grant.index, grant.remote_index, sender, receiver, initiator=grant.initiator, created=grant.created
        )
        out = worker.install(grant.public_key, session, grant.endpoint, self.world.now)
        if out is None:
            self.handshaker.refused(grant.index)
            return
        self._carry_out(self.handshaker.installed(grant.index, self.world.now))
        self._emit(grant.worker, out)

    def _emit(self, worker: int, out: Output) -> None:
        for place, datagrams in out.runs:
            for datagram in datagrams:
                self.world.send(self, place, datagram)
        for inner in out.packets:
            assert isinstance(inner, bytes)  # nobody takes super-packets here
            number = number_of(inner)
            if number is None:
                self.answers.append(inner)
                continue
            assert number not in self.delivered, "an inner packet was delivered twice"
            self.delivered[number] = self.world.now
        for event in out.events:
            self.events.append(event)
            self._on_event(worker, event)

    def _on_event(self, worker: int, event: WorkerEvent) -> None:
        match event:
            case WantHandshake(public_key):
                self._carry_out(self.handshaker.want(public_key, self.world.now, self.world.unix_ns))
            case EndpointMoved(public_key, place, at):
                self.handshaker.endpoint_moved(public_key, place, at)
            case SessionConfirmed(public_key, _, at):
                self.handshaker.confirmed(public_key, worker, at)
            case SessionsEnded(indices):
                self.handshaker.ended(worker, indices)


@dataclass(slots=True)
class Pair:
    """Two gateways that know each other, and how their network is."""

    world: World
    a: Gateway
    b: Gateway


def pair(seed: int = 1, wire: Wire | None = None, *, b_knows_place: bool = True, **settings: int | bytes) -> Pair:
    """Two gateways; `settings` are those of `Gateway.knows`, on both sides."""
    world = World(seed, wire)
    a, b = Gateway(world, 1), Gateway(world, 2)
    a.knows(b, **settings)  # type: ignore[arg-type]
    b.knows(a, place=b_knows_place, **settings)  # type: ignore[arg-type]
    return Pair(world, a, b)
