"""Makes the messages that tell each stage the configuration: a snapshot after its hello, then each change."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from key_service import gateway_rules
from key_service.delta import Delta
from key_service.moves import Moves
from key_service.prepared import Prepared
from key_service.quotas import NO_CAP, Quotas
from key_service.registry import Registry
from key_service.withheld import Withheld
from stagewire.config import InterfaceConfig, Network, PeerConfig
from stagewire.control.gateway import NO_RULES, GatewayRules
from stagewire.control.messages import (
    PEER_BATCH,
    PREFIX_BATCH,
    ConnSettings,
    FromKey,
    HostEndpoints,
    HostSettings,
    MoveIn,
    PeersGone,
    PeersSet,
    Prefixes,
    PrefixesGone,
    PrefixesSet,
    RoutesGone,
    RoutesSet,
    SocketSettings,
    TunSettings,
    WorkerPeer,
    WorkerSettings,
)
from stagewire.limits import DEFAULT_MTU
from stagewire.proto import constants as c
from stagewire.proto import prefix
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.handshaker import Handshaker

ANY_PORT = 0
MAX_ENDPOINTS = 64
"""Endpoints whose routes host-service derives the MTU from."""

T = TypeVar("T")
Owned = Iterable[tuple[bytes, Network]]


@dataclass(slots=True)
class Announcer:
    """Makes messages for the stages. `managed`: Stagewire sets addresses, MTU and routes."""

    registry: Registry
    handshaker: Handshaker
    moves: Moves
    managed: bool
    mtu: int = DEFAULT_MTU
    """Bytes; the interface's present MTU."""
    host_mark: int = 0
    """The mark that host-service chose for a default route without FwMark; 0 for none."""
    quotas: Quotas | None = None
    withheld: Withheld | None = None
    _rules: tuple[int, GatewayRules] | None = None
    """The rules after so many commits of the registry."""

    def snapshot(self, stage: str, number: int) -> Iterator[FromKey]:
        """Yields the settings, peers and prefixes that a stage's snapshot contains."""
        peers = self.registry.peers
        everything = ((key, each) for key, peer in peers.items() for each in peer.allowed_ips)
        match stage:
            case "tun":
                yield TunSettings(self.moves.count)
                yield from self.routes_set(everything)
            case "host":
                yield self.host_settings(self.registry.interface, peers)
                yield self.socket_settings(self.registry.interface)
                yield self.host_endpoints()
                if self.managed:
                    yield from self.routes_set(everything)
            case "device":
                yield self.worker_settings()
                yield from self.peers_set(peers, number)
                yield from prefixes(PrefixesSet, everything)
            case "conn":
                yield self.conn_settings()

    def changes(self, stage: str, number: int, delta: Delta) -> Iterator[FromKey]:
        """Yields the messages of a change for one stage, except for sockets and keys."""
        removed = [(key, each) for key, peer in delta.peers.items() for each in peer.prefixes_removed]
        added = [(key, each) for key, peer in delta.peers.items() for each in peer.prefixes_added]
        match stage:
            case "tun" | "host" if stage == "tun" or self.managed:
                # `routes_set` below moves a prefix to its new peer without a gap.
                moved = {each for _, each in added}
                orphans = [each for _, each in removed if each not in moved]
                orphans += [each for _, each in delta.prefixes_gone if each not in moved]
                for batch in batches(orphans, PREFIX_BATCH):
                    yield RoutesGone(tuple(map(prefix.pack, batch)))
                yield from self.routes_set(added)
            case "device":
                # PeersGone removes all prefixes of a peer at once: many would keep packets waiting.
                held = Counter(key for key, _ in delta.prefixes_gone)
                large = ((key, each) for key, each in delta.prefixes_gone if held[key] > PREFIX_BATCH)
                yield from prefixes(PrefixesGone, large)
                for gone in batches(delta.gone, PEER_BATCH):
                    yield PeersGone(gone)
                yield from self.peers_set(
                    [key for key, peer in delta.peers.items() if peer.added or peer.keepalive or peer.limits], number
                )
                yield from prefixes(PrefixesGone, removed)
                yield from prefixes(PrefixesSet, added)

    def peers_set(self, keys: Iterable[bytes], worker: int) -> Iterator[FromKey]:
        """Yields the settings of peers for one worker."""
        for batch in batches(keys, PEER_BATCH):
            yield PeersSet(tuple(self._worker_peer(key, worker, home=worker in self.moves.homes(key)) for key in batch))

    def move_in(self, keys: Iterable[bytes], worker: int) -> Iterator[MoveIn]:
        """Yields the settings of peers for the worker that they move to."""
        for batch in batches(keys, PEER_BATCH):
            yield MoveIn(tuple(self._worker_peer(key, worker, home=True) for key in batch))

    def move_out(self, keys: Iterable[bytes], worker: int) -> Iterator[PeersSet]:
        """Yields the settings of peers for the worker that they have left."""
        for batch in batches(keys, PEER_BATCH):
            yield PeersSet(tuple(self._worker_peer(key, worker, home=False) for key in batch))

    def _worker_peer(self, key: bytes, worker: int, *, home: bool) -> WorkerPeer:
        known, configured = self.handshaker.peers[key], self.registry.peers[key]
        limits = configured.limits
        cap = self.quotas.cap(key, worker) if home and self.quotas is not None else NO_CAP
        held_back = self.withheld is not None and key in self.withheld.keys
        return WorkerPeer(
            *(key, home, configured.persistent_keepalive, known.endpoint or b"", known.endpoint_set_at),
            *(limits.rate_to, limits.rate_from, cap, held_back),
        )

    def routes_of(self, keys: Iterable[bytes]) -> Iterator[RoutesSet]:
        """Yields the routes of all prefixes of these peers."""
        return self.routes_set((key, each) for key in keys for each in self.registry.peers[key].allowed_ips)

    def routes_set(self, owned: Owned) -> Iterator[RoutesSet]:
        """Yields the workers of each prefix. Looks each batch up late, because peers may move between two batches."""
        for batch in batches(owned, PREFIX_BATCH):
            by_workers: dict[tuple[int, tuple[int, ...]], list[bytes]] = {}
            for key, each in batch:
                workers = self.moves.carrier(key), self.moves.others(key)
                by_workers.setdefault(workers, []).append(prefix.pack(each))
            for (worker, also), packed in by_workers.items():
                yield RoutesSet(worker, tuple(packed), also)

    def prefixes_tried(self, prepared: Prepared) -> Iterator[FromKey]:
        """Yields the prefixes of a change for host-service, before the change is in force."""
        removed, added = _moved(prepared.delta)
        yield from _routes((each for each in removed if each not in prepared.owners), added)

    def prefixes_back(self, prepared: Prepared) -> Iterator[FromKey]:
        """Yields the messages that undo `prefixes_tried`."""
        removed, added = _moved(prepared.delta)
        yield from _routes((each for each in added if not self.registry.is_allowed(each)), removed)

    def host_settings(
        self, interface: InterfaceConfig, peers: Mapping[bytes, PeerConfig], request: int = 0
    ) -> HostSettings:
        """Returns host-service's network settings, for the present or a wanted configuration."""
        return HostSettings(
            self.managed,
            tuple(map(str, interface.addresses)),
            interface.mtu or 0,
            str(interface.table),
            interface.fwmark,
            request,
            self._gateway_rules(interface, peers) if self.managed else NO_RULES,
        )

    def _gateway_rules(self, interface: InterfaceConfig, peers: Mapping[bytes, PeerConfig]) -> GatewayRules:
        """Remembers the rules in force: with 10,000 peers, each change would work them out several times."""
        registry = self.registry
        if interface is not registry.interface or peers is not registry.peers:
            return gateway_rules.rules(interface, peers.values())
        if self._rules is None or self._rules[0] != registry.commits:
            self._rules = registry.commits, gateway_rules.rules(interface, peers.values())
        return self._rules[1]

    def host_endpoints(self) -> HostEndpoints:
        """Returns the addresses of the first MAX_ENDPOINTS known endpoints."""
        known = (peer.endpoint for peer in self.handshaker.peers.values() if peer.endpoint)
        found: dict[str, None] = {}
        for packed in known:
            with suppress(ValueError):  # conn-service may send a malformed endpoint with a handshake message
                found[str(unpack_untrusted(packed).host)] = None
            if len(found) == MAX_ENDPOINTS:
                break
        return HostEndpoints(tuple(found))

    def worker_settings(self) -> WorkerSettings:
        """Returns the settings that a worker applies to every peer."""
        return WorkerSettings(self.mtu, self.registry.interface.rekey_after_time)

    def conn_settings(self) -> ConnSettings:
        return ConnSettings(
            self.handshaker.public_key or bytes(c.KEY_LENGTH),
            self.moves.count,
            any(peer.response_timestamp for peer in self.registry.peers.values()),
        )

    def socket_settings(self, interface: InterfaceConfig, request: int = 0) -> SocketSettings:
        """Returns the UDP port and mark, for the present or a wanted configuration."""
        return SocketSettings(interface.listen_port or ANY_PORT, self.mark(interface), request)

    def mark(self, interface: InterfaceConfig) -> int:
        """Returns the mark of the tunnel's own datagrams; 0 for none."""
        return interface.fwmark or self.host_mark


