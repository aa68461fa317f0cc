"""Defines what a command asks key- and status-service, apart from `messages`: a short command would load all for nothing."""

from dataclasses import dataclass
from typing import Final

VERSION: Final = 13
"""Version of all control messages."""


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """Asks for the status. key-service answers with GatewayStatus, status-service with CountersStatus."""


@dataclass(frozen=True, slots=True)
class EventsQuery:
    """Asks status-service for the first `most` events of these kinds after an id. Answered by EventsStatus."""

    after: int
    kinds: tuple[str, ...]
    most: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Asks key-service for another number of workers, 1 to MAX_WORKERS."""

    workers: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """Answers Scale. `error` says why the number isn't in force, or is empty. `moving` counts peers that still move."""

    error: str
    moving: int


@dataclass(frozen=True, slots=True)
class HandshakeNow:
    """Asks key-service to begin a handshake with a peer as soon as the protocol lets it. Answered by HandshakeBegun."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class HandshakeBegun:
    """Answers HandshakeNow. `error` says why there is no handshake, or is empty."""

    error: str
