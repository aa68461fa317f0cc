"""What key-service knows of one peer: who it is, where it is, its handshakes' state."""

from dataclasses import dataclass, field

from stagewire.proto import constants as c
from stagewire.proto.cookie import MacSealer
from stagewire.proto.handshake import Identity, Remote, SentInitiation
from stagewire.proto.index import worker_of
from stagewire.proto.messages import BadMessage
from stagewire.proto.timers import HandshakeTimers


@dataclass(slots=True)
class Peer:
    """What key-service knows of one peer. Times are in s on the boot-time clock, unless named unix."""

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    worker: int
    stamped: bool
    macs: MacSealer
    timers: HandshakeTimers
    endpoint: bytes | None = None
    latest_initiation: bytes = bytes(c.TIMESTAMP_LENGTH)
    latest_response: bytes = bytes(c.TIMESTAMP_LENGTH)
    last_consumed: float | None = None
    last_handshake_unix_ns: int = 0
    skew_ns: int | None = None
    """Their wall clock minus ours, as of their last stamped response."""
    tx_bytes: int = 0
    rx_bytes: int = 0
    sent: SentInitiation | None = None
    sent_at: float = 0.0
    session_lost: bool = False
    indices: set[int] = field(default_factory=set)
    """Those that are taken for it: of its sessions, and of an initiation under way."""
    _static: Remote | None = field(default=None, repr=False)

    def remote(self, identity: Identity | None) -> Remote:
        """With the pre-shared key as it is now. Raises BadMessage when nothing must ever be sent to this key."""
        if identity is None:
            raise BadMessage("no_key")
        if self._static is None:
            if self.public_key == identity.public_key:
                raise BadMessage("own_key")
            # When first needed: 10,000 peers would cost half a second at start.
            self._static = Remote.of(identity, self.public_key)
        return self._static.with_preshared_key(self.preshared_key)

    def has_session(self, worker: int) -> bool:
        """Whether a worker has a session of this peer's, or is being given one."""
        own = None if self.sent is None else self.sent.sender
        return any(worker_of(index) == worker and index != own for index in self.indices)

    def forget_static(self) -> None:
        """Our own key has changed."""
        self._static = None
