"""Describes the difference that a change of the configuration makes, for the stages."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from stagewire.config import Network, PeerConfig
from stagewire.config.keys import NO_KEY
from stagewire.proto.endpoint import Endpoint

PIECE: Final = 2048
"""Prefixes or peers in one piece of work: they bound the time for which a piece delays handshakes."""


@dataclass(slots=True)
class PeerDelta:
    """Describes what changed of one peer that stays. Empty lists and false flags mean no change."""

    added: bool = False
    prefixes_added: list[Network] = field(default_factory=list)
    prefixes_removed: list[Network] = field(default_factory=list)
    preshared_key: bool = False
    endpoint: Endpoint | None = None
    keepalive: bool = False
    limits: bool = False
    renamed: bool = False
    """The endpoint is another host name now."""
    stamped: bool = False
    """`response_timestamp` has changed."""
    mentioned: bool = False
    """The change named the peer: its staged packets are worth another try."""


@dataclass(slots=True)
class Delta:
    """Describes the difference that a change makes."""

    private_key: bool = False
    listen_port: bool = False
    fwmark: bool = False
    gone: list[bytes] = field(default_factory=list)
    renewed: list[bytes] = field(default_factory=list)
    """Peers that a single change removed and added again."""
    prefixes_gone: list[tuple[bytes, Network]] = field(default_factory=list)
    """Prefixes of the removed peers, each with its peer."""
    peers: dict[bytes, PeerDelta] = field(default_factory=dict)


def compare(delta: PeerDelta, before: PeerConfig | None, now: PeerConfig) -> Iterator[None]:
    """Fills a peer's delta, in pieces. A peer without `before` is new."""
    delta.added = before is None
    old: tuple[Network, ...] = before.allowed_ips if before else ()
    was, remains = set[Network](), set[Network]()
    for into, prefixes in ((was, old), (remains, now.allowed_ips)):
        for piece in _pieces(prefixes):
            into.update(piece)
            if len(piece) == PIECE:
                yield
    for found, prefixes, other in (
        (delta.prefixes_added, now.allowed_ips, was),
        (delta.prefixes_removed, old, remains),
    ):
        for piece in _pieces(prefixes):
            found += [prefix for prefix in piece if prefix not in other]
            if len(piece) == PIECE:
                yield
    delta.preshared_key = (before.preshared_key if before else NO_KEY) != now.preshared_key
    delta.stamped = (before.response_timestamp if before else False) != now.response_timestamp
    delta.renamed = before is not None and before.endpoint != now.endpoint and address_of(now) is None
    delta.keepalive = (before.persistent_keepalive if before else 0) != now.persistent_keepalive
    delta.limits = before is not None and before.limits != now.limits


def _pieces(prefixes: tuple[Network, ...]) -> Iterator[tuple[Network, ...]]:
    for start in range(0, len(prefixes), PIECE):
        yield prefixes[start : start + PIECE]


def address_of(peer: PeerConfig) -> Endpoint | None:
    """Returns a peer's configured endpoint; None if it is a host name."""
    if peer.endpoint is None:
        return None
    host, _, scope = peer.endpoint.host.partition("%")
    try:
        return Endpoint(ip_address(host).packed, peer.endpoint.port, int(scope or 0))
    except ValueError:
        return None
