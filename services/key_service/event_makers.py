"""Makes events of what an operator has changed."""

from collections.abc import Iterable, Iterator

from stagewire.config import InterfaceConfig, PeerConfig, encode_key
from stagewire.config.operations import DISABLING, ENABLING
from stagewire.control.event import Event, abridged


def events_of_peers(kind: str, peers: Iterable[PeerConfig]) -> Iterator[Event]:
    """Makes an event for each peer."""
    for peer in peers:
        yield Event(kind, public_key=encode_key(peer.public_key), name=peer.name)


def events_of_change(what: str, changes: list[str], before: InterfaceConfig, after: InterfaceConfig) -> Iterator[Event]:
    """Makes the events of a change, which `what` names as the audit does. `before` and `after` are what is in force."""
    if what in (ENABLING, DISABLING):
        was, is_now = ({peer.public_key: peer for peer in each.peers} for each in (before, after))
        yield from events_of_peers("disabled", [peer for key, peer in was.items() if key not in is_now])
        yield from events_of_peers("enabled", [peer for key, peer in is_now.items() if key not in was])
    else:
        yield Event("reloaded", what=what, changes=abridged(changes))
