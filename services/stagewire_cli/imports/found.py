"""Describes the gateway and the peers that another program's file has."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from stagewire.config.operations import NewPeer


@dataclass(frozen=True, slots=True)
class FoundPeer:
    """Holds a peer, and its place in the other program's file, such as `client 3`."""

    where: str
    peer: NewPeer


@dataclass(frozen=True, slots=True)
class Found:
    """Holds the content of one file. `gateway` has the keys of an [Interface] with their values, in the file's order.

    `left` has a line for each thing that Stagewire does not take.
    """

    program: str
    gateway: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    peers: tuple[FoundPeer, ...] = ()
    left: tuple[str, ...] = ()
    masquerades: bool = False
    """Whether its commands let clients reach other networks by the gateway's address."""


class Untaken:
    """Gathers what peers have and Stagewire does not take: a line for each kind, however many peers have it."""

    def __init__(self) -> None:
        self._peers: dict[str, list[str]] = {}

    def note(self, what: str, peer: str, there: object) -> None:
        """Notes that a peer has something, if it is there."""
        if there:
            self._peers.setdefault(what, []).append(peer)

    def lines(self) -> Iterator[str]:
        for what, peers in self._peers.items():
            more = f" and {len(peers) - _NAMED} more" if len(peers) > _NAMED else ""
            yield f"{what}, of {', '.join(peers[:_NAMED])}{more}"


PRIVATE_KEYS: Final = "private keys of clients (none is kept here: `peer config` leaves a place for each)"
AMNEZIA: Final = "AmneziaWG's parameters: a client that uses them can't connect"
_NAMED: Final = 5


class Unusable(Exception):  # noqa: N818 - the text is what the operator reads
    """Says in a line why a file, or a record in it, can't be read."""
