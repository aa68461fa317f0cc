"""Finds the peer that an inner address belongs to, both ways (paper, section 2: cryptokey routing).

Each prefix length in use has a dict, keyed by the prefix's bits; a search begins with the longest length. Recent
answers are kept in front. Real tables use a handful of lengths, and traffic a handful of addresses.
"""

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from stagewire.proto import prefix as prefixes
from stagewire.proto.prefix import BITS, Network, Route

T = TypeVar("T")

_MAX_ANSWERS: Final = 4096


class AllowedIps(Generic[T]):
    """Holds prefixes and their owners. An owner is any hashable but None."""

    __slots__ = ("_ordered", "_owned", "_tables", "_unnamed", "answers")

    def __init__(self) -> None:
        self._tables: dict[int, dict[int, dict[int, T]]] = {4: {}, 6: {}}
        # By length of the packed address: (bits to cut, table), longest prefix first.
        self._ordered: dict[int, list[tuple[int, dict[int, T]]]] = {4: [], 16: []}
        self._owned: dict[T, set[Route]] = {}
        self._unnamed: dict[T, set[Route]] = {}
        """The same, of prefixes that no `assign` has named since `begin_naming`."""
        self.answers: dict[bytes, T | None] = {}
        """Recent answers of `lookup`, by address; any change empties it."""

    # --- changes -------------------------------------------------------------------------------------------

    def insert(self, prefix: Network, owner: T) -> None:
        """Gives `prefix` to `owner`, and takes it from its former owner."""
        self.assign(prefixes.route(prefix), owner)

    def assign(self, route: Route, owner: T) -> None:
        """Does what `insert` does, for a Route."""
        version, length, bits = route
        tables = self._tables[version]
        table = tables.get(length)
        if table is None:
            table = tables[length] = {}
            self._order(version)
        former = table.get(bits)
        if former is not None:
            if former == owner and not self._unnamed:
                return
            self._disown(former, route)
        if former != owner:
            table[bits] = owner
            self.answers.clear()
        self._owned.setdefault(owner, set()).add(route)

    def remove(self, prefix: Network, owner: T) -> bool:
        """Takes `prefix` from `owner`. Returns False without a change unless `owner` has exactly this prefix."""
        return self.withdraw(prefixes.route(prefix), owner)

    def withdraw(self, route: Route, owner: T | None = None) -> bool:
        """Does what `remove` does, for a Route. Without `owner`, takes it from whichever owner has it."""
        version, length, bits = route
        former = self._tables[version].get(length, {}).get(bits)
        if former is None or (owner is not None and former != owner):
            return False
        self.answers.clear()
        self._disown(former, route)
        self._forget(route)
        return True

    def remove_owner(self, owner: T) -> None:
        """Takes all prefixes from `owner`, at a cost that doesn't depend on other owners."""
        self.answers.clear()
        for owned in (self._owned, self._unnamed):
            for route in owned.pop(owner, ()):
                self._forget(route)

    def hand_over(self, former: T, owner: T) -> None:
        """Gives all prefixes of `former` to `owner`."""
        for owned in (self._owned, self._unnamed):
            routes = owned.pop(former, None)
            if routes:
                self.answers.clear()
                for version, length, bits in routes:
                    self._tables[version][length][bits] = owner
                owned.setdefault(owner, set()).update(routes)

    def begin_naming(self) -> None:
        """Begins a list of all prefixes: each is named by `insert` or `assign`, which for a standing prefix costs little."""
        for owner, routes in self._unnamed.items():
            self._owned.setdefault(owner, set()).update(routes)
        self._unnamed, self._owned = self._owned, {}

    def end_naming(self) -> None:
        """Removes the prefixes that the list did not name. Mostly there are none."""
        stale, self._unnamed = self._unnamed, {}
        for routes in stale.values():
            self.answers.clear()
            for route in routes:
                self._forget(route)

    # --- questions -----------------------------------------------------------------------------------------

    def count(self, owner: T) -> int:
        """Counts the prefixes of `owner`."""
        return len(self._owned.get(owner, ())) + len(self._unnamed.get(owner, ()))

    def prefixes(self, owner: T) -> list[Network]:
        """Lists the prefixes of `owner`: IPv4 first, then by address, then the shorter prefix first."""
        routes: Iterable[Route] = {*self._owned.get(owner, ()), *self._unnamed.get(owner, ())}
        return [prefixes.network(r) for r in sorted(routes, key=lambda r: (r[0], r[2] << BITS[r[0]] - r[1], r[1]))]

    def lookup(self, address: bytes) -> T | None:
        """Returns the owner of the longest prefix that holds `address` (packed, 4 or 16 bytes), or None.

        hot: bench AllowedIps.lookup
        """
        try:
            return self.answers[address]
        except KeyError:
            return self._search(address)

    def _search(self, address: bytes) -> T | None:
        answers = self.answers
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
        bits = BITS[version]
        tables = self._tables[version]
        lengths = sorted(tables, reverse=True)
        self._ordered[bits // 8] = [(bits - length, tables[length]) for length in lengths]

    def _disown(self, owner: T, route: Route) -> None:
        for owned in (self._unnamed, self._owned):
            routes = owned.get(owner)
            if routes is not None and route in routes:
                routes.remove(route)
                if not routes:
                    del owned[owner]
                return

    def _forget(self, route: Route) -> None:
        version, length, bits = route
        tables = self._tables[version]
        del tables[length][bits]
        if not tables[length]:
            del tables[length]
            self._order(version)
