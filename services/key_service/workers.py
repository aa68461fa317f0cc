"""Tracks which workers are up and how many are wanted, and carries out the steps of `moves`."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from key_service import rates
from key_service.announce import Announcer
from key_service.answers import Answers
from key_service.hub import Hub, Member
from key_service.live import LiveConfiguration
from key_service.moves import Carry, Count, MoveIn, MoveOut, Nudge, Retired, Settled, Step
from key_service.quotas import Quotas
from stagewire.control.messages import (
    FromStage,
    MovedIn,
    Retire,
    SendEmpty,
    SessionRefused,
    SessionsInstalled,
    TunSettings,
)
from stagewire.control.questions import Scale, Scaled
from stagewire.control.session_keys import SessionsGiver
from stagewire.control.telemetry import PeerTraffic
from stagewire.environment import Environment
from stagewire.limits import MAX_COUNT, MAX_WORKERS
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.process import worker_count
from stagewire.proto.events import Effect, EndpointMoved, SessionConfirmed, WantHandshake
from stagewire.proto.index import worker_of
from stagewire.proto.peer import Peer

CLAIMED_WITHIN = 60.0
"""s after a start in which workers' hellos may tell where peers were at home, if an earlier key-service was moving peers."""
HOMES_WITHIN: Final = 1.0
"""s after a start in which the workers that live say hello."""
CarryOut = Callable[[Iterable[Effect], float], None]


