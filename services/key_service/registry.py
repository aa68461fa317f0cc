"""Holds the configuration in force: a file's, with all changes through the `wg` socket.

`Prepared` works a change out on copies. `Registry.commit` puts the change in force, and returns a Delta for the stages.
This module sends nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import chain, repeat
from typing import TypeVar

from stagewire import config
from stagewire.config import HostPort, InterfaceConfig, Network, PeerConfig, encode_key, public_key, uapi
from stagewire.config.peer_names import label
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.noise import clamp

PIECE = 2048
"""Prefixes or peers in one piece of work: they bound the time for which a piece delays handshakes."""
_NO_KEY = bytes(c.KEY_LENGTH)
_SOME_KEY = b"\xff" * c.KEY_LENGTH
"""Stands for a key that is forgotten."""
_T = TypeVar("_T")


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


@dataclass(slots=True)
class Concerned:
    """Holds what a change of the `wg` socket concerns, as it is before: settings, and peers, of which None are new.

    `more` is the number of further peers. Peers hold keys: whoever keeps this keeps them alive.
    """

    settings: InterfaceConfig
    peers: dict[bytes, PeerConfig | None] = field(default_factory=dict)
    more: int = 0


def unconfigured() -> InterfaceConfig:
    """Returns the empty configuration of a bare interface."""
    return InterfaceConfig(
        private_key=None, listen_port=0, fwmark=0, addresses=(), dns=(), mtu=None, table="off", pre_up=(), post_up=(),
        pre_down=(), post_down=(), save_config=False, rekey_after_time=c.REKEY_AFTER_TIME, peers=(),
    )  # fmt: skip


class Registry:
    """Holds the peers by public key, and all other settings in `interface`, whose own `peers` stay as they were read."""

    def __init__(self, interface: InterfaceConfig) -> None:
        self.file = self.interface = interface
        """The settings of the file, and the settings in force."""
        self.from_file = {peer.public_key: peer.name for peer in interface.peers}
        """The peers in the file, with their names: `wg` knows no names, so its changes leave them."""
        self.peers: dict[bytes, PeerConfig] = {peer.public_key: peer for peer in interface.peers}
        self.commits = 0
        """Counts the changes. A reader that remembers this number keeps no peer, and so no key, alive."""
        self._owners: dict[Network, bytes] = {
            prefix: peer.public_key for peer in interface.peers for prefix in peer.allowed_ips
        }

    def owner_of(self, address: bytes) -> bytes | None:
        """Returns the peer with the longest prefix of a packed address. Too slow for packets."""
        whole = ip_address(address)
        for length in range(whole.max_prefixlen, -1, -1):
            owner = self._owners.get(ip_network((whole, length), strict=False))
            if owner is not None:
                return owner
        return None

    def label(self, key: bytes) -> str:
        """Names a peer in a line for people."""
        return label(encode_key(key), self.from_file.get(key, ""))

    def is_allowed(self, prefix: Network) -> bool:
        """Tells whether a peer has exactly this prefix."""
        return prefix in self._owners

    def holder_of(self, prefix: Network) -> bytes | None:
        """Returns the peer that has exactly this prefix; for an address, else the peer whose it is."""
        key = self._owners.get(prefix)
        alone = prefix.prefixlen == prefix.max_prefixlen
        return self.owner_of(prefix.network_address.packed) if key is None and alone else key

    def concerned(self, change: uapi.Change) -> "Concerned":
        """Finds the peers that a change names, or takes prefixes from, up to PIECE prefixes."""
        found = Concerned(self.interface)
        size = 0
        others = self.peers if change.replace_peers else ()
        for key, prefixes in chain(
            ((each.public_key, each.allowed_ips) for each in change.peers), zip(others, repeat(()))
        ):
            size += 1 + len(prefixes) + (len(self.peers[key].allowed_ips) if key in self.peers else 0)
            if size > PIECE:
                found.more += key not in found.peers
                continue
            for owner in (key, *(self._owners.get(each.prefix, key) for each in prefixes if each.add)):
                found.peers[owner] = self._named(self.peers[owner]) if owner in self.peers else None
        return found

    def differs_from(self, before: "Concerned") -> list[str]:
        """Tells in lines how the settings and some peers differ from what they were."""
        was = tuple(peer for peer in before.peers.values() if peer is not None)
        now = tuple(self._named(self.peers[key]) for key in before.peers if key in self.peers)
        lines = config.difference(replace(before.settings, peers=was), replace(self.interface, peers=now))
        return [*lines, f"and perhaps {before.more} more peers"] if before.more else lines

    def snapshot(self) -> InterfaceConfig:
        """Returns the whole configuration in force."""
        return replace(self.interface, peers=tuple(map(self._named, self.peers.values())))

    def _named(self, peer: PeerConfig) -> PeerConfig:
        name = self.from_file.get(peer.public_key, "")
        return peer if peer.name == name else replace(peer, name=name)

    def restore(self, text: bytes) -> None:
        """Replays a record of the journal."""
        for operation in uapi.OperationReader().feed_untrusted(text):
            if isinstance(operation, uapi.Change):
                self.commit(self.prepare(operation))

    def prepare(self, change: uapi.Change) -> "Prepared":
        """Works a change out on copies, in a single step."""
        prepared = Prepared(self)
        for _ in prepared.work_out(change):
            pass
        return prepared

    def commit(self, prepared: "Prepared") -> Delta:
        """Puts a prepared change in force. No other commit may lie between the two steps."""
        self.interface, self.peers, self._owners = prepared.settings, prepared.peers, prepared.owners
        self.commits += 1
        if prepared.file is not None:
            self.file = prepared.file
            self.from_file = {peer.public_key: peer.name for peer in prepared.file.peers}
        return prepared.delta

    def lost_by(self, prepared: "Prepared") -> set[bytes]:
        """Returns the private and pre-shared keys that a prepared change takes out of force."""
        now, delta = self.peers, prepared.delta
        lost = {now[key].preshared_key for key in delta.gone}
        lost |= {now[key].preshared_key for key in delta.peers if key in now and delta.peers[key].preshared_key}
        if delta.private_key:
            lost.add(_clamped(self.interface.private_key))
        return _without(lost, _secrets(prepared.settings, prepared.peers.values()))

    def lost(self) -> set[bytes]:
        """Returns the private and pre-shared keys of the file that are not in force."""
        return _without({*_secrets(self.file, self.file.peers)}, _secrets(self.interface, self.peers.values()))

    def forget(self, secrets: set[bytes]) -> None:
        """Puts others in the place of a file's keys that are not in force. That the file had some still counts."""
        own = self.file.private_key
        peers = tuple(
            replace(peer, preshared_key=_SOME_KEY) if peer.preshared_key in secrets else peer
            for peer in self.file.peers
        )
        self.file = replace(self.file, private_key=None if _clamped(own) in secrets else own, peers=peers)
        self.interface = replace(self.interface, peers=peers)

    def with_file(self, file: InterfaceConfig) -> InterfaceConfig:
        """Returns the configuration that an edited file puts in force.

        The file sets peers and prefixes. A key, port, mark, endpoint or keepalive stays if neither this file nor the
        file before sets it: a hook may have set it with `wg`.
        """
        return replace(self.settings_with(file), peers=tuple(self.peers_with(file)))

    def settings_with(self, file: InterfaceConfig) -> InterfaceConfig:
        """Returns the settings of `with_file` that belong to no peer."""
        return replace(
            file,
            private_key=file.private_key or self.interface.private_key,
            listen_port=_said(file.listen_port, self.file.listen_port, self.interface.listen_port, None),
            fwmark=_said(file.fwmark, self.file.fwmark, self.interface.fwmark, 0),
        )

    def peers_with(self, file: InterfaceConfig) -> Iterator[PeerConfig]:
        """Returns the peers of `with_file`."""
        old = {peer.public_key: peer for peer in self.file.peers}
        return (_upon(peer, old.get(peer.public_key), self.peers.get(peer.public_key)) for peer in file.peers)


