"""Names what the two cores of a peer return: events from its worker, effects from the handshaker.

The shells carry both to the other side. An event goes from `tunnel` and `worker` by device-service to key-service; an
effect goes from `handshaker` by key-service to a worker, to the network or to the disk. Only InstallSession holds secret
keys.
"""

from dataclasses import dataclass, field

from stagewire.proto.handshake import TransportKeys

# --- events: a worker tells the handshaker -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantHandshake:
    """Asks for a new session. `reason` is no_session, rekey, no_answer or persistent."""

    public_key: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class SessionConfirmed:
    """Tells a responder's first authentic packet under a new session, which completes the handshake."""

    public_key: bytes
    index: int
    at: float = field(default=0.0, compare=False)
    """When the packet came (s, boot-time clock)."""


@dataclass(frozen=True, slots=True)
class SessionsEnded:
    """Gives receiver indices back."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EndpointMoved:
    """Tells a peer's new packed endpoint, learnt from an authentic packet.

    The address of ours alone is dropped after a peer fell silent; `endpoint.same_place` then holds.
    """

    public_key: bytes
    endpoint: bytes
    at: float = field(default=0.0, compare=False)
    """When the operator or a look-up had last set the endpoint, as far as the worker knew (s, boot-time clock)."""


WorkerEvent = WantHandshake | SessionConfirmed | SessionsEnded | EndpointMoved

# --- effects: the handshaker tells key-service what to do --------------------------------------------------
# Not frozen: a frozen instance takes longer to make, and each handshake makes several.


@dataclass(slots=True)
class RememberTimestamp:
    """Stores a TAI64N beyond this process. `kind` is initiation or response (theirs, newest), or own (ours)."""

    public_key: bytes
    kind: str
    timestamp: bytes


@dataclass(slots=True)
class InstallSession:
    """Gives a session to one worker, which answers with `Handshaker.installed` or `refused`."""

    public_key: bytes
    worker: int
    index: int
    remote_index: int
    initiator: bool
    created: float
    endpoint: bytes
    keys: TransportKeys


@dataclass(slots=True)
class SendHandshake:
    """Sends a whole message to a packed endpoint. The home worker hears of each `initiation`, for its timers."""

    public_key: bytes
    endpoint: bytes
    data: bytes
    initiation: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Tells that the peer has not answered for REKEY_ATTEMPT_TIME."""

    public_key: bytes


Effect = RememberTimestamp | InstallSession | SendHandshake | GaveUp
