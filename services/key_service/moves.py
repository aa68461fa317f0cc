"""Knows each peer's home worker, and moves peers when the number of workers changes.

`homes` chooses a peer's home among the wanted workers. A moving peer gets its new session before it loses the old session:

    state      new sessions for  at home in  its packets go to  until
    ---------  ----------------  ----------  -----------------  ---------------------------------------------------
    planned    old               old         old                new has been up for SETTLED, and `pace` has a place
    settling   old               old, new    old                new answers MovedIn, which it is asked for once
                                                                tun-service takes the peer's packets from it
    shaking    new               old, new    old                the new session may send | SHAKE_WITHIN
    lingering  new               old, new    new                LINGER: packets to the old session still arrive, and
                                                                empty packets nudge the peer to the new session

Rules:
  1. A peer without a live session or an endpoint skips `shaking`. If the old worker dies, the peer leaves `shaking`.
  2. A move that has begun goes on, even if the wanted number of workers changes again. Another move may follow it. If the
     new worker dies before `lingering`, the peer stays at home in the old worker, and is planned again.
  3. After the peer's own initiation, we initiate only when our response must have arrived. Otherwise the peer might
     settle on the older session.
  4. After our initiation, the peer keeps to the old session until a packet under the new session arrives. A single
     packet may be lost, so the peer gets NUDGES more. Without them, a peer that only sends would lose 15 s of packets.
  5. An unwanted worker retires when no peer is at home there or in a worker of a higher number. tun- and conn-service
     must have HEARD of it: a pipe to a missing worker would hold back all trains. An unwanted worker that comes up gets
     a GRACE, as its number may be wanted soon.

Each method returns steps, which the caller carries out in order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from key_service.homes import home_of
from stagewire.proto import constants as c
from stagewire.proto.agenda import Agenda
from stagewire.proto.events import Effect
from stagewire.proto.handshaker import INSTALL_TIMEOUT, Handshaker
from stagewire.proto.pace import Pace
from stagewire.proto.peer import Peer

SETTLED: Final = 0.3
"""s that a worker must have been up, and known to tun- and conn-service, before a peer moves there."""
SETTLE_WITHIN: Final = 2.0
SHAKE_WITHIN: Final = 6.0
"""s for an initiation and one retransmission. A peer that does not answer moves without a session."""
LINGER: Final = 1.0
NUDGES: Final = 2
GRACE: Final = 5.0
HEARD: Final = 0.1
"""s in which tun- and conn-service learn the new number of workers."""
AGAIN: Final = 2.0
"""s after which a worker is told again to retire."""


@dataclass(frozen=True, slots=True)
class MoveIn:
    """Tells a worker that these peers are at home there too."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Carry:
    """Tells tun-service that these peers' packets go to a worker."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MoveOut:
    """Tells a worker that these peers are no longer at home there."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """Calls `settled`, once packets have arrived that a worker judged before it learnt that these peers have left it."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Nudge:
    """Makes a worker send these peers an empty packet."""

    worker: int
    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """Tells tun- and conn-service the greatest number of workers."""

    workers: int


@dataclass(frozen=True, slots=True)
class Retired:
    """Tells a worker to retire."""

    worker: int


