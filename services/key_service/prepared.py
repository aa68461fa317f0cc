"""Works out on copies what a change of the configuration puts in force."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from key_service import edited
from key_service.delta import PIECE, Delta, PeerDelta, address_of, compare
from key_service.lost_keys import clamped
from stagewire.config import HostPort, InterfaceConfig, Network, PeerConfig, public_key, uapi
from stagewire.config.keys import NO_KEY
from stagewire.proto.endpoint import Endpoint


class Prepared:
    """Works a change out, on copies of what is in force."""

    def __init__(
        self,
        file: InterfaceConfig,
        settings: InterfaceConfig,
        peers: Mapping[bytes, PeerConfig],
        owners: Mapping[Network, bytes],
    ) -> None:
        """Takes the file's configuration, and what is in force: settings, peers, and to which peer each prefix belongs."""
        self._file_before = file
        self.settings = settings
        self.peers, self.owners = dict(peers), dict(owners)
        self._before = peers
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
        self.settings = settings = edited.settings(file, self._file_before, before)
        delta.private_key = clamped(settings.private_key) != clamped(before.private_key)
        delta.listen_port = settings.listen_port != before.listen_port
        delta.fwmark = settings.fwmark != before.fwmark
        own = public_key(settings.private_key) if settings.private_key else None
        self.peers, self.owners = {}, {}
        done = 0
        for peer in edited.peers(file, self._file_before, self._before):
            key = peer.public_key
            if key == own:
                continue
            self.peers[key] = peer
            self.owners.update(dict.fromkeys(peer.allowed_ips, key))
            known = self._before.get(key)
            if known != peer:
                self._prefixes[key] = dict.fromkeys(peer.allowed_ips)
                self._mentioned[key] = address_of(peer) if known is None or known.endpoint != peer.endpoint else None
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
        wanted = {peer.public_key: peer for peer in edited.peers(file, self._file_before, self._before)}
        for key in keys:
            peer, known = wanted.get(key), self.peers.get(key)
            if peer is None or key == self._own:
                self._remove(key)
                continue
            self._mentioned[key] = address_of(peer) if known is None or known.endpoint != peer.endpoint else None
            self.peers[key] = replace(peer, allowed_ips=known.allowed_ips if known else ())
            entries = tuple(uapi.PrefixChange(prefix, True) for prefix in peer.allowed_ips)
            self._allow(key, uapi.PeerChange(key, 0, replace_allowed_ips=True, allowed_ips=entries))
            yield
        yield from self.finish()

    def work_out(self, change: uapi.Change) -> Iterator[None]:
        """Applies a change to the copies, in pieces. What is in force must not change in between."""
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
            delta.private_key = change.private_key != clamped(settings.private_key)
            if delta.private_key:
                settings = replace(settings, private_key=change.private_key if change.private_key != NO_KEY else None)
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
            before = self._before.get(key, PeerConfig(key, NO_KEY, (), None, 0, False, 0))
            known = replace(before, preshared_key=NO_KEY, allowed_ips=(), endpoint=None, persistent_keepalive=0, line=0)
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
        """Fills `delta`, by comparing the copies with what is in force."""
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
                yield from compare(delta, self._before.get(key), now)
                delta.mentioned = key in self._mentioned
                delta.endpoint = self._mentioned.get(key)
                done += 1
                if done % PIECE == 0:
                    yield


def _parts(peer: uapi.PeerChange) -> Iterator[uapi.PeerChange]:
    """Cuts a peer's section into equivalent sections of at most PIECE prefixes."""
    yield replace(peer, allowed_ips=peer.allowed_ips[:PIECE]) if len(peer.allowed_ips) > PIECE else peer
    for start in range(PIECE, len(peer.allowed_ips), PIECE):
        part = peer.allowed_ips[start : start + PIECE]
        yield uapi.PeerChange(peer.public_key, peer.line, update_only=True, allowed_ips=part)
