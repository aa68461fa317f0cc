"""Which worker each peer is at home in, and how a peer moves when the number of workers changes.

A peer's home is the one that `homes` says for the number of workers that is wanted. One that has to move gets its new
session before the old one goes:

    state      new sessions for  at home in  its packets go to  until
    ---------  ----------------  ----------  -----------------  ---------------------------------------------------
    planned    old               old         old                new has been up for SETTLED, and its turn has come
    settling   old               old, new    old                new says that it knows the peer is at home there
    shaking    new               old, new    old                the new session may send | SHAKE_WITHIN
    lingering  new               old, new    new                LINGER: for what was on its way to the old session;
                                                                meanwhile the peer is nudged to use the new one

Rules:
  1. A peer without a live session, or nowhere, skips `shaking`; so does one whose old worker dies in it.
  2. A move that has begun is finished, whatever is wanted by then; the next one may begin after it. If the new worker
     dies before packets go there, the peer stays, and is planned again.
  3. What answered the peer's own initiation lately must have arrived before we initiate, or the peer might settle on
     the older of both sessions.
  4. Whom we initiated with uses the old session until the first packet under the new one arrives, and that may be lost:
     so it gets NUDGES more, or one that only sends would send to nobody for 15 s.
  5. A worker that isn't wanted retires when nobody is at home there, nor in any of a higher number, and tun- and
     conn-service have HEARD that it is no more: they would wait for one that is gone, and let all others wait. One that
     comes unwanted gets a GRACE, as it may have been started just before it will be wanted.

Pure: what has to be done for it is returned, to be carried out in its order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from key_service.homes import home_of
from stagewire.proto import constants as c
from stagewire.proto.agenda import Agenda
from stagewire.proto.effects import Effect
from stagewire.proto.handshaker import INSTALL_TIMEOUT, Handshaker
from stagewire.proto.pace import Pace
from stagewire.proto.peer import Peer

SETTLED: Final = 0.3
"""s that a worker must have been up, and tun- and conn-service have known its number: they connect within 0.1 s."""
SETTLE_WITHIN: Final = 2.0
SHAKE_WITHIN: Final = 6.0
"""s: an initiation and one retransmission. Who doesn't answer moves without a session."""
LINGER: Final = 1.0
NUDGES: Final = 2
GRACE: Final = 5.0
HEARD: Final = 0.1
"""s that tun- and conn-service have to hear of another number of workers."""
AGAIN: Final = 2.0
"""s after which a worker that hasn't retired is told again."""


