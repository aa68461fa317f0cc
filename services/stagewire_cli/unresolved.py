"""Warns of peers whose host names aren't resolved yet."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from stagewire.config.peer_names import label
from stagewire.control.status import PeerStatus
from stagewire.environment import Environment

ANSWERED_WITHIN: Final = 2.0
"""s that `up` waits for the first answers."""
_POLL: Final = 0.05
_NOT_YET: Final = "no answer yet"


def say(environment: Environment, warn: Callable[[str], None]) -> None:
    """Waits shortly for answers; warns of each name without one, in one line."""
    deadline = time.monotonic() + ANSWERED_WITHIN
    peers = _peers(environment)
    while any(peer.unresolved.endswith(_NOT_YET) for peer in peers) and time.monotonic() < deadline:
        time.sleep(_POLL)
        peers = _peers(environment)
    for peer in peers:
        if peer.unresolved:
            warn(line(peer))


def line(peer: PeerStatus) -> str:
    name, reason = peer.endpoint_name, peer.unresolved
    return f"peer {label(peer.public_key, peer.name)}: {name} is not resolved yet ({reason}); the gateway keeps asking"


def _peers(environment: Environment) -> Sequence[PeerStatus]:
    from stagewire.control import query  # slow to import, which `down` avoids

    answer = query.key_service(environment)
    return answer.peers if answer is not None else ()