Step = MoveIn | Carry | Settled | Nudge | MoveOut | Count | Retired | Effect


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
    """Tracks all moves. `wanted` is the final number of workers. `count`, at least as great, counts until moves end."""

    def __init__(self, handshaker: Handshaker, wanted: int) -> None:
        self.wanted = self.count = wanted
        self._handshaker = handshaker
        self._moves: dict[bytes, _Move] = {}
        self._planned: dict[int, dict[bytes, None]] = {}
        """Peers by new worker, in the order of their moves."""
        self._agenda: Agenda[bytes] = Agenda()
        self._pace: Pace[bytes] = Pace()
        self._ready: dict[int, float] = {}
        """s from which peers may move to a worker that is up."""
        self._retire: dict[int, float] = {}
        """s from which an unwanted worker that is up may retire."""
        self._look_again: float | None = None
        """s at which a worker may have to retire."""
        self._claims: dict[bytes, float] = {}
        """The newest session of each peer whose home is certain: a worker has claimed it, or we have moved it."""
        self._left: dict[bytes, set[int]] = {}
        """Workers that peers have left, and whose packets may be under way."""
        self.earlier: tuple[int, ...] = ()
        """Numbers of workers by which peers may be at home where an earlier key-service had them."""

    # --- where a peer is -----------------------------------------------------------------------------------

    def home(self, public_key: bytes) -> int:
        """Returns the home worker that the wanted number of workers gives a peer."""
        return home_of(public_key, self.wanted)

    def homes(self, public_key: bytes) -> tuple[int, ...]:
        """Returns a peer's home workers, two during a move. The first worker gets new sessions."""
        worker = self._handshaker.peers[public_key].worker
        move = self._moves.get(public_key)
        if move is None:
            return (worker,)
        return worker, (move.old if worker == move.new else move.new)

    def carrier(self, public_key: bytes) -> int:
        """Returns the worker that a peer's packets go to."""
        move = self._moves.get(public_key)
        return self._handshaker.peers[public_key].worker if move is None else move.carrier

    def others(self, public_key: bytes) -> tuple[int, ...]:
        """Returns the workers beside the carrier that may deliver a peer's packets.

        Before its sessions are known, a peer may be at home where an earlier key-service had it.
        """
        workers = {*self.homes(public_key), *self._left.get(public_key, ())}
        if public_key not in self._claims and public_key not in self._moves:
            workers |= {home_of(public_key, count) for count in self.earlier}
        return tuple(sorted(workers - {self.carrier(public_key)}))

    @property
    def moving(self) -> int:
        """Counts the peers that are moving or planned."""
        return len(self._moves) + sum(map(len, self._planned.values()))

    # --- what happens --------------------------------------------------------------------------------------

    def scale(self, wanted: int, now: float) -> list[Step]:
        """Changes the wanted number of workers, and plans all moves."""
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
        """Notes that a worker is ready for sessions."""
        self._ready[worker] = now + SETTLED
        if worker >= self.wanted:
            self._retire[worker] = now + (0.0 if worker < self.count else GRACE)
            self._look_again = now

    def worker_down(self, worker: int, now: float) -> list[Step]:
        """Ends or finishes the moves of a dead worker. The caller has told the Handshaker before."""
        self._ready.pop(worker, None)
        self._retire.pop(worker, None)
        self._look_again = now
        steps: list[Step] = []
        settled: list[bytes] = []
        for public_key, move in list(self._moves.items()):
            if move.new == worker and move.state != "lingering":
                self._handshaker.move(public_key, move.old)
                self._end(public_key, worker)
                settled.append(public_key)
            elif move.old == worker and move.state == "shaking":
                steps += self._switch(public_key, move, now)
            elif move.old == worker and move.state == "lingering":
                self._end(public_key, worker)
                settled.append(public_key)
        return [*steps, Settled(worker, tuple(settled))] if settled else steps

    def moved_in(self, worker: int, public_keys: Iterable[bytes], now: float, unix_ns: int) -> list[Step]:
        """Begins new handshakes of peers, after a worker's word that the peers are at home there."""
        steps: list[Step] = []
        for public_key in public_keys:
            move = self._moves.get(public_key)
            if move is not None and move.state == "settling" and move.new == worker:
                peer = self._handshaker.peers[public_key]
                if peer.last_consumed is not None and now < peer.last_consumed + INSTALL_TIMEOUT:
                    self._pace.end(public_key)
                    self._until(public_key, peer.last_consumed + INSTALL_TIMEOUT)
                    continue
                live = self._is_live(peer, now)
                move.state = "shaking"
                self._until(public_key, now + SHAKE_WITHIN)
                self._handshaker.move(public_key, worker)
                begun = self._handshaker.renew(public_key, now, unix_ns) if live else []
                steps += begun or self._switch(public_key, move, now)
        return steps

    def usable(self, public_key: bytes, worker: int, now: float) -> list[Step]:
        """Notes that a peer's new session in a worker may send."""
        move = self._moves.get(public_key)
        if move is not None and move.state == "shaking" and move.new == worker:
            return self._switch(public_key, move, now)
        return []

    def claim(self, worker: int, sessions: Iterable[tuple[bytes, float]]) -> list[Step]:
        """Makes a worker the home of all peers whose sessions an earlier key-service gave this worker.

        A worker may be the home of a peer by the wanted number of workers, or by an earlier one if peers were moving.
        Each session is (public key, when its keys were made in s). If a peer was moving, two workers may claim it: the
        newer session counts.
        """
        left: dict[int, list[bytes]] = {}
        for public_key, created in sessions:
            peer = self._handshaker.peers.get(public_key)
            if peer is None or peer.indices or public_key in self._moves:
                continue  # this key-service has acted on the peer since, and knows more
            if worker not in {peer.worker, *(home_of(public_key, count) for count in self.earlier)}:
                continue  # it was never the peer's home: a worker must not get another's peers by its word
            if created < self._claims.get(public_key, 0):
                continue
            self._claims[public_key] = created
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

    def settled(self, worker: int, public_keys: Iterable[bytes]) -> None:
        """Notes that packets of a worker that these peers have left have arrived."""
        for public_key in public_keys:
            if (left := self._left.get(public_key)) is not None:
                left.discard(worker)
                if not left:
                    del self._left[public_key]

    def forget(self, public_key: bytes) -> None:
        """Forgets a removed peer."""
        for planned in self._planned.values():
            planned.pop(public_key, None)
        self._moves.pop(public_key, None)
        self._left.pop(public_key, None)
        self._claims.pop(public_key, None)
        self._agenda.forget(public_key)
        self._pace.end(public_key)
        self._look_again = 0.0

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns the time (s) at which `act` is due."""
        deadlines = [ready for worker, ready in self._ready.items() if self._planned.get(worker)]
        if deadlines:
            deadlines = [max(min(deadlines), self._pace.next_place())]
        if (due := self._agenda.next_deadline()) is not None:
            deadlines.append(due)
        if self._look_again is not None:
            deadlines.append(self._look_again)
        return min(deadlines, default=None)

    def act(self, now: float) -> list[Step]:
        """Takes all steps that are due."""
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
                self._end(public_key, move.old)
            elif move.new == self.home(public_key):
                again.setdefault(move.new, []).append(public_key)
                self._until(public_key, now + SETTLE_WITHIN)
            else:
                left.setdefault(move.new, []).append(public_key)
                self._end(public_key, move.new)
        for worker, public_keys in left.items():
            steps += [MoveOut(worker, tuple(public_keys)), Settled(worker, tuple(public_keys))]
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
                self._claims.setdefault(public_key, 0)
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

    def _end(self, public_key: bytes, left: int) -> None:
        del self._moves[public_key]
        self._left.setdefault(public_key, set()).add(left)
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
        """Lowers `count` if higher workers are empty, and tells empty workers to retire."""
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
    def _is_live(peer: Peer, now: float) -> bool:
        """Tells whether packets may be under way in a session of the peer's present worker."""
        if peer.endpoint is None or not peer.has_session(peer.worker):
            return False
        # An unconfirmed session may be confirmed at any moment.
        return not peer.last_handshake or now - peer.last_handshake < c.REJECT_AFTER_TIME