class Workers:
    """Tracks all workers of one interface, and moves peers between them."""

    def __init__(
        self,
        announcer: Announcer,
        hub: Hub,
        giver: SessionsGiver,
        live: LiveConfiguration,
        version: int,
        carry_out: CarryOut,
        environment: Environment,
        log: Log,
        quotas: Quotas,
        answers: Answers,
    ) -> None:
        """Takes the `version` of the snapshots. `carry_out` does what the Handshaker returns."""
        self.up: dict[int, int] = {}
        """The generations of workers that are ready for sessions, by number."""
        self.moves = announcer.moves
        self._announcer = announcer
        self._handshaker = announcer.handshaker
        self._hub = hub
        self._giver = giver
        self._live = live
        self._version = version
        self._carry_out = carry_out
        self._run, self._configured = environment.run, environment.workers
        self._log = log
        self._quotas = quotas
        self._answers = answers
        quotas.carried, quotas.tell = self.carried, self.tell_again
        live.withheld.tell = self.tell_again
        self.moves.earlier = worker_count.earlier(self._run, self._configured)
        self._claimed_until = boot_time() + CLAIMED_WITHIN if self.moves.earlier else 0.0
        self._traffic: dict[tuple[bytes, int], tuple[Peer, int, int, int, int]] = {}
        self.touched: Callable[[bytes], None] = lambda _key: None
        """Hears of each peer with new traffic."""
        self._traffic_before: dict[tuple[bytes, int], tuple[Peer, int, int, int, int]] = {}

    # --- their number --------------------------------------------------------------------------------------

    def scale(self, message: Scale) -> Scaled:
        """Changes the wanted number of workers."""
        if not 1 <= message.workers <= MAX_WORKERS:
            return Scaled(f"there may be 1 to {MAX_WORKERS} workers, not {message.workers}", self.moves.moving)
        before = self.moves.wanted
        earlier = tuple(sorted({before, *(self.moves.earlier if self.moves.moving else ())} - {message.workers}))
        try:  # first, because spares wait only for slots below the stored number
            worker_count.remember(self._run, message.workers, self._configured, earlier)
        except OSError as error:
            reason = f"cannot store the number of workers in {self._run}: {error.strerror}"
            return Scaled(reason, self.moves.moving)
        now = boot_time()
        self.moves.earlier = earlier
        self._do(self.moves.scale(message.workers, now), now)
        if before != message.workers:
            self._log.info("workers wanted", workers=message.workers, before=before, moving=self.moves.moving)
        return Scaled("", self.moves.moving)

    def next_deadline(self) -> float | None:
        return self.moves.next_deadline()

    def act(self, now: float) -> None:
        self._do(self.moves.act(now), now)

    def _do(self, steps: Iterable[Step], now: float) -> None:
        hub = self._hub
        for step in steps:
            match step:
                case MoveIn(worker, public_keys):
                    self._tell_routes(public_keys)
                    # tun-service must apply it before the worker's first packet comes.
                    self._once_applied(partial(self._move_in, worker, public_keys), public_keys)
                case Carry(_, public_keys):
                    self._tell_routes(public_keys)
                case Settled(worker, public_keys):
                    self._once_applied(partial(self._settle, worker, public_keys), public_keys)
                case Nudge(worker, public_keys):
                    hub.tell("device", worker, SendEmpty(public_keys))
                case MoveOut(worker, public_keys):
                    self._move_out(worker, public_keys)
                case Count():
                    hub.tell("tun", 0, TunSettings(self.moves.count))
                    self._live.tell_conn()
                case Retired(worker):
                    self._log.info("worker told to retire", worker=worker)
                    hub.tell("device", worker, Retire())
                case _:
                    self._carry_out([step], now)

    def _once_applied(self, act: Callable[[], None], public_keys: tuple[bytes, ...]) -> None:
        """Calls `act` once every stage applies what it was told, and packets that were judged before have passed."""
        peers = self._announcer.registry.peers
        prefixes = sum(len(peers[key].allowed_ips) for key in self._standing(public_keys))
        self._answers.hold(act, prefixes, host=False)

    def _tell_routes(self, public_keys: Iterable[bytes]) -> None:
        for routes in self._announcer.routes_of(self._standing(public_keys)):
            self._hub.tell("tun", 0, routes)

    def _standing(self, public_keys: Iterable[bytes]) -> list[bytes]:
        """Leaves out peers that were removed meanwhile."""
        return [key for key in public_keys if key in self._handshaker.peers and key in self._announcer.registry.peers]

    def _move_in(self, worker: int, public_keys: Iterable[bytes]) -> None:
        """Tells a worker of the peers that still move there."""
        moving = [key for key in self._standing(public_keys) if worker in self.moves.homes(key)]
        for public_key in moving:
            self._quotas.tunnel_begins(public_key, worker)
        for message in self._announcer.move_in(moving, worker):
            self._hub.tell("device", worker, message)

    def _move_out(self, worker: int, public_keys: Iterable[bytes]) -> None:
        for public_key in public_keys:
            # The worker will still report this peer's last traffic.
            peer = self._handshaker.peers[public_key]
            self._traffic.setdefault((public_key, worker), (peer, self.up.get(worker, 0), 0, 0, 0))
        for message in self._announcer.move_out(public_keys, worker):
            self._hub.tell("device", worker, message)

    def _settle(self, worker: int, public_keys: Iterable[bytes]) -> None:
        """Lets no packets of a worker pass any more that come from peers that have left it."""
        self.moves.settled(worker, public_keys)
        self._tell_routes(public_keys)

    # --- their lives ---------------------------------------------------------------------------------------

    def on_hello(self, member: Member) -> None:
        """Takes up the sessions that a worker's hello lists, before the worker gets its snapshot."""
        self._quotas.worker_began(member.number, member.generation)
        if self._giver.generation(member.number) in {None, member.generation}:
            sessions = ((session.public_key, session.created) for session in member.sessions)
            self._do(self.moves.claim(member.number, sessions), boot_time())

    def know_homes(self) -> bool:
        """Tells whether every worker has said hello in which peers may still be at home.

        Before, a peer in the middle of a move seems to be at home where it isn't: its session would end.
        """
        earlier = self.moves.earlier
        return not earlier or set(range(max(self.moves.wanted, *earlier))) <= set(self._hub.numbers("device"))

    def consider(self, number: int, now: float) -> None:
        """Marks a worker as up once the same process has its snapshot and its line for sessions."""
        member = self._hub.member("device", number)
        if member is None or member.applied != self._version or number in self.up:
            return
        if self._giver.generation(number) == member.generation:
            self.up[number] = member.generation
            self._log.info("worker up", worker=number, pid=member.pid)
            for session in member.sessions:
                if worker_of(session.index) != number:
                    continue  # another worker's, which alone may tell of it
                self._handshaker.adopt_session(
                    session.public_key, session.index, session.endpoint or None, session.handshake
                )
            self._carry_out(self._handshaker.worker_up(number, now, time.time_ns()), now)
            self.moves.worker_up(number, now)

    def look_after(self, now: float) -> None:
        """Re-checks every worker: a departed impostor may have hidden the real one. Forgets numbers without a use."""
        if self.moves.earlier and not self.moves.moving and (now > self._claimed_until or self.know_homes()):
            self.moves.earlier = ()
            self._tell_routes(self._handshaker.peers)
            with suppress(OSError):
                worker_count.remember(self._run, self.moves.wanted, self._configured)
        for number in self._hub.numbers("device"):
            self.consider(number, now)

    def on_gone(self, number: int, generation: int) -> None:
        """Marks a worker as gone at the end of its line for sessions."""
        if self.up.get(number) == generation:
            del self.up[number]
            wanted = number < self.moves.wanted
            (self._log.warning if wanted else self._log.info)("worker gone", worker=number)
            now = boot_time()
            self._quotas.worker_died(number, generation, now)
            self._handshaker.worker_down(number)
            self._do(self.moves.worker_down(number, now), now)

    # --- what workers say ----------------------------------------------------------------------------------

    def at_home(self, public_key: bytes, member: Member) -> bool:
        """Tells whether a peer is at home in a worker."""
        return public_key in self._handshaker.peers and member.number in self.moves.homes(public_key)

    def may_say(self, member: Member, message: FromStage) -> bool:
        """Tells whether the peer or session of a message lives in the worker that sent the message."""
        match message:
            case WantHandshake(public_key=key) | SessionConfirmed(public_key=key) | EndpointMoved(public_key=key):
                return self.at_home(key, member)
            case SessionsInstalled(indices=indices):
                return all(worker_of(index) == member.number for index in indices)
            case SessionRefused(index=index):
                return worker_of(index) == member.number
        return True

    def on_moved_in(self, member: Member, message: MovedIn, now: float) -> None:
        """Takes a worker's word that peers are at home there."""
        if self.up.get(member.number) == member.generation:
            for public_key in message.public_keys:
                self._traffic.pop((public_key, member.number), None)  # a new tunnel counts from 0
            self._do(self.moves.moved_in(member.number, message.public_keys, now, time.time_ns()), now)

    def on_installed(self, indices: Iterable[int], member: Member, now: float) -> None:
        """Takes a worker's word that it has sessions."""
        announced: list[Effect] = []
        usable: list[bytes] = []
        for index in indices:
            if effects := self._handshaker.installed(index, now):
                announced += effects
            elif (public_key := self._handshaker.owner_of(index)) is not None:
                usable.append(public_key)  # a session of our own initiation may send at once
        self._carry_out(announced, now)
        for public_key in usable:
            self._do(self.moves.usable(public_key, member.number, now), now)

    def on_confirmed(self, public_key: bytes, member: Member, now: float, at: float) -> None:
        """Takes a worker's word that the first packet under a session of the peer's initiation came `at` that time (s)."""
        # The worker's time, which it will tell the next key-service, too.
        self._handshaker.confirmed(public_key, member.number, at)
        self._do(self.moves.usable(public_key, member.number, now), now)

    def on_traffic(self, member: Member, message: PeerTraffic, now: float) -> None:
        """Adds up the traffic that a worker has counted. A moving peer has tunnels in two workers."""
        for traffic in message.peers:
            place = traffic.public_key, member.number
            peer = self._handshaker.peers.get(traffic.public_key)
            if peer is None or (place not in self._traffic and not self.at_home(traffic.public_key, member)):
                continue
            # A tunnel's counters begin at 0 with each new worker process and each new peer. The last report of the process
            # before may come late.
            known = self._traffic
            if place in known and known[place][1] != member.generation:
                known = self._traffic_before
                if place not in known or known[place][1] != member.generation:
                    known[place] = self._traffic.pop(place)
                    known = self._traffic
            counted, _, tx, rx, _ = known.get(place, (peer, member.generation, 0, 0, 0))
            if counted is not peer or traffic.tx_bytes < tx or traffic.rx_bytes < rx:
                tx = rx = 0
            # A hostile worker may say anything, and the sums are packed and printed.
            peer.tx_bytes = min(max(peer.tx_bytes + traffic.tx_bytes - tx, 0), MAX_COUNT)
            peer.rx_bytes = min(max(peer.rx_bytes + traffic.rx_bytes - rx, 0), MAX_COUNT)
            self.touched(traffic.public_key)
            rates.take(peer, traffic.rx_bytes - rx, traffic.tx_bytes - tx, now)
            if traffic.rx_bytes > rx:
                peer.heard_at = now
            total = min(max(traffic.tx_bytes + traffic.rx_bytes - traffic.refused, 0), MAX_COUNT)
            known[place] = (peer, member.generation, traffic.tx_bytes, traffic.rx_bytes, total)
            self._quotas.on_traffic(traffic.public_key, member.number, member.generation, total, now)

    def carried(self, public_key: bytes) -> dict[int, tuple[int, int]]:
        """Returns what a peer's tunnels have reported: generation and the bytes that count towards a quota, by worker."""
        found = {number: self._traffic.get((public_key, number)) for number in self.moves.homes(public_key)}
        return {number: (each[1], each[4]) for number, each in found.items() if each is not None}

    def tell_again(self, public_keys: Iterable[bytes]) -> None:
        """Sends peers' settings to their home workers."""
        by_worker: dict[int, list[bytes]] = {}
        for public_key in public_keys:
            for number in self.moves.homes(public_key):
                by_worker.setdefault(number, []).append(public_key)
        for number, keys in by_worker.items():
            for message in self._announcer.peers_set(keys, number):
                self._hub.tell("device", number, message)
