"""Describes the gateway and the peers that another program's file has."""

from dataclasses import dataclass, field

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


class Unusable(Exception):  # noqa: N818 - the text is what the operator reads
    """Says in a line why a file, or a record in it, can't be read."""