def prefixes(kind: type[PrefixesSet] | type[PrefixesGone], owned: Owned) -> Iterator[FromKey]:
    """Yields prefixes grouped by peer, at most PREFIX_BATCH in a message."""
    for batch in batches(owned, PREFIX_BATCH):
        by_peer: dict[bytes, list[bytes]] = {}
        for key, each in batch:
            by_peer.setdefault(key, []).append(prefix.pack(each))
        yield kind(tuple(Prefixes(key, tuple(packed)) for key, packed in by_peer.items()))


def _moved(delta: Delta) -> tuple[Iterator[Network], Iterator[Network]]:
    """Returns the prefixes that peers lose, and the prefixes that peers get."""
    removed = chain(
        (each for _, each in delta.prefixes_gone),
        (each for peer in delta.peers.values() for each in peer.prefixes_removed),
    )
    return removed, (each for peer in delta.peers.values() for each in peer.prefixes_added)


def _routes(gone: Iterable[Network], more: Iterable[Network]) -> Iterator[FromKey]:
    """Makes the messages for host-service, which ignores the worker's number."""
    for batch in batches(gone, PREFIX_BATCH):
        yield RoutesGone(tuple(map(prefix.pack, batch)))
    for batch in batches(more, PREFIX_BATCH):
        yield RoutesSet(0, tuple(map(prefix.pack, batch)))


def batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Cuts a sequence into tuples of at most `size` items."""
    remaining = iter(items)
    while batch := tuple(islice(remaining, size)):
        yield batch