def _clamped(private_key: bytes | None) -> bytes:
    """Returns a private key as the curve takes it: a file may have other bits. _NO_KEY stands for none."""
    return clamp(private_key) if private_key else _NO_KEY


def _secrets(interface: InterfaceConfig, peers: Iterable[PeerConfig]) -> Iterator[bytes]:
    yield _clamped(interface.private_key)
    yield from (peer.preshared_key for peer in peers)


def _without(lost: set[bytes], in_force: Iterable[bytes]) -> set[bytes]:
    """Returns what is lost and not in force, as it is and clamped: a file's private key need not be clamped, ours is."""
    lost -= {_NO_KEY, _SOME_KEY}
    kept = {clamp(key) for key in in_force} if lost else set()
    return {form for key in lost for form in (key, clamp(key)) if clamp(key) not in kept}


def _said(new: _T, old: _T, now: _T, nothing: _T) -> _T:
    """Returns the new file's value, or the present value if neither file sets any."""
    return now if new == old == nothing else new


def _upon(new: PeerConfig, old: PeerConfig | None, now: PeerConfig | None) -> PeerConfig:
    if now is None:
        return new
    keepalive = _said(new.persistent_keepalive, old.persistent_keepalive if old else 0, now.persistent_keepalive, 0)
    psk = _said(new.preshared_key, old.preshared_key if old else _NO_KEY, now.preshared_key, _NO_KEY)
    return replace(new, preshared_key=psk, persistent_keepalive=keepalive, endpoint=new.endpoint or now.endpoint)