@dataclass(frozen=True, slots=True)
class MoveIn:
    """Tell a worker that these are at home there too."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Carry:
    """Tell tun-service that these peers' packets go to a worker."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MoveOut:
    """Tell a worker that these are no longer at home there."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Nudge:
    """Have a worker send these an empty packet."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """Tell tun- and conn-service how many workers there may be."""

    workers: int


@dataclass(frozen=True, slots=True)
class Retired:
    """Tell a worker to go."""

    worker: int


Step = MoveIn | Carry | Nudge | MoveOut | Count | Retired | Effect


@dataclass(slots=True)
class _Move:
    old: int
    new: int
    state: str = "settling"
    nudges: int = 0

    @property
    def carrier(self) -> int:
        return self.new if self.state == "lingering" else self.old


class Moves:
    """`wanted` is the number of workers that is to be; `count` how many there may be meanwhile, which is no less."""

    def __init__(self, handshaker: Handshaker, wanted: int) -> None:
        self.wanted = self.count = wanted
        self._handshaker = handshaker
        self._moves: dict[bytes, _Move] = {}
        self._planned: dict[int, dict[bytes, None]] = {}
        """By the new worker; in the order in which they will move."""
        self._agenda: Agenda[bytes] = Agenda()
        self._pace: Pace[bytes] = Pace()
        self._ready: dict[int, float] = {}
        """From when on (s) a worker that is up may be moved to."""
        self._retire: dict[int, float] = {}
        """From when on (s) a worker that is up and not wanted may be told to go."""
        self._look_again: float | None = None
        """When (s) one of them may have to be."""
        self._claims: dict[bytes, int] = {}

    # --- where a peer is -----------------------------------------------------------------------------------

    def home(self, public_key: bytes) -> int:
        """Where a new peer will live."""
        return home_of(public_key, self.wanted)

    def homes(self, public_key: bytes) -> tuple[int, ...]:
        """The workers that a peer is at home in: one, or two while it moves; the one for its new sessions is first."""
        worker = self._handshaker.peers[public_key].worker
        move = self._moves.get(public_key)
        if move is None:
            return (worker,)
        return worker, (move.old if worker == move.new else move.new)

    def carrier(self, public_key: bytes) -> int:
        """The worker that a peer's packets go to."""
        move = self._moves.get(public_key)
        return self._handshaker.peers[public_key].worker if move is None else move.carrier

    @property
    def moving(self) -> int:
        """How many peers aren't where they belong yet."""
        return len(self._moves) + sum(map(len, self._planned.values()))

    # --- what happens --------------------------------------------------------------------------------------

    def scale(self, wanted: int, now: float) -> list[Step]:
        """Another number of workers is wanted. 1 us for each peer and worker."""
        grown = wanted > self.count
        self.wanted, self.count = wanted, max(self.count, wanted)
        self._planned.clear()
        for public_key in self._handshaker.peers:
            if public_key not in self._moves:
                self._plan(public_key)
        for worker, ready in self._ready.items():
            self._ready[worker] = max(ready, now + SETTLED)
            if worker < wanted:
                self._retire.pop(worker, None)
            else:
                self._retire.setdefault(worker, now)
        self._look_again = now
        return [Count(self.count)] if grown else []

    def worker_up(self, worker: int, now: float) -> None:
        """A worker is ready for sessions."""
        self._ready[worker] = now + SETTLED
        if worker >= self.wanted:
            self._retire[worker] = now + (0.0 if worker < self.count else GRACE)
            self._look_again = now

    def worker_down(self, worker: int, now: float) -> list[Step]:
        """A worker is gone; the Handshaker has been told."""
        self._ready.pop(worker, None)
        self._retire.pop(worker, None)
        self._look_again = now
        steps: list[Step] = []
        for public_key, move in list(self._moves.items()):
            if move.new == worker and move.state != "lingering":
                self._handshaker.move(public_key, move.old)
                self._end(public_key)
            elif move.old == worker and move.state == "shaking":
                steps += self._switch(public_key, move, now)
            elif move.old == worker and move.state == "lingering":
                self._end(public_key)
        return steps

    def moved_in(self, worker: int, public_keys: Iterable[bytes], now: float, unix_ns: int) -> list[Step]:
        """A worker knows that these are at home there."""
        steps: list[Step] = []
        for public_key in public_keys:
            move = self._moves.get(public_key)
            if move is not None and move.state == "settling" and move.new == worker:
                peer = self._handshaker.peers[public_key]
                if peer.last_consumed is not None and now < peer.last_consumed + INSTALL_TIMEOUT:
                    self._pace.end(public_key)
                    self._until(public_key, peer.last_consumed + INSTALL_TIMEOUT)
                    continue
                live = self._is_live(peer, unix_ns)
                move.state = "shaking"
                self._until(public_key, now + SHAKE_WITHIN)
                self._handshaker.move(public_key, worker)
                begun = self._handshaker.renew(public_key, now, unix_ns) if live else []
                steps += begun or self._switch(public_key, move, now)
        return steps

    def usable(self, public_key: bytes, worker: int, now: float) -> list[Step]:
        """A worker has a new session of the peer's that may send."""
        move = self._moves.get(public_key)
        if move is not None and move.state == "shaking" and move.new == worker:
            return self._switch(public_key, move, now)
        return []

    def claim(self, worker: int, sessions: Iterable[tuple[bytes, int]]) -> list[Step]:
        """A worker has sessions that a former key-service gave it: there their peers are, wherever they belong.

        Each is (public key, its handshake's time in unix ns). Two workers may have one of a peer's, if it was moving
        then; the newer counts.
        """
        left: dict[int, list[bytes]] = {}
        for public_key, handshake in sessions:
            peer = self._handshaker.peers.get(public_key)
            if peer is None or peer.indices or public_key in self._moves:
                continue  # what we have done ourselves, we know
            if handshake < self._claims.get(public_key, 0):
                continue
            self._claims[public_key] = handshake
            if peer.worker != worker:
                left.setdefault(peer.worker, []).append(public_key)
                self._planned.get(worker, {}).pop(public_key, None)
                self._handshaker.move(public_key, worker)
                self._plan(public_key)
        steps: list[Step] = []
        if left and worker >= self.count:
            self.count = worker + 1
            steps.append(Count(self.count))
        for former, public_keys in left.items():
            steps += [MoveOut(former, tuple(public_keys)), Carry(worker, tuple(public_keys))]
        return steps

    def forget(self, public_key: bytes) -> None:
        """A peer was removed."""
        for planned in self._planned.values():
            planned.pop(public_key, None)
        self._moves.pop(public_key, None)
        self._claims.pop(public_key, None)
        self._agenda.forget(public_key)
        self._pace.end(public_key)
        self._look_again = 0.0

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `act` is to be called (s)."""
        deadlines = [ready for worker, ready in self._ready.items() if self._planned.get(worker)]
        if deadlines:
            deadlines = [max(min(deadlines), self._pace.next_place())]
        if (due := self._agenda.next_deadline()) is not None:
            deadlines.append(due)
        if self._look_again is not None:
            deadlines.append(self._look_again)
        return min(deadlines, default=None)

    def act(self, now: float) -> list[Step]:
        """Does what is due."""
        steps: list[Step] = []
        left: dict[int, list[bytes]] = {}
        again: dict[int, list[bytes]] = {}
        nudged: dict[int, list[bytes]] = {}
        for public_key in self._agenda.due(now):
            move = self._moves[public_key]
            if move.state == "shaking":
                steps += self._switch(public_key, move, now)
            elif move.state == "lingering" and move.nudges < NUDGES:
                move.nudges += 1
                nudged.setdefault(move.new, []).append(public_key)
                self._until(public_key, now + LINGER / (NUDGES + 1))
            elif move.state == "lingering":
                left.setdefault(move.old, []).append(public_key)
                self._end(public_key)
            elif move.new == self.home(public_key):
                again.setdefault(move.new, []).append(public_key)
                self._until(public_key, now + SETTLE_WITHIN)
            else:
                left.setdefault(move.new, []).append(public_key)
                self._end(public_key)
        steps += [MoveOut(worker, tuple(public_keys)) for worker, public_keys in left.items()]
        steps += [MoveIn(worker, tuple(public_keys)) for worker, public_keys in again.items()]
        steps += [Nudge(worker, tuple(public_keys)) for worker, public_keys in nudged.items()]
        steps += self._begin(now)
        if self._look_again is not None and self._look_again <= now:
            steps += self._vacate(now)
        return steps

    def _begin(self, now: float) -> list[Step]:
        steps: list[Step] = []
        for worker, planned in self._planned.items():
            places = self._pace.places(now)
            chosen: list[bytes] = []
            while planned and len(chosen) < places and self._ready.get(worker, now + 1) <= now:
                public_key = next(iter(planned))
                del planned[public_key]
                self._moves[public_key] = _Move(self._handshaker.peers[public_key].worker, worker)
                self._until(public_key, now + SETTLE_WITHIN)
                self._pace.begin(public_key, now)
                chosen.append(public_key)
            if chosen:
                steps.append(MoveIn(worker, tuple(chosen)))
        return steps

    def _switch(self, public_key: bytes, move: _Move, now: float) -> list[Step]:
        move.state = "lingering"
        self._pace.end(public_key)
        self._until(public_key, now + LINGER / (NUDGES + 1))
        return [Carry(move.new, (public_key,))]

    def _end(self, public_key: bytes) -> None:
        del self._moves[public_key]
        self._pace.end(public_key)
        self._agenda.forget(public_key)
        self._plan(public_key)
        self._look_again = 0.0

    def _until(self, public_key: bytes, when: float) -> None:
        self._agenda.forget(public_key)
        self._agenda.enter(public_key, when)

    def _plan(self, public_key: bytes) -> None:
        target = self.home(public_key)
        if self._handshaker.peers[public_key].worker != target:
            self._planned.setdefault(target, {})[public_key] = None

    def _vacate(self, now: float) -> list[Step]:
        """Lets those go that nobody is at home in."""
        self._look_again = None
        if not self._retire and self.count == self.wanted:
            return []
        inhabited = {peer.worker for peer in self._handshaker.peers.values()}
        for move in self._moves.values():
            inhabited |= {move.old, move.new}
        steps: list[Step] = []
        count = max(self.wanted, 1 + max(inhabited, default=0))
        if count < self.count:
            self.count = count
            steps.append(Count(count))
            for worker in self._retire:
                if worker >= count:
                    self._retire[worker] = max(self._retire[worker], now + HEARD)
        empty = [worker for worker in self._retire if worker >= self.count]
        for worker in empty:
            if self._retire[worker] <= now:
                self._retire[worker] = now + AGAIN
                steps.append(Retired(worker))
        self._look_again = min((self._retire[worker] for worker in empty), default=None)
        return steps

    @staticmethod
    def _is_live(peer: Peer, unix_ns: int) -> bool:
        """Whether packets may be under way in a session that will be missed."""
        if peer.endpoint is None or not peer.has_session(peer.worker):
            return False
        age_ns = unix_ns - peer.last_handshake_unix_ns
        # One that was never confirmed may be confirmed any moment.
        return not peer.last_handshake_unix_ns or age_ns < c.REJECT_AFTER_TIME * 1_000_000_000
