"""Carries every peer's handshakes from the wish for a session to its keys: key-service's whole core.

Rules:

  1. Nothing is stored and nothing answered for an initiation that isn't authentic and newer than all before it (paper,
     section 5.1). An effect remembers the greatest timestamp before anything follows from it.
  2. Install before announce: the response to an initiation is held until the home worker has the session.
  3. Both sides may initiate at once. Our own initiation stays open while we answer theirs, so both sessions come about
     and either may carry traffic. No timer has to untie them (`session.SessionSlots` chooses one).
  4. A worker gets a session only when it is up and the peer's home; its indices carry its number.
  5. Peers that lost their sessions with a worker get new ones once it is back, as many at a time as `pace` allows.

Every method returns effects; the caller carries them out in their order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto import handshake, tai64n
from stagewire.proto.agenda import Agenda
from stagewire.proto.cookie import MacSealer
from stagewire.proto.events import Effect, GaveUp, InstallSession, RememberTimestamp, SendHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.index import IndexTable, worker_of
from stagewire.proto.messages import BadMessage, CookieReply, Initiation, Response, parse_handshake_untrusted
from stagewire.proto.pace import Pace
from stagewire.proto.peer import Peer
from stagewire.proto.timers import HandshakeTimers, Jitter
from stagewire.reasons import Reasons

INSTALL_TIMEOUT = 1.0
"""s that a response waits for its worker's word. Then the handshake is forgotten; its initiator tries again."""
COMES_BACK_WITHIN = 15.0
"""s within which packets that come from the former place again tell of two devices, rather than of one that moves."""


@dataclass(slots=True)
class _HeldResponse:
    peer: Peer
    endpoint: bytes
    data: bytes = field(repr=False)
    until: float


class _About:
    """Adds the peer to a refusal that doesn't know it."""

    __slots__ = ("_peer",)

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BadMessage):
            error.public_key = self._peer.public_key


