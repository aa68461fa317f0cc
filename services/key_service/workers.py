"""The workers: which are up, how many are wanted, and what `moves` wants done for peers that change theirs."""

import time
from collections.abc import Callable, Iterable

from key_service.announce import Announcer
from key_service.hub import Hub, Member
from key_service.live import LiveConfiguration
from key_service.moves import Carry, Count, MoveIn, MoveOut, Nudge, Retired, Step
from stagewire.environment import MAX_WORKERS, Environment
from stagewire.ipc import slots
from stagewire.ipc.control import MovedIn, PeerTraffic, Retire, Scale, Scaled, SendEmpty
from stagewire.ipc.handover import SessionsGiver
from stagewire.ipc.loop import boot_time
from stagewire.logs import Log
from stagewire.proto.effects import Effect
from stagewire.proto.peer import Peer

CarryOut = Callable[[Iterable[Effect], float], None]


class Workers:
    """All workers of one interface, and the peers between them."""

    def __init__(
        self,
        announcer: Announcer,
        live: LiveConfiguration,
        version: int,
        carry_out: CarryOut,
        environment: Environment,
        log: Log,
    ) -> None:
        """`version` is of the snapshots; `carry_out` does what the Handshaker wants done."""
        self.up: dict[int, int] = {}
        """The generations of those that are ready for sessions."""
        self.moves = announcer.moves
        self._announcer = announcer
        self._handshaker = announcer.handshaker
        self._live = live
        self._version = version
        self._carry_out = carry_out
        self._run, self._configured = environment.run, environment.workers
        self._log = log
        self._traffic: dict[tuple[bytes, int], tuple[Peer, int, int, int]] = {}
        self.giver: SessionsGiver
        self.hub: Hub

    # --- their number --------------------------------------------------------------------------------------

    def scale(self, message: Scale) -> Scaled:
        """Another number is wanted, from now on."""
        if not 1 <= message.workers <= MAX_WORKERS:
            return Scaled(f"there may be 1 to {MAX_WORKERS} workers, not {message.workers}", self.moves.moving)
        try:  # first: a worker that doesn't find its number written down would never begin
            slots.remember_workers(self._run, message.workers, self._configured)
        except OSError as error:
            return Scaled(f"the number of workers can't be written down: {error.strerror}", self.moves.moving)
        now = boot_time()
        before = self.moves.wanted
        self._do(self.moves.scale(message.workers, now), now)
        if before != message.workers:
            self._log.info("workers wanted", workers=message.workers, before=before, moving=self.moves.moving)
        return Scaled("", self.moves.moving)

    def next_deadline(self) -> float | None:
        """The moves'."""
        return self.moves.next_deadline()

    def act(self, now: float) -> None:
        """What the moves have due."""
        self._do(self.moves.act(now), now)

    def _do(self, steps: Iterable[Step], now: float) -> None:
        hub, announcer = self.hub, self._announcer
        for step in steps:
            match step:
                case MoveIn(worker, public_keys):
                    for message in announcer.move_in(public_keys):
                        hub.tell("device", worker, message)
                case Carry(_, public_keys):
                    for routes in announcer.routes_of(public_keys):
                        hub.tell("tun", 0, routes)
                case Nudge(worker, public_keys):
                    hub.tell("device", worker, SendEmpty(public_keys))
                case MoveOut(worker, public_keys):
                    self._move_out(worker, public_keys)
                case Count():
                    hub.tell("tun", 0, announcer.tun_settings())
                    self._live.tell_conn()
                case Retired(worker):
                    self._log.info("worker told to go", worker=worker)
                    hub.tell("device", worker, Retire())
                case _:
                    self._carry_out([step], now)

    def _move_out(self, worker: int, public_keys: Iterable[bytes]) -> None:
        for public_key in public_keys:
            # Its last words about this peer's traffic are still to come.
            peer = self._handshaker.peers[public_key]
            self._traffic.setdefault((public_key, worker), (peer, self.up.get(worker, 0), 0, 0))
        for message in self._announcer.move_out(public_keys):
            self.hub.tell("device", worker, message)

    # --- their lives ---------------------------------------------------------------------------------------

    def on_hello(self, member: Member) -> None:
        """A worker has said hello; what it will be told depends on the sessions that it has."""
        if self.giver.generation(member.number) in {None, member.generation}:
            sessions = ((session.public_key, session.handshake_unix_ns) for session in member.sessions)
            self._do(self.moves.claim(member.number, sessions), boot_time())

    def consider(self, number: int, now: float) -> None:
        """A worker is up when the same life of it has its configuration and its line for sessions."""
        member = self.hub.member("device", number)
        if member is None or member.applied != self._version or number in self.up:
            return
        if self.giver.generation(number) == member.generation:
            self.up[number] = member.generation
            self._log.info("worker up", worker=number, pid=member.pid)
            for session in member.sessions:
                self._handshaker.adopt_session(
                    session.public_key, session.index, session.endpoint or None, session.handshake_unix_ns
                )
            self._carry_out(self._handshaker.worker_up(number, now, time.time_ns()), now)
            self.moves.worker_up(number, now)

    def look_after(self, now: float) -> None:
        """Whoever claimed to be a worker and went again leaves the one behind that it stood before."""
        for number in self.hub.numbers("device"):
            self.consider(number, now)

    def on_gone(self, number: int, generation: int) -> None:
        """The end of a line for sessions."""
        if self.up.get(number) == generation:
            del self.up[number]
            wanted = number < self.moves.wanted
            (self._log.warning if wanted else self._log.info)("worker gone", worker=number)
            now = boot_time()
            self._handshaker.worker_down(number)
            self._do(self.moves.worker_down(number, now), now)

    # --- what they say -------------------------------------------------------------------------------------

    def at_home(self, public_key: bytes, member: Member) -> bool:
        """Whether a peer is at home in a worker; while it moves it is in two."""
        return public_key in self._handshaker.peers and member.number in self.moves.homes(public_key)

    def on_moved_in(self, member: Member, message: MovedIn, now: float) -> None:
        """Peers are at home in a worker, as it was told."""
        if self.up.get(member.number) == member.generation:
            for public_key in message.public_keys:
                self._traffic.pop((public_key, member.number), None)  # its tunnel counts from nothing
            self._do(self.moves.moved_in(member.number, message.public_keys, now, time.time_ns()), now)

    def on_installed(self, index: int, member: Member, now: float) -> None:
        """A worker has a session."""
        announced = self._handshaker.installed(index, now)
        self._carry_out(announced, now)
        public_key = self._handshaker.owner_of(index)
        if not announced and public_key is not None:  # it is of our own initiation, and sends at once
            self._do(self.moves.usable(public_key, member.number, now), now)

    def on_confirmed(self, public_key: bytes, member: Member, now: float) -> None:
        """The first packet has come to a session of the peer's own initiation."""
        self._handshaker.confirmed(public_key, member.number, time.time_ns())
        self._do(self.moves.usable(public_key, member.number, now), now)

    def on_traffic(self, member: Member, message: PeerTraffic) -> None:
        """What a worker's tunnels have counted so far; a peer that moves has one in each of two workers."""
        for traffic in message.peers:
            place = traffic.public_key, member.number
            peer = self._handshaker.peers.get(traffic.public_key)
            if peer is None or (place not in self._traffic and not self.at_home(traffic.public_key, member)):
                continue
            # What a tunnel has counted begins at nothing with its worker, and with its peer.
            counted, generation, tx, rx = self._traffic.get(place, (peer, member.generation, 0, 0))
            if counted is not peer or generation != member.generation or traffic.tx_bytes < tx or traffic.rx_bytes < rx:
                tx = rx = 0
            peer.tx_bytes += traffic.tx_bytes - tx
            peer.rx_bytes += traffic.rx_bytes - rx
            self._traffic[place] = (peer, member.generation, traffic.tx_bytes, traffic.rx_bytes)
