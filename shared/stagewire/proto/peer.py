"""Keeps key-service's knowledge of one peer: its keys, its places, the state of its handshakes."""

import math
from dataclasses import dataclass, field

from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto.cookie import MacSealer
from stagewire.proto.handshake import Identity, Remote, SentInitiation
from stagewire.proto.index import worker_of
from stagewire.proto.messages import BadMessage, OldStamp
from stagewire.proto.timers import HandshakeTimers


@dataclass(slots=True)
class Peer:
    """Holds one peer. Times are in s on the boot-time clock, unless named unix."""

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    worker: int
    stamped: bool
    macs: MacSealer
    timers: HandshakeTimers
    endpoint: bytes | None = None
    former: bytes = b""
    """Where it was before it came to `endpoint`: an address and port."""
    moved_at: float = -math.inf
    """When it came from `former` to `endpoint`."""
    endpoint_set_at: float = 0.0
    """When the operator set the endpoint."""
    candidates: tuple[bytes, ...] = ()
    """Packed endpoints of its host name."""
    heard_from: bytes | None = None
    """Its last known place, if that is none of the candidates."""
    latest_initiation: bytes = bytes(c.TIMESTAMP_LENGTH)
    latest_response: bytes = bytes(c.TIMESTAMP_LENGTH)
    last_consumed: float | None = None
    last_handshake: float = 0.0
    """s since the boot; 0 for never."""
    heard_at: float = -math.inf
    """When its last authentic packet is known to have come."""
    skew_ns: int | None = None
    """Its wall clock minus ours, as of its last stamped response."""
    tx_bytes: int = 0
    rx_bytes: int = 0
    rated_at: float = -math.inf
    """When the rates were taken, from reports of its worker."""
    rx_unrated: int = 0
    tx_unrated: int = 0
    """Bytes reported since then."""
    tx_rate: float = 0.0
    """Bytes a second, as of then; so is `rx_rate`."""
    rx_rate: float = 0.0
    rx_alone: int = 0
    """Bytes that have come since the last packet went to the peer, keepalives left out."""
    sent: SentInitiation | None = None
    sent_at: float = 0.0
    session_lost: bool = False
    unconfirmed: int | None = None
    """Index of the session whose response left last, until the peer sends under it."""
    indices: set[int] = field(default_factory=set)
    """Indices of its sessions and of an initiation under way."""
    _static: Remote | None = field(default=None, repr=False)

    def remote(self, identity: Identity | None) -> Remote:
        """Returns the peer's facts with its current pre-shared key.

        Raises BadMessage when nothing may be sent to this key, or we have no key.
        """
        if identity is None:
            raise BadMessage("no_key", self.public_key)
        if self._static is None:
            if self.public_key == identity.public_key:
                raise BadMessage("own_key", self.public_key)
            # Computed when first needed: 10,000 peers would delay the start.
            self._static = Remote.of(identity, self.public_key)
        return self._static.with_preshared_key(self.preshared_key)

    def try_elsewhere(self) -> None:
        """Chooses the next place after an initiation without an answer, and lets the routing table choose our address."""
        if self.endpoint is None:
            return
        self.endpoint = places.without_source(self.endpoint)
        if not self.candidates:
            return
        known = [places.same_place(each, self.endpoint) for each in self.candidates]
        if not any(known):
            self.heard_from, following = self.endpoint, 0
        else:
            following = known.index(True) + 1
        around = (*self.candidates, *([self.heard_from] if self.heard_from else []))
        self.endpoint = around[following % len(around)]

    def require_newer(self, stamp: bytes, latest: bytes, reason: str) -> None:
        """Raises BadMessage for a stamp that isn't newer than the latest one: OldStamp if it is older."""
        if stamp < latest:
            raise OldStamp(reason, self.public_key, stamp, latest)
        if stamp == latest:  # a datagram that came twice
            raise BadMessage(reason, self.public_key)

    def has_session(self, worker: int) -> bool:
        """Tells whether a worker has a session of this peer, or is about to get one."""
        own = None if self.sent is None else self.sent.sender
        return any(worker_of(index) == worker and index != own for index in self.indices)

    def forget_static(self) -> None:
        """Forgets the secret of our former key."""
        self._static = None
