"""What each stage is told of the configuration: all of it when it says hello, later what changes."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from key_service.moves import Moves
from key_service.registry import Delta, Registry
from stagewire.config import InterfaceConfig, Network
from stagewire.ipc.control import (
    PEER_BATCH,
    PREFIX_BATCH,
    ConnSettings,
    FromKey,
    MoveIn,
    PeersGone,
    PeersSet,
    Prefixes,
    PrefixesGone,
    PrefixesSet,
    RoutesGone,
    RoutesSet,
    TunSettings,
    WorkerPeer,
    WorkerSettings,
)
from stagewire.proto import constants as c
from stagewire.proto import prefix
from stagewire.proto.handshaker import Handshaker

DEFAULT_MTU = 1420
"""1,500 minus IPv6 (40), UDP (8) and WireGuard (32): fits whatever the outer family is."""
DEFAULT_PORT = 51820
DEFAULT_ROUTE_MARK = 51820
"""Of outer packets, and the table of a default route through the tunnel, when none is configured; as in wg-quick."""

T = TypeVar("T")
Owned = Iterable[tuple[bytes, Network]]


@dataclass(frozen=True, slots=True)
class Announcer:
    """Words for the stages. `managed`: addresses, MTU and routes are ours to set."""

    registry: Registry
    handshaker: Handshaker
    moves: Moves
    managed: bool

    def snapshot(self, stage: str, number: int, mtu: int) -> Iterator[FromKey]:
        """Everything one stage needs to know. `mtu` is the interface's as it is now."""
        peers = self.registry.peers
        everything = ((key, each) for key, peer in peers.items() for each in peer.allowed_ips)
        match stage:
            case "tun":
                yield self.tun_settings()
                yield from self.routes_set(everything)
            case "device":
                yield WorkerSettings(mtu, self.registry.interface.rekey_after_time)
                yield from self.peers_set(peers, number)
                yield from prefixes(PrefixesSet, everything)
            case "conn":
                yield self.conn_settings(self.registry.interface)

    def changes(self, stage: str, number: int, delta: Delta) -> Iterator[FromKey]:
        """What a change means to one stage; sockets and keys are not spoken of here."""
        removed = [(key, each) for key, peer in delta.peers.items() for each in peer.prefixes_removed]
        added = [(key, each) for key, peer in delta.peers.items() for each in peer.prefixes_added]
        match stage:
            case "tun":
                # What moved from one peer to another is set anew below, not taken away in between.
                moved = {each for _, each in added}
                orphans = [each for _, each in removed if each not in moved]
                orphans += [each for _, each in delta.prefixes_gone if each not in moved]
                for batch in batches(orphans, PREFIX_BATCH):
                    yield RoutesGone(tuple(map(prefix.pack, batch)))
                yield from self.routes_set(added)
            case "device":
                # A peer that goes takes its prefixes with it, in one go; more than a few would keep the packets waiting.
                held = Counter(key for key, _ in delta.prefixes_gone)
                large = ((key, each) for key, each in delta.prefixes_gone if held[key] > PREFIX_BATCH)
                yield from prefixes(PrefixesGone, large)
                for gone in batches(delta.gone, PEER_BATCH):
                    yield PeersGone(gone)
                yield from self.peers_set(
                    [key for key, peer in delta.peers.items() if peer.added or peer.keepalive], number
                )
                yield from prefixes(PrefixesGone, removed)
                yield from prefixes(PrefixesSet, added)

    def peers_set(self, keys: Iterable[bytes], worker: int) -> Iterator[FromKey]:
        """Peers as one worker needs them."""
        for batch in batches(keys, PEER_BATCH):
            yield PeersSet(tuple(self._worker_peer(key, worker in self.moves.homes(key)) for key in batch))

    def move_in(self, keys: Iterable[bytes]) -> Iterator[MoveIn]:
        """Peers as the worker needs them that they move to."""
        for batch in batches(keys, PEER_BATCH):
            yield MoveIn(tuple(self._worker_peer(key, True) for key in batch))

    def move_out(self, keys: Iterable[bytes]) -> Iterator[PeersSet]:
        """Peers as the worker needs them that they have left."""
        for batch in batches(keys, PEER_BATCH):
            yield PeersSet(tuple(self._worker_peer(key, False) for key in batch))

    def _worker_peer(self, key: bytes, home: bool) -> WorkerPeer:
        endpoint = self.handshaker.peers[key].endpoint or b""
        return WorkerPeer(key, home, self.registry.peers[key].persistent_keepalive, endpoint)

    def routes_of(self, keys: Iterable[bytes]) -> Iterator[RoutesSet]:
        """Which worker has all that belongs to these peers."""
        return self.routes_set((key, each) for key in keys for each in self.registry.peers[key].allowed_ips)

    def routes_set(self, owned: Owned) -> Iterator[RoutesSet]:
        """Which worker has which prefix, as it is when each message is made: peers may move between two."""
        for batch in batches(owned, PREFIX_BATCH):
            by_worker: dict[int, list[bytes]] = {}
            for key, each in batch:
                by_worker.setdefault(self.moves.carrier(key), []).append(prefix.pack(each))
            for worker, packed in by_worker.items():
                yield RoutesSet(worker, tuple(packed))

    def tun_settings(self) -> TunSettings:
        """tun-service's."""
        interface = self.registry.interface
        return TunSettings(
            self.managed,
            tuple(map(str, interface.addresses)),
            interface.mtu or DEFAULT_MTU,
            str(interface.table),
            self.mark(interface),
            self.moves.count,
        )

    def conn_settings(self, interface: InterfaceConfig) -> ConnSettings:
        """conn-service's, for the interface as it is or as somebody wants it."""
        return ConnSettings(
            self.handshaker.public_key or bytes(c.KEY_LENGTH),
            DEFAULT_PORT if interface.listen_port is None else interface.listen_port,
            self.mark(interface),
            self.moves.count,
            any(peer.response_timestamp for peer in self.registry.peers.values()),
        )

    def mark(self, interface: InterfaceConfig) -> int:
        """What outer packets are marked with, so that a default route through the tunnel doesn't catch them as well."""
        if interface.fwmark or not self.managed or interface.table != "auto":
            return interface.fwmark
        default_route = any(each.prefixlen == 0 for peer in self.registry.peers.values() for each in peer.allowed_ips)
        return DEFAULT_ROUTE_MARK if default_route else 0


def prefixes(kind: type[PrefixesSet] | type[PrefixesGone], owned: Owned) -> Iterator[FromKey]:
    """Prefixes by peer, a bounded number in each message."""
    for batch in batches(owned, PREFIX_BATCH):
        by_peer: dict[bytes, list[bytes]] = {}
        for key, each in batch:
            by_peer.setdefault(key, []).append(prefix.pack(each))
        yield kind(tuple(Prefixes(key, tuple(packed)) for key, packed in by_peer.items()))


def batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Cuts a sequence."""
    remaining = iter(items)
    while batch := tuple(islice(remaining, size)):
        yield batch
