"""What key-service has to do because of a handshake, in the order in which it must be done."""

from dataclasses import dataclass

from stagewire.proto.handshake import TransportKeys


@dataclass(slots=True)
class SendHandshake:
    """Send a whole message to a packed endpoint. `initiation`: the home worker's timers must hear of it."""

    public_key: bytes
    endpoint: bytes
    data: bytes
    initiation: bool


@dataclass(slots=True)
class InstallSession:
    """Give a session to worker `worker`, and to nobody else, and tell `installed` when it has it."""

    public_key: bytes
    worker: int
    index: int
    remote_index: int
    initiator: bool
    created: float
    endpoint: bytes
    keys: TransportKeys


@dataclass(slots=True)
class RememberTimestamp:
    """Store a TAI64N that survives this process. `kind` is initiation, response (theirs, newest seen) or own (ours)."""

    public_key: bytes
    kind: str
    timestamp: bytes


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Nobody answered for REKEY_ATTEMPT_TIME."""

    public_key: bytes


Effect = SendHandshake | InstallSession | RememberTimestamp | GaveUp
