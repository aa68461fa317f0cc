"""Workers, tun-service and peers as `moves` sees them, over a clock of our own: what they were told, and what they do."""

import heapq
import random
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.proto.far import PLACE, PSK, WALL, Far, T, new_handshaker

from key_service.homes import home_of
from key_service.moves import Carry, Count, MoveIn, MoveOut, Moves, Nudge, Retired, Settled, Step
from stagewire.proto.events import InstallSession, SendHandshake
from stagewire.proto.index import worker_of
from stagewire.proto.messages import BadMessage

WIRE = 0.01
"""s, one way; also of a word between two processes."""


class Town:
    """`told` is who each living worker thinks is at home there, `routes` where tun-service sends whose packets."""

    def __init__(self, peers: int, workers: int, *, sessions: bool = True) -> None:
        self.now = T
        self.rng = random.Random(peers * 1000 + workers)
        self.handshaker = new_handshaker()
        self.fars = {
            far.identity.public_key: far for far in (Far(self.handshaker.identity, seed=s) for s in range(peers))
        }
        self.told: dict[int, set[bytes]] = {}
        self.routes: dict[bytes, int] = {}
        self.sources: dict[bytes, set[int]] = {}
        """Workers that tun-service lets deliver each peer's packets."""
        self.silent: set[bytes] = set()
        """Peers that don't answer."""
        self.hung: set[int] = set()
        """Workers that don't answer."""
        self.told_to_go: list[int] = []
        self.nudged: list[tuple[float, int, tuple[bytes, ...]]] = []
        self.begun: list[tuple[float, bytes]] = []
        """Our initiations."""
        self.swaps: list[tuple[float, bytes, int]] = []
        """Peers whose packets go to another worker from then on."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self.moves = Moves(self.handshaker, workers)
        self.count = workers
        for number, key in enumerate(self.fars):
            home = self.moves.home(key)
            peer = self.handshaker.add_peer(key, PSK, home)
            peer.endpoint = PLACE
            self.routes[key] = home
            self.sources[key] = {home}
            if sessions:
                self.handshaker.adopt_session(key, number << 8 | home, PLACE, self.now)
        for number in range(workers):
            self.start(number)
        self.run(1)

    @property
    def unix_ns(self) -> int:
        return WALL + int((self.now - T) * 1e9)

    # --- the workers ---------------------------------------------------------------------------------------

    def start(self, worker: int) -> None:
        """It comes to life, is told who is at home there, and is up."""
        if worker not in self.told:
            self.told[worker] = {key for key in self.fars if worker in self.moves.homes(key)}
            self.do(self.handshaker.worker_up(worker, self.now, self.unix_ns))
            self.moves.worker_up(worker, self.now)

    def kill(self, worker: int) -> None:
        if worker in self.told:
            del self.told[worker]
            self.handshaker.worker_down(worker)
            self.do(self.moves.worker_down(worker, self.now))

    def scale(self, workers: int) -> None:
        self.do(self.moves.scale(workers, self.now))

    # --- time ----------------------------------------------------------------------------------------------

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now + seconds, self._sequence, action))

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        until = self.now + seconds
        turns, last = 0, self.now
        while (when := self._next()) <= until:
            self.now = max(self.now, when)
            turns, last = (turns + 1, last) if self.now == last else (0, self.now)
            assert turns < 1000, "time stands still"
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if (due := self.handshaker.next_deadline()) is not None and due <= self.now:
                self.do(self.handshaker.act(self.now, self.unix_ns))
            if (due := self.moves.next_deadline()) is not None and due <= self.now:
                self.do(self.moves.act(self.now))
            self.check()
        self.now = until

    def _next(self) -> float:
        deadlines = [self.handshaker.next_deadline(), self.moves.next_deadline()]
        deadlines += [self._events[0][0]] if self._events else []
        return min((when for when in deadlines if when is not None), default=float("inf"))

    def check(self) -> None:
        """What must be so at any time."""
        for key in self.fars:
            homes = self.moves.homes(key)
            assert self.routes[key] == self.moves.carrier(key)
            assert self.routes[key] in homes
            assert set(homes) <= self.sources[key]
            assert max(homes) < self.count
            assert {worker for worker, told in self.told.items() if key in told} == set(homes) & set(self.told)
        assert self.count == self.moves.count >= self.moves.wanted

    def settled(self) -> bool:
        """Whether everybody is where they belong."""
        wanted = self.moves.wanted
        return self.moves.moving == 0 and all(
            {self.routes[key]} == self.sources[key] == {home_of(key, wanted)} for key in self.fars
        )

    # --- what is to be done --------------------------------------------------------------------------------

    def do(self, steps: Iterable[Step]) -> None:  # noqa: C901 - one case for each step
        for step in steps:
            match step:
                case MoveIn(worker, keys):
                    self._tell_sources(keys)
                    if worker in self.told:
                        self.told[worker] |= set(keys)
                        if worker not in self.hung:
                            self.later(WIRE, lambda worker=worker, keys=keys: self._moved_in(worker, keys))  # type: ignore[misc]
                case MoveOut(worker, keys):
                    self.told.get(worker, set()).difference_update(keys)
                    for key in keys:
                        ended = [i for i in self.handshaker.peers[key].indices if worker_of(i) == worker]
                        own = self.handshaker.peers[key].sent
                        self.handshaker.ended(worker, tuple(i for i in ended if own is None or own.sender != i))
                case Carry(worker, keys):
                    for key in keys:
                        self.routes[key] = worker
                        self.swaps.append((self.now, key, worker))
                    self._tell_sources(keys)
                case Settled(worker, keys):
                    self.later(WIRE, lambda worker=worker, keys=keys: self._arrived(worker, keys))  # type: ignore[misc]
                case Nudge(worker, keys):
                    self.nudged.append((self.now, worker, keys))
                case Count(workers):
                    self.count = workers
                case Retired(worker):
                    assert not self.told[worker]
                    self.told_to_go.append(worker)
                case SendHandshake():
                    self._send(step)
                case InstallSession():
                    self._install(step)

    def _arrived(self, worker: int, keys: tuple[bytes, ...]) -> None:
        self.moves.settled(worker, keys)
        self._tell_sources(keys)

    def _tell_sources(self, keys: tuple[bytes, ...]) -> None:
        for key in keys:
            if key in self.handshaker.peers:
                self.sources[key] = {self.moves.carrier(key), *self.moves.others(key)}

    def _moved_in(self, worker: int, keys: tuple[bytes, ...]) -> None:
        if worker in self.told:
            self.do(self.moves.moved_in(worker, keys, self.now, self.unix_ns))

    def _send(self, sent: SendHandshake) -> None:
        if sent.initiation:
            self.begun.append((self.now, sent.public_key))
            if sent.public_key not in self.silent:
                index = self.rng.randrange(1 << 32)
                answer = self.fars[sent.public_key].respond(sent.data, index=index)
                self.later(2 * WIRE, lambda: self._receive(answer))

    def _receive(self, message: bytes) -> None:
        with suppress(BadMessage):  # the answer to an initiation that was given up
            self.do(self.handshaker.receive_untrusted(message, PLACE, self.now, self.unix_ns))

    def initiate(self, key: bytes, stamp: bytes) -> None:
        """A peer's own initiation arrives; its first packet follows as soon as it may."""
        self.do(self.handshaker.receive_untrusted(self.fars[key].initiation(stamp), PLACE, self.now, self.unix_ns))

    def _install(self, grant: InstallSession) -> None:
        if grant.worker not in self.told or grant.public_key not in self.told[grant.worker]:
            self.handshaker.refused(grant.index)
            return
        announced = self.handshaker.installed(grant.index, self.now)
        self.do(announced)
        if not announced:
            self.do(self.moves.usable(grant.public_key, grant.worker, self.now))
        else:
            self.later(2 * WIRE, lambda: self._confirmed(grant))

    def _confirmed(self, grant: InstallSession) -> None:
        if grant.worker in self.told and self.handshaker.owner_of(grant.index) == grant.public_key:
            self.handshaker.confirmed(grant.public_key, grant.worker, self.now)
            self.do(self.moves.usable(grant.public_key, grant.worker, self.now))
