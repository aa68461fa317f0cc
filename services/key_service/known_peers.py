"""Keeps the Handshaker's peers equal to the registry's, and knows which of their endpoints are host names."""

from typing import Final

from key_service.announce import Announcer
from key_service.delta import Delta, address_of
from key_service.timestamps import TimestampStore
from stagewire.config import HostPort, PeerConfig, public_key
from stagewire.loop import boot_time
from stagewire.proto import constants as c
from stagewire.proto.endpoint import same_place
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker


class KnownPeers:
    def __init__(self, announcer: Announcer, timestamps: TimestampStore) -> None:
        self._announcer = announcer
        self._registry = announcer.registry
        self._handshaker: Final[Handshaker] = announcer.handshaker
        self._timestamps = timestamps
        self.names: dict[bytes, HostPort] = {}
        """Endpoints that are host names, by public key."""

    def add(self, peer: PeerConfig) -> None:
        home = self._announcer.moves.home(peer.public_key)
        known = self._handshaker.add_peer(peer.public_key, peer.preshared_key, home, stamped=peer.response_timestamp)
        known.latest_initiation = self._timestamps.latest(peer.public_key, "initiation")
        known.latest_response = self._timestamps.latest(peer.public_key, "response")
        if peer.endpoint is not None:
            address = address_of(peer)
            if address is None:
                self.names[peer.public_key] = peer.endpoint
            else:
                known.endpoint = address.pack()

    def apply(self, delta: Delta) -> None:
        """Makes a change, which the registry has committed, in the Handshaker as well."""
        for key in delta.gone:
            self._handshaker.remove_peer(key)
            self._handshaker.failures.forget(key)
            self._announcer.moves.forget(key)
            if self._announcer.quotas is not None:
                self._announcer.quotas.peer_gone(key)
            self.names.pop(key, None)
        self._forget_stamps(delta)
        if delta.private_key:
            private_key = self._registry.interface.private_key
            identity = Identity.from_private_bytes(private_key) if private_key else None
            own = self._timestamps.own(identity.public_key) if identity else bytes(c.TIMESTAMP_LENGTH)
            self._handshaker.set_identity(identity, own)
        for key, changed in delta.peers.items():
            peer = self._registry.peers[key]
            if changed.added:
                self.add(peer)
            self._handshaker.peers[key].preshared_key = peer.preshared_key
            if changed.stamped:
                self._handshaker.peers[key].stamped = peer.response_timestamp
            if changed.renamed and peer.endpoint is not None:
                self.names[key] = peer.endpoint
            if changed.endpoint is not None:
                self.names.pop(key, None)
                self._handshaker.peers[key].candidates = ()
                known, packed = self._handshaker.peers[key], changed.endpoint.pack()
                if known.endpoint is not None and same_place(known.endpoint, packed):
                    changed.endpoint = None  # `wg syncconf` repeats endpoints: the address of ours must stay
                else:
                    known.endpoint, known.endpoint_set_at = packed, boot_time()

    def _forget_stamps(self, delta: Delta) -> None:
        """Forgets the stamps of removed peers, as the kernel does: this helps a peer whose clock was once ahead."""
        own = self._registry.interface.private_key
        spared = public_key(own) if own and delta.gone else None  # our own stamps stay if a peer has our key
        for key in delta.gone:
            if key != spared:
                self._timestamps.forget(key)
        for key in delta.renewed:
            self._timestamps.forget(key)
            peer = self._handshaker.peers[key]
            peer.latest_initiation = peer.latest_response = bytes(c.TIMESTAMP_LENGTH)
