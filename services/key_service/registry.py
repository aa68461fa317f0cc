"""Holds the configuration in force: a file's, with all changes through the `wg` socket.

`Prepared` works a change out on copies. `Registry.commit` puts the change in force, and returns a Delta for the stages.
This module sends nothing.
"""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import chain, repeat

from key_service import edited
from key_service.delta import PIECE, Delta
from key_service.lost_keys import SOME_KEY, clamped, secrets_of, without
from key_service.prepared import Prepared
from stagewire import config
from stagewire.config import InterfaceConfig, Network, PeerConfig, encode_key, uapi
from stagewire.config.peer_names import label
from stagewire.proto import constants as c


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

    def concerned(self, change: uapi.Change) -> Concerned:
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

    def differs_from(self, before: Concerned) -> list[str]:
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
        for operation in uapi.OperationReader(bounded=False).feed_untrusted(text):
            if isinstance(operation, uapi.Change):
                self.commit(self.prepare(operation))

    def begin(self) -> Prepared:
        """Begins to work a change out on copies."""
        return Prepared(self.file, self.interface, self.peers, self._owners)

    def prepare(self, change: uapi.Change) -> Prepared:
        """Works a change out on copies, in a single step."""
        prepared = self.begin()
        for _ in prepared.work_out(change):
            pass
        return prepared

    def commit(self, prepared: Prepared) -> Delta:
        """Puts a prepared change in force. No other commit may lie between the two steps."""
        self.interface, self.peers, self._owners = prepared.settings, prepared.peers, prepared.owners
        self.commits += 1
        if prepared.file is not None:
            self.file = prepared.file
            self.from_file = {peer.public_key: peer.name for peer in prepared.file.peers}
        return prepared.delta

    def lost_by(self, prepared: Prepared) -> set[bytes]:
        """Returns the private and pre-shared keys that a prepared change takes out of force."""
        now, delta = self.peers, prepared.delta
        lost = {now[key].preshared_key for key in delta.gone}
        lost |= {now[key].preshared_key for key in delta.peers if key in now and delta.peers[key].preshared_key}
        if delta.private_key:
            lost.add(clamped(self.interface.private_key))
        return without(lost, secrets_of(prepared.settings, prepared.peers.values()))

    def lost(self) -> set[bytes]:
        """Returns the private and pre-shared keys of the file that are not in force."""
        return without({*secrets_of(self.file, self.file.peers)}, secrets_of(self.interface, self.peers.values()))

    def forget(self, secrets: set[bytes]) -> None:
        """Puts others in the place of a file's keys that are not in force. That the file had some still counts."""
        own = self.file.private_key
        peers = tuple(
            replace(peer, preshared_key=SOME_KEY) if peer.preshared_key in secrets else peer for peer in self.file.peers
        )
        self.file = replace(self.file, private_key=None if clamped(own) in secrets else own, peers=peers)
        self.interface = replace(self.interface, peers=peers)

    def with_file(self, file: InterfaceConfig) -> InterfaceConfig:
        """Returns the configuration that an edited file puts in force."""
        settings = edited.settings(file, self.file, self.interface)
        return replace(settings, peers=tuple(edited.peers(file, self.file, self.peers)))
