"""Knows every peer by its key and by its prefixes, at home here or in other workers.

The table of prefixes holds those of all peers. Otherwise the longest match could not tell that a source belongs to another
peer.
"""

from collections.abc import Iterable

from stagewire.proto.allowed_ips import AllowedIps
from stagewire.proto.prefix import Route, route
from stagewire.proto.tunnel import Tunnel


class Elsewhere:
    """Stands for a peer at home in another worker."""

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key


Owner = Tunnel | Elsewhere


class Owners:
    """Holds a worker's peers. `lookup` finds the owner of an inner address by its longest prefix."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Owner] = {}
        self._prefixes: AllowedIps[Owner] = AllowedIps()
        self.lookup, self.answers = self._prefixes.lookup, self._prefixes.answers

    def get(self, public_key: bytes) -> Owner | None:
        return self._by_key.get(public_key)

    def tunnel(self, public_key: bytes) -> Tunnel | None:
        """Returns the peer's tunnel if it is at home here."""
        owner = self._by_key.get(public_key)
        return owner if isinstance(owner, Tunnel) else None

    def tunnels(self) -> list[Tunnel]:
        """Lists the peers at home here."""
        return [owner for owner in self._by_key.values() if isinstance(owner, Tunnel)]

    def public_keys(self) -> set[bytes]:
        """Returns every known peer, at home or not."""
        return set(self._by_key)

    def key_at(self, address: bytes) -> bytes | None:
        """Returns the public key of the peer that an inner address belongs to."""
        owner = self.lookup(address)
        return None if owner is None else owner.public_key

    def put(self, owner: Owner) -> Owner | None:
        """Adds a peer, or puts it in the place of the former owner of its key and prefixes. Returns the former."""
        former = self._by_key.get(owner.public_key)
        if former is not None:
            self._prefixes.hand_over(former, owner)
            self._prefixes.remove_owner(former)
        self._by_key[owner.public_key] = owner
        return former

    def remove(self, public_key: bytes) -> Owner | None:
        """Removes a peer and its prefixes. Returns it, if it was known."""
        owner = self._by_key.pop(public_key, None)
        if owner is not None:
            self._prefixes.remove_owner(owner)
        return owner

    # --- prefixes ------------------------------------------------------------------------------------------

    def set_prefixes(self, owner: Owner, wanted: set[Route]) -> None:
        """Gives a peer these allowed-IPs and no others."""
        stale = [each for each in map(route, self._prefixes.prefixes(owner)) if each not in wanted]
        self.disallow(owner.public_key, stale)
        self.allow(owner.public_key, wanted)

    def allow(self, public_key: bytes, prefixes: Iterable[Route]) -> None:
        """Adds prefixes to a peer's allowed-IPs; a prefix of another peer moves."""
        owner = self._by_key.get(public_key)
        if owner is not None:
            for each in prefixes:
                self._prefixes.assign(each, owner)

    def disallow(self, public_key: bytes, prefixes: Iterable[Route]) -> None:
        """Takes prefixes from a peer's allowed-IPs, as far as they are the peer's."""
        owner = self._by_key.get(public_key)
        if owner is not None:
            for each in prefixes:
                self._prefixes.withdraw(each, owner)

    def begin_naming(self) -> None:
        """Begins a list of all allowed-IPs, by `allow`."""
        self._prefixes.begin_naming()

    def end_naming(self) -> None:
        """Removes the allowed-IPs that the list did not name."""
        self._prefixes.end_naming()
