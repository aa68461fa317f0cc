"""Knows the networks of the interface's addresses.

The kernel routes each of them by itself, and makes no new route when another program removes that route.
"""

from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Final

from host_service.route_messages import Found, Network
from host_service.rules import MAIN

_OF_THE_KERNEL: Final = 2
"""RTPROT_KERNEL."""


class Connected:
    """Holds the networks that the kernel routes to one interface. A network without its route counts for nothing."""

    def __init__(self) -> None:
        self._networks: dict[tuple[int, int], dict[int, Network]] = {}
        """By (version, length), then by the network's first `length` bits."""
        self._bare: set[Network] = set()
        """Networks whose route was removed."""
        self._lost: set[Network] = set()
        """Networks whose route went just now, perhaps along with the address."""

    def begin(self, addresses: Iterable[str]) -> None:
        """Takes the networks of these addresses."""
        self._networks = {}
        for address in addresses:
            network = ip_interface(address).network
            by_start = self._networks.setdefault((network.version, network.prefixlen), {})
            by_start[_start(network, network.prefixlen)] = network

    def around(self, prefix: Network) -> Network | None:
        """Returns the network that a prefix lies in."""
        for (version, length), by_start in self._networks.items():
            if version == prefix.version and length <= prefix.prefixlen:
                found = by_start.get(_start(prefix, length))
                if found is not None and found not in self._bare:
                    return found
        return None

    def __contains__(self, prefix: Network) -> bool:
        length = prefix.prefixlen
        return prefix not in self._bare and _start(prefix, length) in self._networks.get((prefix.version, length), {})

    def lost(self, found: Found, index: int) -> bool:
        """Notes a removed route if the kernel had made it to one of the networks. Returns whether it had."""
        ours = found.protocol == _OF_THE_KERNEL and found.link == index and found.table == MAIN and found.prefix in self
        if ours:
            self._lost.add(found.prefix)
        return ours

    def back(self, found: Found, index: int) -> bool:
        """Counts a network again if the kernel has made a route to it. Returns whether it has."""
        theirs = found.protocol == _OF_THE_KERNEL and found.link == index and found.table == MAIN
        if theirs := theirs and found.prefix in self._bare:
            self._bare.discard(found.prefix)
        return theirs

    def give_up(self, prefixes: Iterable[Network]) -> list[Network]:
        """Returns the prefixes in networks that lost their route: they need routes of their own from now on."""
        if not self._lost:
            return []
        within = [each for each in prefixes if self.around(each) in self._lost]
        self._bare |= self._lost
        self._lost.clear()
        return within

    def forget(self) -> None:
        """Forgets lost routes: they went with their addresses."""
        self._lost.clear()


def _start(prefix: Network, length: int) -> int:
    """Returns the first `length` bits of a prefix, as a number."""
    return int(prefix.network_address) >> (prefix.max_prefixlen - length)
