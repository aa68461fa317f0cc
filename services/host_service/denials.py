"""Reads how many packets the access rules have dropped: each must have a reason, though none passes a stage of ours.

The table of a gateway's rules counts them (`gateway_table`): in whole by a rule, and by source and destination in a set.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from host_service.firewall import FAMILIES, NETLINK_NETFILTER
from host_service.gateway_table import DENIED, MAX_DENIED, UNANSWERED, Counts, Pair
from stagewire.control.gateway import MAX_PAIRS, Denied, PacketsDenied
from stagewire.linux import netlink
from stagewire.linux.netlink import Netlink
from stagewire.linux.nft_names import gateway_table_of

INTERVAL: Final = 1.0
"""s between two looks."""
_SHARE: Final = 0.01
"""Share of the time that looks take at most: an attacker can make a set long."""
_GET_RULE, _GET_ELEMENTS = 10 << 8 | 7, 10 << 8 | 13
_INET: Final = bytes([1, 0, 0, 0])
_TABLE, _PART = 1, 2
"""The table's name, and that of a chain or a set in it."""
_RULE_EXPRESSIONS, _ELEMENTS = 4, 3
_KEY, _VALUE, _EXPIRATION, _EXPRESSION = 1, 1, 5, 7
_NAME, _DATA = 1, 2
_BYTES, _PACKETS = 1, 2
MAX_KEPT: Final = 1024
"""Pairs that a new table goes on with."""
_Place = tuple[bytes, bytes]
"""Packed addresses of source and destination."""


def standing(interface: str) -> Counts:
    """Returns what an interface's table has counted: the most denied pairs of each family, MAX_KEPT at most."""
    table = gateway_table_of(interface)
    with suppress(OSError):  # a kernel without nftables
        found = sorted(_read_pairs(table), key=lambda pair: -pair.packets)[:MAX_KEPT]
        return Counts(_read_whole(table), tuple(found))
    return Counts()


class Denials:
    """Knows what has been told of one interface's drops."""

    def __init__(self, interface: str, now: float) -> None:
        """Takes what an earlier process has told, as the counters have it."""
        self._table = gateway_table_of(interface)
        self._whole, self._told, self._not_before = 0, dict[_Place, int](), now
        self._has_more = False
        with suppress(OSError):  # a kernel without nftables
            self._whole = _read_whole(self._table)
            self._told = {pair[:2]: pair.packets for pair in _read_pairs(self._table)}

    def look(self, say: Callable[[PacketsDenied], bool], now: float) -> bool:
        """Tells what was dropped since the last look. Returns whether there was anything. What can't be said waits."""
        if now < self._not_before:
            return False
        begun = time.monotonic()
        try:
            whole = _read_whole(self._table)
            if whole == self._whole and not self._has_more:
                return False
            found = {pair[:2]: pair for pair in _read_pairs(self._table)}
        except OSError:
            return False
        before, self._whole = (self._whole if whole >= self._whole else 0), whole
        self._told = {pair: count for pair, count in self._told.items() if pair in found}
        grown = sorted(((self._growth(pair, count), pair) for pair, count in found.items()), reverse=True)
        fresh = [(more, pair) for more, pair in grown if more]
        pairs = [Denied(*pair, more, found[pair].bytes // found[pair].packets) for more, pair in fresh[:MAX_PAIRS]]
        if len(found) >= MAX_DENIED and (rest := whole - before - sum(more for more, _ in fresh)) > 0:
            pairs.append(Denied(b"", b"", rest, 0))  # the set had no room for their addresses
        self._has_more = len(fresh) > MAX_PAIRS
        self._not_before = now + (time.monotonic() - begun) / _SHARE
        if not pairs or not say(PacketsDenied(tuple(pairs))):
            self._has_more |= bool(pairs)
            return bool(pairs)
        self._told |= {pair: found[pair].packets for _, pair in fresh[:MAX_PAIRS]}
        return True

    def _growth(self, place: _Place, count: Pair) -> int:
        """Returns how many packets are new. A pair that expired, or whose table is new, counts from zero again."""
        told = self._told.get(place, 0)
        return count.packets - told if count.packets >= told else count.packets


def _read_whole(table: str) -> int:
    whole = 0
    for found in (each for chain in (DENIED, UNANSWERED) for each in _dump(table, _GET_RULE, chain)):
        whole += sum(_counted(each)[0] for each in netlink.listed(found.get(_RULE_EXPRESSIONS, b"")))
    return whole


def _read_pairs(table: str) -> Iterator[Pair]:
    for version in FAMILIES:
        for found in _dump(table, _GET_ELEMENTS, f"denied{version}"):
            for element in map(netlink.attributes, netlink.listed(found.get(_ELEMENTS, b""))):
                key = netlink.attributes(element.get(_KEY, b"")).get(_VALUE, b"")
                packets, size = _counted(element.get(_EXPRESSION, b""))
                if packets:
                    half, expires = len(key) // 2, int.from_bytes(element.get(_EXPIRATION, b""))
                    yield Pair(key[:half], key[half:], packets, size, expires)


def _dump(table: str, kind: int, part: str) -> Iterator[dict[int, bytes]]:
    wanted = netlink.name(_TABLE, table) + netlink.name(_PART, part)
    with Netlink(NETLINK_NETFILTER) as kernel:
        for bodies in kernel.dump(kind, _INET + wanted):
            yield from (netlink.attributes(body[len(_INET) :]) for body in bodies)


def _counted(expression: bytes) -> tuple[int, int]:
    """Reads packets and bytes of an expression of nftables; one that is no counter counts nothing."""
    found = netlink.attributes(expression)
    if found.get(_NAME) != b"counter\0":
        return 0, 0
    data = netlink.attributes(found.get(_DATA, b""))
    return int.from_bytes(data.get(_PACKETS, b"")), int.from_bytes(data.get(_BYTES, b""))
