"""Defines the messages about endpoints that lie in our own tunnel, behind a chain of other peers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nested:
    """Asks for the chain of an endpoint that lies in our own tunnel. Answered by Chain."""

    endpoint: bytes


@dataclass(frozen=True, slots=True)
class Chain:
    """Lists the endpoints that a datagram to `endpoint` goes through inside the tunnel, one behind the other.

    The peer whose allowed-IPs contain an endpoint's address has the next endpoint. The chain ends at an address of no peer,
    at a peer without an endpoint, and before an endpoint would come again.
    """

    endpoint: bytes
    through: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ChainsChanged:
    """Withdraws every chain that conn-service was told."""


@dataclass(frozen=True, slots=True)
class ChainJudged:
    """Says whether an endpoint's chain leaves the tunnel somewhere. Otherwise conn-service sends nothing to the endpoint."""

    endpoint: bytes
    passes: bool