class Handshaker:
    """Holds all handshakes of one interface. `failures` counts handshakes without a session, by reason."""

    def __init__(
        self,
        identity: Identity | None,
        own_timestamp: bytes,
        random_bytes: Callable[[int], bytes],
        jitter: Jitter,
        anchor: tai64n.Anchor | None = None,
    ) -> None:
        self._identity = identity
        self.failures = Reasons()
        self.peers: dict[bytes, Peer] = {}
        self._random_bytes = random_bytes
        self._jitter = jitter
        self._stamper = tai64n.Stamper(own_timestamp, anchor)
        self._indices = IndexTable(random_bytes)
        self._owner_of_index: dict[int, Peer] = {}
        self._held: dict[int, _HeldResponse] = {}
        self._agenda: Agenda[bytes] = Agenda()
        self._workers: set[int] = set()
        self._lost: dict[bytes, None] = {}
        """Peers whose sessions went with their worker, which is back; in the order of their handshakes."""
        self._pace: Pace[bytes] = Pace()

    @property
    def identity(self) -> Identity:
        """Returns our long-term key pair. Raises BadMessage if there is none."""
        if self._identity is None:
            raise BadMessage("no_key")
        return self._identity

    @property
    def public_key(self) -> bytes | None:
        return self._identity.public_key if self._identity else None

    # --- configuration -------------------------------------------------------------------------------------

    def add_peer(self, public_key: bytes, preshared_key: bytes, worker: int, *, stamped: bool = False) -> Peer:
        """Adds a peer, at home in `worker`. `stamped`: responses carry a TAI64N, both ways."""
        macs, timers = MacSealer(public_key), HandshakeTimers(self._jitter)
        peer = Peer(public_key, preshared_key, worker, stamped, macs, timers)
        self.peers[public_key] = peer
        return peer

    def remove_peer(self, public_key: bytes) -> None:
        """Forgets a peer and its handshakes. Its sessions' indices stay taken until their worker says `ended`."""
        peer = self.peers.pop(public_key, None)
        if peer is not None:
            self._forget_initiation(peer)
            self._agenda.forget(public_key)
            self._lost.pop(public_key, None)
            self._pace.end(public_key)
            for index in [index for index, held in self._held.items() if held.peer is peer]:
                del self._held[index]

    def set_identity(self, identity: Identity | None, own_timestamp: bytes) -> None:
        """Sets another long-term key, or none. Handshakes under way end, and the next initiations need not wait."""
        self._identity = identity
        self._stamper = tai64n.Stamper(max(self._stamper.last, own_timestamp), self._stamper.anchor)
        for index in list(self._held):
            self._release(index)
        for peer in self.peers.values():
            self._forget_initiation(peer)
            peer.forget_static()
            peer.timers.complete()
            peer.timers.reset()

    def look_at_clock(self, now: float, unix_ns: int) -> tuple[int, tai64n.Anchor | None]:
        """Returns by how much (ns) our stamps do not follow the wall clock, and what ties it to the boot-time clock."""
        return self._stamper.jump(unix_ns, now), self._stamper.anchor

    # --- what the workers say ------------------------------------------------------------------------------

    def worker_up(self, worker: int, now: float, unix_ns: int) -> list[Effect]:
        """Notes that a worker takes sessions. Peers that lost theirs with its former life get new ones."""
        self._workers.add(worker)
        lost = (key for key, peer in self.peers.items() if peer.worker == worker and peer.session_lost)
        self._lost.update(dict.fromkeys(lost))
        return self._replace_lost(now, unix_ns)

    def _replace_lost(self, now: float, unix_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        places = self._pace.places(now)
        while self._lost and places:
            public_key = next(iter(self._lost))
            del self._lost[public_key]
            peer = self.peers[public_key]
            if peer.session_lost and peer.worker in self._workers and (begun := self._initiate(peer, now, unix_ns)):
                self._pace.begin(public_key, now)
                places -= 1
                effects += begun
        return effects

    def worker_down(self, worker: int) -> None:
        """Notes that a worker is gone, with every session that lived there."""
        self._workers.discard(worker)
        for index in [index for index in self._owner_of_index if worker_of(index) == worker]:
            peer = self._owner_of_index[index]
            if peer.sent is not None and peer.sent.sender == index:
                continue  # an initiation under way is not the worker's
            self._release(index)
            if peer.worker == worker:  # a moved peer's newer session lives elsewhere
                peer.session_lost = True
        for peer in [peer for peer in self.peers.values() if peer.worker == worker and peer.session_lost]:
            peer.timers.reset()

    def move(self, public_key: bytes, worker: int) -> None:
        """Sends the peer's next session to another worker. Its present session lives on where it is."""
        peer = self.peers[public_key]
        peer.worker = worker
        if peer.session_lost and worker in self._workers:
            self._lost[public_key] = None

    def renew(self, public_key: bytes, now: float, unix_ns: int) -> list[Effect]:
        """Wants another session, however young the last one is: the peer's worker has changed."""
        self.peers[public_key].timers.reset()
        return self.want(public_key, now, unix_ns)

    def owner_of(self, index: int) -> bytes | None:
        """Returns the public key of the peer that an index is for."""
        peer = self._owner_of_index.get(index)
        return peer.public_key if peer is not None and peer is self.peers.get(peer.public_key) else None

    def session_missing(self, public_key: bytes, endpoint: bytes | None) -> None:
        """Notes that a peer had a session, which may have gone with its worker: `adopt_session` takes it back."""
        peer = self.peers.get(public_key)
        if peer is not None:
            peer.session_lost = True
            peer.endpoint = endpoint or peer.endpoint

    def adopt_session(self, public_key: bytes, index: int, endpoint: bytes | None, handshake: float) -> None:
        """Notes a session that a worker runs and another key-service made."""
        peer = self.peers.get(public_key)
        if peer is None or worker_of(index) != peer.worker or not self._indices.claim(index):
            return
        self._own(index, peer)
        peer.session_lost = False
        peer.endpoint = endpoint or peer.endpoint
        peer.last_handshake = max(peer.last_handshake, handshake)

    def installed(self, index: int, now: float) -> list[Effect]:
        """Releases the held response: the home worker has the session."""
        held = self._held.pop(index, None)
        if held is None:
            return []
        peer = held.peer
        peer.timers.response_sent(now)
        peer.unconfirmed = index
        data = peer.macs.seal(held.data, now)
        peer.tx_bytes += len(data)
        return [SendHandshake(peer.public_key, held.endpoint, data, initiation=False)]

    def refused(self, index: int) -> None:
        """Gives a session up that its home worker refused. A worker on its way out gets one in its next life."""
        peer = self._owner_of_index.get(index)
        if peer is None:
            self.failures.note("session_refused", place=bytes([worker_of(index)]))
        else:
            self._count_for("session_refused", peer, c.INITIATION_LENGTH)
        if peer is not None and peer.worker == worker_of(index):
            peer.session_lost = True
        self._release(index)

    def ended(self, worker: int, indices: tuple[int, ...]) -> None:
        """Frees the indices of sessions that ended in a worker, as far as they are its own."""
        for index in indices:
            if worker_of(index) == worker:
                self._release(index)

    def confirmed(self, public_key: bytes, worker: int, at: float) -> None:
        """Completes a handshake that we answered: the first packet under the session came `at` that time (s)."""
        peer = self.peers.get(public_key)
        if peer is not None:
            peer.last_handshake = max(peer.last_handshake, at)  # one of our own may have been complete since
            peer.unconfirmed = None
            if peer.worker == worker:  # else it has moved: the handshake under way is for its new home
                self._complete(peer)
                self._forget_initiation(peer)

    def endpoint_moved(self, public_key: bytes, endpoint: bytes, at: float) -> None:
        """Notes a peer's new place, learnt from an authentic packet, unless the operator has set another since."""
        peer = self.peers.get(public_key)
        if peer is not None and at >= peer.endpoint_set_at:
            self._note_contested(peer, places.place_of(endpoint), at, COMES_BACK_WITHIN)
            peer.endpoint = endpoint

    def want(self, public_key: bytes, now: float, unix_ns: int, *, ready: bool = True) -> list[Effect]:
        """Begins a handshake for a peer's packets. `ready` false: the worker's new life asks before it is up."""
        peer = self.peers.get(public_key)
        if peer is None:
            return []
        peer.timers.wanted()
        if not ready or peer.worker not in self._workers:
            peer.session_lost = True  # the answer would come before the worker can take it
            return []
        return self._initiate(peer, now, unix_ns)

    # --- what the network says -----------------------------------------------------------------------------

    def receive_untrusted(self, data: bytes, endpoint: bytes, now: float, unix_ns: int) -> list[Effect]:
        """Takes a message of type 1 to 3 that passed the gate. Raises BadMessage, having changed nothing."""
        message = parse_handshake_untrusted(data)
        match message:
            case Initiation():
                return self._on_initiation(message, len(data), endpoint, now, unix_ns)
            case Response():
                return self._on_response(message, len(data), endpoint, now, unix_ns)
            case CookieReply():
                self._on_cookie_reply(message, len(data), now)
                return []

    def _on_initiation(self, message: Initiation, size: int, endpoint: bytes, now: float, unix_ns: int) -> list[Effect]:
        opened = handshake.open_initiation_untrusted(self.identity, message)
        peer = self.peers.get(opened.public_key)
        if peer is None:
            raise BadMessage("unknown_peer", opened.public_key)
        remote = peer.remote(self._identity)
        with _About(peer):
            initiation = handshake.authenticate_untrusted(opened, remote)
        # Any twelve bytes that grow will do: some implementations have no clock and count.
        peer.require_newer(initiation.timestamp, peer.latest_initiation, "initiation_replayed")
        if peer.last_consumed is not None and now - peer.last_consumed < 1 / c.INITIATIONS_PER_SECOND:
            raise BadMessage("initiation_too_soon", peer.public_key)
        if peer.worker not in self._workers:
            raise BadMessage("no_worker", peer.public_key)
        stamps = [self._stamp(now, unix_ns)] if peer.stamped else []
        index = self._indices.allocate(peer.worker)
        ephemeral = self._random_bytes(c.KEY_LENGTH)
        try:
            data, keys = handshake.respond(initiation, remote, index, ephemeral, stamps[0].timestamp if stamps else b"")
        except BadMessage:
            self._indices.release(index)
            raise
        self._note_unconfirmed(peer)
        self._note_contested(peer, places.place_of(endpoint), now, c.REJECT_AFTER_TIME)
        peer.latest_initiation = initiation.timestamp
        peer.last_consumed = now
        peer.endpoint = endpoint
        peer.rx_bytes += size
        self._own(index, peer)
        self._held[index] = _HeldResponse(peer, endpoint, data, now + INSTALL_TIMEOUT)
        return [
            *stamps,
            RememberTimestamp(peer.public_key, "initiation", initiation.timestamp),
            InstallSession(peer.public_key, peer.worker, index, message.sender, False, now, endpoint, keys),
        ]

    def _on_response(self, message: Response, size: int, endpoint: bytes, now: float, unix_ns: int) -> list[Effect]:
        peer = self._owner_of_index.get(message.receiver)
        if peer is None or peer.sent is None or peer.sent.sender != message.receiver:
            raise BadMessage("unknown_response")
        with _About(peer):
            keys, timestamp = handshake.read_response_untrusted(
                self.identity, peer.remote(self._identity), peer.sent, message, stamped=peer.stamped
            )
        effects: list[Effect] = []
        if peer.stamped:
            theirs_ns = tai64n.decode_untrusted(timestamp)
            peer.require_newer(timestamp, peer.latest_response, "response_replayed")
            peer.latest_response = timestamp
            # They made the stamp about half a round trip ago.
            peer.skew_ns = theirs_ns - unix_ns + int((now - peer.sent_at) * 1e9) // 2
            effects.append(RememberTimestamp(peer.public_key, "response", timestamp))
        peer.sent = None
        peer.endpoint = endpoint
        peer.rx_bytes += size
        self._complete(peer)
        if peer.worker not in self._workers or worker_of(message.receiver) != peer.worker:
            # The worker died, or the peer moved: no worker would find a session with this index.
            self._release(message.receiver)
            self._count_for("no_worker", peer, size)
            peer.session_lost = True
            peer.timers.reset()
            return effects + (self._initiate(peer, now, unix_ns) if peer.worker in self._workers else [])
        peer.last_handshake = now
        effects.append(
            InstallSession(peer.public_key, peer.worker, message.receiver, message.sender, True, now, endpoint, keys)
        )
        return effects

    def _on_cookie_reply(self, message: CookieReply, size: int, now: float) -> None:
        # It proves nothing but the cookie, so neither endpoint nor timer moves.
        peer = self._owner_of_index.get(message.receiver)
        if peer is None:
            raise BadMessage("unknown_cookie_reply")
        with _About(peer):
            peer.macs.accept_cookie_reply(message, now)
        self._count_for("cookie_asked", peer, size)

    # --- initiating ----------------------------------------------------------------------------------------

    def _initiate(self, peer: Peer, now: float, unix_ns: int) -> list[Effect]:
        if not peer.timers.may_initiate(now):
            self._enter(peer)  # the initiation may be held
            return []
        if peer.endpoint is None:
            self._count_for("no_endpoint", peer, c.INITIATION_LENGTH)
            return []
        try:
            remote = peer.remote(self._identity)
        except BadMessage as error:
            self._count_for(error.reason, peer, c.INITIATION_LENGTH)
            return []
        self._forget_initiation(peer)
        index = self._indices.allocate(peer.worker)
        stamp = self._stamp(now, unix_ns)
        ephemeral = self._random_bytes(c.KEY_LENGTH)
        data, peer.sent = handshake.initiate(self.identity, remote, index, ephemeral, stamp.timestamp)
        data = peer.macs.seal(data, now)
        self._own(index, peer)
        peer.sent_at = now
        peer.tx_bytes += len(data)
        peer.timers.initiation_sent(now)
        self._enter(peer)
        return [stamp, SendHandshake(peer.public_key, peer.endpoint, data, initiation=True)]

    def _stamp(self, now: float, unix_ns: int) -> RememberTimestamp:
        return RememberTimestamp(self.identity.public_key, "own", self._stamper.next(unix_ns, now))

    def _complete(self, peer: Peer) -> None:
        peer.timers.complete()
        peer.session_lost = False
        self._pace.end(peer.public_key)

    def _forget_initiation(self, peer: Peer) -> None:
        if peer.sent is not None:
            self._release(peer.sent.sender)
            peer.sent = None

    def _own(self, index: int, peer: Peer) -> None:
        self._owner_of_index[index] = peer
        peer.indices.add(index)

    def _release(self, index: int) -> None:
        if (peer := self._owner_of_index.pop(index, None)) is not None:
            peer.indices.discard(index)
        self._held.pop(index, None)
        self._indices.release(index)

    # --- time ----------------------------------------------------------------------------------------------

    def _enter(self, peer: Peer) -> None:
        deadline = peer.timers.next_deadline()
        self._agenda.enter(peer.public_key, deadline[0] if deadline else None)

    def next_deadline(self) -> float | None:
        """Returns the time (s) of the next `act`, or None."""
        held_until = next((held.until for held in self._held.values()), None)  # first held, first due
        lost = self._pace.next_place() if self._lost else None
        due = (self._agenda.next_deadline(), held_until, lost)
        return min((when for when in due if when is not None), default=None)

    def act(self, now: float, unix_ns: int) -> list[Effect]:
        """Retransmits, gives up, replaces lost sessions, and forgets responses that no worker took in time."""
        effects = self._replace_lost(now, unix_ns)
        for index, held in [(index, held) for index, held in self._held.items() if held.until <= now]:
            self._count_for("install_timed_out", held.peer, len(held.data))
            self._release(index)
        for public_key in self._agenda.due(now):
            peer = self.peers.get(public_key)
            if peer is None:
                continue
            match peer.timers.take_due(now):
                case "held":
                    effects += self._initiate(peer, now, unix_ns)
                case "retransmit":
                    effects += self._retransmit(peer, now, unix_ns)
                case "give_up":
                    self._count_for("gave_up", peer, c.INITIATION_LENGTH)
                    self._forget_initiation(peer)
                    effects.append(GaveUp(public_key))
            self._enter(peer)
        return effects

    def _note_contested(self, peer: Peer, place: bytes, now: float, within: float) -> None:
        """Counts a move to the place before the last one, `within` s: a peer that moves seldom comes back at once."""
        last = places.place_of(peer.endpoint) if peer.endpoint else place
        if place == last:
            return
        if place == peer.former and now - peer.moved_at < within:
            self.failures.note("endpoint_contested", peer=peer.public_key, place=place, size=c.INITIATION_LENGTH)
        peer.former, peer.moved_at = last, now

    def _note_unconfirmed(self, peer: Peer) -> None:
        """Counts the last response, if the peer asks again without having sent anything under its session."""
        if peer.unconfirmed is not None:
            peer.unconfirmed = None
            size = c.STAMPED_RESPONSE_LENGTH if peer.stamped else c.RESPONSE_LENGTH
            self._count_for("response_unconfirmed", peer, size)

    def _count_for(self, reason: str, peer: Peer, size: int = 0) -> None:
        """Counts what happened to a peer's handshake, with where the peer is and the size of the message."""
        place = places.place_of(peer.endpoint) if peer.endpoint else b""
        self.failures.note(reason, peer=peer.public_key, place=place, size=size)

    def _retransmit(self, peer: Peer, now: float, unix_ns: int) -> list[Effect]:
        if peer.sent is not None and peer.endpoint is not None:
            self._count_for("initiation_unanswered", peer, c.INITIATION_LENGTH)
        peer.try_elsewhere()
        if not peer.timers.may_initiate(now):
            peer.timers.defer(now)
            return []
        return self._initiate(peer, now, unix_ns)
