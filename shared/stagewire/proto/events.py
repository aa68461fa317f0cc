"""What the worker's core tells key-service's, and the other way: plain facts, no keys but public ones."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WantHandshake:
    """A peer's packets need a new session. `reason`: no_session, rekey, no_answer or persistent."""

    public_key: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class EndpointMoved:
    """An authentic packet came from another place: answers go there from now on (`endpoint` is packed).

    Or the peer fell silent, and only the choice of our own address was dropped (`endpoint.same_place` tells).
    """

    public_key: bytes
    endpoint: bytes


@dataclass(frozen=True, slots=True)
class SessionConfirmed:
    """As responder: the first authentic packet under the new session has come, so the handshake is complete."""

    public_key: bytes
    index: int


@dataclass(frozen=True, slots=True)
class SessionsEnded:
    """These receiver indices are free again."""

    indices: tuple[int, ...]


WorkerEvent = WantHandshake | EndpointMoved | SessionConfirmed | SessionsEnded
