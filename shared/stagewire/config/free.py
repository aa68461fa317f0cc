"""Finds free addresses of a network."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from stagewire.config.model import Interface, Network

_NO_BROADCAST = 31
"""An IPv4 network of this prefix length or a longer one has no broadcast address (RFC 3021)."""


def free_addresses(ours: Interface, taken: Iterable[Network]) -> Iterator[IPv4Address | IPv6Address]:
    """Yields the addresses of our network that are not ours and in no prefix of `taken`, the lowest first.

    A prefix that contains the whole network takes nothing: a site's or a default route stands beside single addresses.
    """
    network = ours.network
    candidate, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 6:
        candidate += network.num_addresses > 1  # the subnet's routers share that address (RFC 4291)
    elif network.prefixlen < _NO_BROADCAST:
        candidate, last = candidate + 1, last - 1
    used = [(int(ours.ip), int(ours.ip)), (last + 1, last + 1)]
    used += [
        (int(prefix.network_address), int(prefix.broadcast_address))
        for prefix in taken
        if prefix.version == network.version and prefix.prefixlen > network.prefixlen
    ]
    for start, end in sorted(used):
        for free in range(candidate, min(start, last + 1)):
            yield IPv6Address(free) if network.version == 6 else IPv4Address(free)
        candidate = max(candidate, end + 1)
