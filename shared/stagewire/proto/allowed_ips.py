"""Allowed IPs: which peer an inner address belongs to, both ways (paper, section 2: cryptokey routing).

One dict for each prefix length in use, keyed by the prefix's bits, asked from the longest length down; in
front of them the answers given lately. Real tables use a handful of lengths, and traffic a handful of
addresses.
"""

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_MAX_ANSWERS: Final = 4096
_BITS = {4: 32, 6: 128}

_Route = tuple[int, int, int]
"""IP version, prefix length, the prefix's bits as an integer. A third of the size of a network object."""


class AllowedIps(Generic[T]):
    """Prefixes and their owners. An owner is any hashable but None."""

    __slots__ = ("_answers", "_ordered", "_owned", "_tables")

    def __init__(self) -> None:
        self._tables: dict[int, dict[int, dict[int, T]]] = {4: {}, 6: {}}
        # By length of the packed address: (how many bits to cut, table), longest prefix first.
        self._ordered: dict[int, list[tuple[int, dict[int, T]]]] = {4: [], 16: []}
        self._owned: dict[T, set[_Route]] = {}
        self._answers: dict[bytes, T | None] = {}

    def __len__(self) -> int:
        return sum(len(routes) for routes in self._owned.values())

    def insert(self, prefix: IPv4Network | IPv6Network, owner: T) -> None:
        """Gives `prefix` to `owner`, and takes it from whoever had it."""
        route = _route(prefix)
        version, length, bits = route
        self._answers.clear()
        tables = self._tables[version]
        table = tables.get(length)
        if table is None:
            table = tables[length] = {}
            self._order(version)
        former = table.get(bits)
        if former is not None:
            self._disown(former, route)
        table[bits] = owner
        self._owned.setdefault(owner, set()).add(route)

    def remove(self, prefix: IPv4Network | IPv6Network, owner: T) -> bool:
        """Takes `prefix` from `owner`. False, and no change, unless exactly this prefix is theirs."""
        route = _route(prefix)
        if route not in self._owned.get(owner, ()):
            return False
        self._answers.clear()
        self._disown(owner, route)
        self._forget(route)
        return True

    def count(self, owner: T) -> int:
        """How many prefixes `owner` has."""
        return len(self._owned.get(owner, ()))

    def remove_owner(self, owner: T) -> None:
        """Takes all that `owner` has, at a cost that doesn't depend on what others have."""
        self._answers.clear()
        for route in self._owned.pop(owner, ()):
            self._forget(route)

    def hand_over(self, former: T, owner: T) -> None:
        """Gives all that `former` has to `owner`. 0.25 us for each."""
        routes = self._owned.pop(former, None)
        if routes:
            self._answers.clear()
            for version, length, bits in routes:
                self._tables[version][length][bits] = owner
            self._owned.setdefault(owner, set()).update(routes)

    def prefixes(self, owner: T) -> list[IPv4Network | IPv6Network]:
        """What `owner` has: IPv4 first, then by address, then the shorter prefix first."""
        routes = self._owned.get(owner, ())
        return [_prefix(r) for r in sorted(routes, key=lambda r: (r[0], r[2] << _BITS[r[0]] - r[1], r[1]))]

    def items(self) -> Iterator[tuple[IPv4Network | IPv6Network, T]]:
        """Every prefix and its owner, owner by owner. The table must not change meanwhile."""
        for owner in self._owned:
            for prefix in self.prefixes(owner):
                yield prefix, owner

    def lookup(self, address: bytes) -> T | None:
        """The owner of the longest prefix that holds `address` (packed, 4 or 16 bytes); None if nobody's."""
        # Hot, once per packet. Measured: 0.04 us when answered lately, else 0.3 us and 0.05 us per length
        # tried.
        try:
            return self._answers[address]
        except KeyError:
            return self._search(address)

    def _search(self, address: bytes) -> T | None:
        answers = self._answers
        if len(answers) >= _MAX_ANSWERS:
            answers.clear()
        value = int.from_bytes(address)
        owner = None
        for cut, table in self._ordered.get(len(address), ()):
            owner = table.get(value >> cut)
            if owner is not None:
                break
        answers[address] = owner
        return owner

    def _order(self, version: int) -> None:
        bits = _BITS[version]
        tables = self._tables[version]
        lengths = sorted(tables, reverse=True)
        self._ordered[bits // 8] = [(bits - length, tables[length]) for length in lengths]

    def _disown(self, owner: T, route: _Route) -> None:
        routes = self._owned[owner]
        routes.remove(route)
        if not routes:
            del self._owned[owner]

    def _forget(self, route: _Route) -> None:
        version, length, bits = route
        tables = self._tables[version]
        del tables[length][bits]
        if not tables[length]:
            del tables[length]
            self._order(version)


def _route(prefix: IPv4Network | IPv6Network) -> _Route:
    cut = _BITS[prefix.version] - prefix.prefixlen
    return prefix.version, prefix.prefixlen, int(prefix.network_address) >> cut


def _prefix(route: _Route) -> IPv4Network | IPv6Network:
    version, length, bits = route
    if version == 4:
        return IPv4Network((bits << 32 - length, length))
    return IPv6Network((bits << 128 - length, length))