class Prepared:
    """Works a change out, on copies of a registry's state."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.settings = registry.interface
        self.peers = dict(registry.peers)
        self.owners = dict(registry._owners)  # noqa: SLF001 - Prepared is a part of Registry
        self._before = registry.peers
        self._own: bytes | None = None
        """Our public key, computed once for a change."""
        self._prefixes: dict[bytes, dict[Network, None]] = {}
        self.delta = Delta()
        self._mentioned: dict[bytes, Endpoint | None] = {}
        self._told_to_remove: set[bytes] = set()
        self.file: InterfaceConfig | None = None
        """The new `Registry.file`; None if it stays."""

    def work_out_file(self, file: InterfaceConfig) -> Iterator[None]:
        """Applies an edited file to the copies, in pieces."""
        before, delta, self.file = self.settings, self.delta, file
        self.settings = settings = self._registry.settings_with(file)
        delta.private_key = _clamped(settings.private_key) != _clamped(before.private_key)
        delta.listen_port = settings.listen_port != before.listen_port
        delta.fwmark = settings.fwmark != before.fwmark
        own = public_key(settings.private_key) if settings.private_key else None
        self.peers, self.owners = {}, {}
        done = 0
        for peer in self._registry.peers_with(file):
            key = peer.public_key
            if key == own:
                continue
            self.peers[key] = peer
            self.owners.update(dict.fromkeys(peer.allowed_ips, key))
            known = self._before.get(key)
            if known != peer:
                self._prefixes[key] = dict.fromkeys(peer.allowed_ips)
                self._mentioned[key] = _address(peer) if known is None or known.endpoint != peer.endpoint else None
            done += 1 + len(peer.allowed_ips)
            if done >= PIECE:
                done = 0
                yield
        yield from self.finish()

    def work_out_peers(self, file: InterfaceConfig, keys: Iterable[bytes]) -> Iterator[None]:
        """Applies an edited file's sections of some peers to the copies, peer after peer. All other peers stay."""
        self.file = file
        self.settings = replace(self.settings, peers=file.peers)
        self._own = public_key(self.settings.private_key) if self.settings.private_key else None
        wanted = {peer.public_key: peer for peer in self._registry.peers_with(file)}
        for key in keys:
            peer, known = wanted.get(key), self.peers.get(key)
            if peer is None or key == self._own:
                self._remove(key)
                continue
            self._mentioned[key] = _address(peer) if known is None or known.endpoint != peer.endpoint else None
            self.peers[key] = replace(peer, allowed_ips=known.allowed_ips if known else ())
            entries = tuple(uapi.PrefixChange(prefix, True) for prefix in peer.allowed_ips)
            self._allow(key, uapi.PeerChange(key, 0, replace_allowed_ips=True, allowed_ips=entries))
            yield
        yield from self.finish()

    def work_out(self, change: uapi.Change) -> Iterator[None]:
        """Applies a change to the copies, in pieces. The registry must not change in between."""
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
            delta.private_key = change.private_key != _clamped(settings.private_key)
            if delta.private_key:
                settings = replace(settings, private_key=change.private_key if change.private_key != _NO_KEY else None)
        if change.listen_port is not None:
            # As in other implementations, an equal port is opened again.
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
            return  # our own key is no peer
        if change.remove:
            self._remove(key)
            self._told_to_remove.add(key)
            return
        known = self.peers.get(key)
        if known is None:
            if change.update_only:
                return
            # After `replace_peers`, a peer keeps the settings that the `wg` socket does not know.
            before = self._before.get(key, PeerConfig(key, _NO_KEY, (), None, 0, False, 0))
            known = replace(
                before, preshared_key=_NO_KEY, allowed_ips=(), endpoint=None, persistent_keepalive=0, line=0
            )
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
        """Fills `delta`, by comparing the copies with the registry."""
        for key, prefixes in self._prefixes.items():
            self.peers[key] = replace(self.peers[key], allowed_ips=tuple(prefixes))
        yield
        self.delta.gone = [key for key in self._before if key not in self.peers]
        self.delta.renewed = [key for key in self._told_to_remove if key in self.peers and key in self._before]
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


def _address(peer: PeerConfig) -> Endpoint | None:
    """Returns a peer's configured endpoint; None if it is a host name."""
    if peer.endpoint is None:
        return None
    host, _, scope = peer.endpoint.host.partition("%")
    try:
        return Endpoint(ip_address(host).packed, peer.endpoint.port, int(scope or 0))
    except ValueError:
        return None


def _parts(peer: uapi.PeerChange) -> Iterator[uapi.PeerChange]:
    """Cuts a peer's section into equivalent sections of at most PIECE prefixes."""
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
    delta.stamped = (before.response_timestamp if before else False) != now.response_timestamp
    delta.renamed = before is not None and before.endpoint != now.endpoint and _address(now) is None
    delta.keepalive = (before.persistent_keepalive if before else 0) != now.persistent_keepalive
    delta.limits = before is not None and before.limits != now.limits


def _pieces(prefixes: tuple[Network, ...]) -> Iterator[tuple[Network, ...]]:
    for start in range(0, len(prefixes), PIECE):
        yield prefixes[start : start + PIECE]
