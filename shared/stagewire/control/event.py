"""Lists every kind of event of a gateway, and which fields an event of each kind has.

status-service keeps the events (`status_service/happenings.py`). It finds most of them in what stages report; key-service
tells it of those that an operator brings about. No event holds a secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

VERSION: Final = 1
"""Version of an event as JSON."""
FROM_KEY: Final = 8
"""Events in one report of key-service."""
MAX_CHANGES: Final = 5
"""Lines of a change that its event has; a last line counts the others."""
MAX_CHANGE: Final = 120
"""Letters of such a line."""


@dataclass(frozen=True, slots=True)
class Event:
    """Describes an event. KINDS says which fields mean something for its kind.

    `id` is greater than that of each earlier event, also of an earlier life. `public_key` is in base64.
    """

    kind: str
    id: int = 0
    unix_s: float = 0.0
    public_key: str = ""
    name: str = ""
    endpoint: str = ""
    before: str = ""
    """The endpoint before."""
    reason: str = ""
    seconds: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0
    stage: str = ""
    number: int = 0
    pid: int = 0
    workers: int = 0
    workers_before: int = 0
    what: str = ""
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """Says what an event of a kind means, and which of its fields are shown."""

    about: str
    fields: tuple[str, ...]
    by_key_service: bool = False
    """Whether key-service tells of it; status-service finds the others itself."""


_PEER: Final = ("public_key", "name")
KINDS: Final[Mapping[str, Kind]] = {
    "connected": Kind("a peer has sent its first authentic packet", (*_PEER, "endpoint")),
    "disconnected": Kind(
        "a peer has sent no authentic packet for 180 s", (*_PEER, "endpoint", "seconds", "rx_bytes", "tx_bytes")
    ),
    "moved": Kind("a connected peer has another endpoint", (*_PEER, "endpoint", "before")),
    "rekeyed": Kind("a connected peer has a new session", (*_PEER, "endpoint")),
    "refused": Kind(
        "a handshake or a packet was refused; a sender that is no peer has at most the key that it named",
        (*_PEER, "endpoint", "reason"),
    ),
    "taken_over": Kind("a stage has a new process", ("stage", "number", "pid")),
    "scaled": Kind("another number of workers is wanted", ("workers", "workers_before"), by_key_service=True),
    "reloaded": Kind("an operator has changed the configuration in force", ("what", "changes"), by_key_service=True),
    "disabled": Kind("an operator has put a peer out of use", _PEER, by_key_service=True),
    "enabled": Kind("an operator has put a peer in use again", _PEER, by_key_service=True),
    "quota_near": Kind("a peer has used 80 % of its quota of this month", _PEER, by_key_service=True),
    "quota_reached": Kind(
        "a peer has used up its quota of this month, and its traffic stops", _PEER, by_key_service=True
    ),
    "expires_soon": Kind("a peer's time is over within a day", _PEER, by_key_service=True),
    "expired": Kind("a peer's time is over, and the peer is out of force", _PEER, by_key_service=True),
    "rules_refused": Kind(
        "the host's rules for packets of peers could not be set; peers whose rules became narrower reach nothing",
        ("reason",),
        by_key_service=True,
    ),
    "rules_set": Kind("the host's rules for packets of peers are as wanted again", (), by_key_service=True),
}
"""Every kind of event. `docs/schema/event.json` has each as well."""
REFUSALS: Final = frozenset(
    (
        "bad_mac1", "unknown_peer", "no_key", "own_key", "low_order_key", "initiation_not_for_us",
        "initiation_not_authentic", "initiation_replayed", "bad_timestamp", "response_not_authentic",
        "response_without_timestamp", "response_with_timestamp", "response_replayed", "response_unconfirmed",
        "endpoint_contested", "endpoint_in_own_tunnel", "inner_source_not_allowed", "name_not_resolved", "access_denied",
    )
)  # fmt: skip
"""Reasons (`stats.py`) that make a `refused` event."""


def as_json(event: Event, interface: str) -> dict[str, Any]:
    """Returns an event as a JSON object, with the fields of its kind."""
    kind = KINDS.get(event.kind)
    said: dict[str, Any] = {
        "version": VERSION,
        "id": event.id,
        "kind": event.kind,
        "when": when(event.unix_s),
        "interface": interface,
    }
    return said | {name: getattr(event, name) for name in (kind.fields if kind is not None else ())}


def when(unix_s: float) -> str:
    """Writes a time in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def abridged(changes: list[str]) -> tuple[str, ...]:
    """Shortens the lines of a change for an event."""
    first = tuple(line if len(line) <= MAX_CHANGE else f"{line[:MAX_CHANGE]}…" for line in changes[:MAX_CHANGES])
    return (*first, f"and {len(changes) - MAX_CHANGES} more") if len(changes) > MAX_CHANGES else first
