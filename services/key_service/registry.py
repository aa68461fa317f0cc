"""The configuration in force: read from a file, changed through the `wg` socket, one and the same state.

A change is worked out whole, on copies, before anything of it holds; what it comes to is a Delta, which names what the
stages have to be told. Nothing here speaks to anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from stagewire.config import HostPort, InterfaceConfig, Network, PeerConfig, public_key
from stagewire.proto import constants as c
from stagewire.proto import uapi
from stagewire.proto.endpoint import Endpoint

PIECE = 2048
"""Prefixes or peers that are seen to in one go: some 5 ms."""
_NO_KEY = bytes(c.KEY_LENGTH)


@dataclass(slots=True)
class PeerDelta:
    """What changed of one peer that stays. Lists are empty and flags false where nothing did."""

    added: bool = False
    prefixes_added: list[Network] = field(default_factory=list)
    prefixes_removed: list[Network] = field(default_factory=list)
    preshared_key: bool = False
    endpoint: Endpoint | None = None
    keepalive: bool = False
    mentioned: bool = False
    """A set named it: what is staged for it is worth another try at once."""


@dataclass(slots=True)
class Delta:
    """What a change comes to."""

    private_key: bool = False
    listen_port: bool = False
    fwmark: bool = False
    gone: list[bytes] = field(default_factory=list)
    prefixes_gone: list[tuple[bytes, Network]] = field(default_factory=list)
    """Of the peers that are gone, each with its peer."""
    peers: dict[bytes, PeerDelta] = field(default_factory=dict)


def unconfigured() -> InterfaceConfig:
    """What a daemon has that was started without a file: nothing, until it is told through the `wg` socket."""
    return InterfaceConfig(
        private_key=None, listen_port=0, fwmark=0, addresses=(), dns=(), mtu=None, table="off", pre_up=(), post_up=(),
        pre_down=(), post_down=(), save_config=False, rekey_after_time=c.REKEY_AFTER_TIME, peers=(),
    )  # fmt: skip


class Registry:
    """`interface` holds what isn't a peer's (its own `peers` stay as they were read); `peers` are by public key."""

    def __init__(self, interface: InterfaceConfig) -> None:
        self.interface = interface
        self.from_file = frozenset(peer.public_key for peer in interface.peers)
        self.peers: dict[bytes, PeerConfig] = {peer.public_key: peer for peer in interface.peers}
        self._owners: dict[Network, bytes] = {
            prefix: peer.public_key for peer in interface.peers for prefix in peer.allowed_ips
        }

    def snapshot(self) -> InterfaceConfig:
        """The whole as one configuration, as a file would say it."""
        return replace(self.interface, peers=tuple(self.peers.values()))

    def restore(self, text: bytes) -> None:
        """Takes up an operation of the `wg` socket that was remembered in an earlier life, if it is whole."""
        for operation in uapi.OperationReader().feed_untrusted(text):
            if isinstance(operation, uapi.Change):
                self.commit(self.prepare(operation))

    def prepare(self, change: uapi.Change) -> "Prepared":
        """Works a change out; nothing of it holds until `commit`."""
        prepared = Prepared(self)
        for _ in prepared.work_out(change):
            pass
        return prepared

    def commit(self, prepared: "Prepared") -> Delta:
        """Makes a change hold, whole. None other may have been committed since it was prepared."""
        self.interface, self.peers, self._owners = prepared.settings, prepared.peers, prepared.owners
        return prepared.delta


class Prepared:
    """A change that is worked out, on copies."""

    def __init__(self, registry: Registry) -> None:
        self.settings = registry.interface
        self.peers = dict(registry.peers)
        self.owners = dict(registry._owners)  # noqa: SLF001 - the other half of Registry
        self._before = registry.peers
        self._own: bytes | None = None
        """Our public key; found once, as it takes 45 us."""
        self._prefixes: dict[bytes, dict[Network, None]] = {}
        self.delta = Delta()
        self._mentioned: dict[bytes, Endpoint | None] = {}

    def work_out(self, change: uapi.Change) -> Iterator[None]:
        """All of it, in pieces of some PIECE prefixes; what it is worked out upon must not change meanwhile."""
        self.change_interface(change)
        done = 0
        for peer in change.peers:
            for part in _parts(peer):
                self.change_peer(part)
                done += 1 + len(part.allowed_ips)
                if done >= PIECE:
                    done = 0
                    yield
        yield from self.finish()

    def change_interface(self, change: uapi.Change) -> None:
        settings, delta = self.settings, self.delta
        if change.private_key is not None:
            private_key = change.private_key if change.private_key != _NO_KEY else None
            delta.private_key = private_key != settings.private_key
            settings = replace(settings, private_key=private_key)
        if change.listen_port is not None:
            # Bound anew even if it is the same, as others do it: who sets a port wants the port.
            delta.listen_port = True
            settings = replace(settings, listen_port=change.listen_port)
        if change.fwmark is not None:
            delta.fwmark = change.fwmark != settings.fwmark
            settings = replace(settings, fwmark=change.fwmark)
        self.settings = settings
        if change.replace_peers:
            for key in list(self.peers):
                self._remove(key)
        self._own = public_key(settings.private_key) if settings.private_key else None
        if self._own is not None:
            self._remove(self._own)

    def change_peer(self, change: uapi.PeerChange) -> None:
        key = change.public_key
        if key == self._own:
            return  # ourselves: its lines count for nothing
        if change.remove:
            self._remove(key)
            return
        known = self.peers.get(key)
        if known is None:
            if change.update_only:
                return
            # Replacing all peers must not lose what the `wg` socket has no word for.
            before = self._before.get(key)
            known = PeerConfig(key, _NO_KEY, (), None, 0, before.response_timestamp if before else False, 0)
        self._mentioned[key] = change.endpoint or self._mentioned.get(key)
        if change.preshared_key is not None:
            known = replace(known, preshared_key=change.preshared_key)
        if change.endpoint is not None:
            host = str(change.endpoint.host) + (f"%{change.endpoint.scope}" if change.endpoint.scope else "")
            known = replace(known, endpoint=HostPort(host, change.endpoint.port))
        if change.persistent_keepalive is not None:
            known = replace(known, persistent_keepalive=change.persistent_keepalive)
        self.peers[key] = known
        self._allow(key, change)

    def _allow(self, key: bytes, change: uapi.PeerChange) -> None:
        prefixes = self._of(key)
        if change.replace_allowed_ips:
            for prefix in prefixes:
                del self.owners[prefix]
            prefixes.clear()
        for entry in change.allowed_ips:
            owner = self.owners.get(entry.prefix)
            if not entry.add:
                if owner == key:
                    del self.owners[entry.prefix]
                    del prefixes[entry.prefix]
                continue
            if owner is not None and owner != key:
                del self._of(owner)[entry.prefix]
            self.owners[entry.prefix] = key
            prefixes[entry.prefix] = None

    def _of(self, key: bytes) -> dict[Network, None]:
        prefixes = self._prefixes.get(key)
        if prefixes is None:
            prefixes = self._prefixes[key] = dict.fromkeys(self.peers[key].allowed_ips)
        return prefixes

    def _remove(self, key: bytes) -> None:
        known = self.peers.get(key)
        if known is None:
            return
        for prefix in self._of(key):
            del self.owners[prefix]
        del self._prefixes[key]
        del self.peers[key]

    def finish(self) -> Iterator[None]:
        """Compares what is with what was."""
        for key, prefixes in self._prefixes.items():
            self.peers[key] = replace(self.peers[key], allowed_ips=tuple(prefixes))
        yield
        self.delta.gone = [key for key in self._before if key not in self.peers]
        self.delta.prefixes_gone = [
            (key, prefix) for key in self.delta.gone for prefix in self._before[key].allowed_ips
        ]
        done = 0
        for key in self._mentioned.keys() | self._prefixes.keys():
            now = self.peers.get(key)
            if now is not None:
                delta = self.delta.peers[key] = PeerDelta()
                yield from _compare(delta, self._before.get(key), now)
                delta.mentioned = key in self._mentioned
                delta.endpoint = self._mentioned.get(key)
                done += 1
                if done % PIECE == 0:
                    yield


def _parts(peer: uapi.PeerChange) -> Iterator[uapi.PeerChange]:
    """A section as several, with a bounded number of prefixes each, which come to the same."""
    yield replace(peer, allowed_ips=peer.allowed_ips[:PIECE]) if len(peer.allowed_ips) > PIECE else peer
    for start in range(PIECE, len(peer.allowed_ips), PIECE):
        part = peer.allowed_ips[start : start + PIECE]
        yield uapi.PeerChange(peer.public_key, peer.line, update_only=True, allowed_ips=part)


def _compare(delta: PeerDelta, before: PeerConfig | None, now: PeerConfig) -> Iterator[None]:
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
    delta.preshared_key = (before.preshared_key if before else _NO_KEY) != now.preshared_key
    delta.keepalive = (before.persistent_keepalive if before else 0) != now.persistent_keepalive


def _pieces(prefixes: tuple[Network, ...]) -> Iterator[tuple[Network, ...]]:
    for start in range(0, len(prefixes), PIECE):
        yield prefixes[start : start + PIECE]
