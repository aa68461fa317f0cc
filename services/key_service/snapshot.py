"""What each stage needs to know of the configuration, as control messages."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from key_service.homes import home_of
from stagewire.config import InterfaceConfig, PeerConfig
from stagewire.ipc.control import (
    ConnSettings,
    FromKey,
    Route,
    Routes,
    TunSettings,
    WorkerPeer,
    WorkerPeers,
    WorkerSettings,
)
from stagewire.proto.handshaker import Handshaker

DEFAULT_MTU = 1420
"""1,500 minus IPv6 (40), UDP (8) and WireGuard (32): fits whatever the outer family is."""
DEFAULT_PORT = 51820
DEFAULT_ROUTE_MARK = 51820
"""Of outer packets, and the table of a default route through the tunnel, when none is configured; as in wg-quick."""
_BATCH = 128
"""Peers in one message: a slow reader gets to its packets between two."""

T = TypeVar("T")


def for_stage(
    stage: str, number: int, config: InterfaceConfig, handshaker: Handshaker, workers: int
) -> Iterator[FromKey]:
    """The messages between Welcome and SnapshotEnd for one stage."""
    mark = outer_mark(config)
    match stage:
        case "tun":
            yield TunSettings(
                tuple(map(str, config.addresses)), config.mtu or DEFAULT_MTU, str(config.table), mark, workers
            )
            for batch in _batches(config.peers):
                yield Routes(tuple(Route(_prefixes(peer), home_of(peer.public_key, workers)) for peer in batch))
        case "device":
            yield WorkerSettings(config.mtu or DEFAULT_MTU, config.rekey_after_time)
            for batch in _batches(config.peers):
                yield WorkerPeers(tuple(_worker_peer(peer, number, handshaker, workers) for peer in batch))
        case "conn":
            yield ConnSettings(
                handshaker.identity.public_key,
                DEFAULT_PORT if config.listen_port is None else config.listen_port,
                mark,
                workers,
                any(peer.response_timestamp for peer in config.peers),
            )


def outer_mark(config: InterfaceConfig) -> int:
    """What outer packets are marked with, so that a default route through the tunnel doesn't catch them as well."""
    default_route = any(prefix.prefixlen == 0 for peer in config.peers for prefix in peer.allowed_ips)
    return config.fwmark or (DEFAULT_ROUTE_MARK if config.table == "auto" and default_route else 0)


def _worker_peer(peer: PeerConfig, worker: int, handshaker: Handshaker, workers: int) -> WorkerPeer:
    return WorkerPeer(
        peer.public_key,
        _prefixes(peer),
        home_of(peer.public_key, workers) == worker,
        peer.persistent_keepalive,
        handshaker.peers[peer.public_key].endpoint or b"",
    )


def _prefixes(peer: PeerConfig) -> tuple[str, ...]:
    return tuple(map(str, peer.allowed_ips))


def _batches(peers: Iterable[T]) -> Iterator[tuple[T, ...]]:
    remaining = iter(peers)
    while batch := tuple(islice(remaining, _BATCH)):
        yield batch
