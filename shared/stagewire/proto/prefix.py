"""Packs a prefix into 5 or 17 bytes: its length, then its address. Pipes carry 130,000 of them at a time.

A stage that only looks addresses up reads such bytes as a Route: making a network object of each would take three times as
long.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import Final

Network = IPv4Network | IPv6Network
Route = tuple[int, int, int]
"""(IP version, prefix length, the prefix's bits as an integer): a third of the size of a network object."""

BITS: Final = {4: 32, 6: 128}
"""Bits of an address, by IP version."""
_VERSIONS: Final = {5: 4, 17: 6}


def pack(prefix: Network) -> bytes:
    return bytes([prefix.prefixlen]) + prefix.network_address.packed


def unpack_untrusted(data: bytes) -> Network:
    """Reads a packed prefix, whose host bits must be zero. Raises ValueError, and nothing else."""
    if len(data) == 5:
        return IPv4Network((data[1:], data[0]))
    if len(data) == 17:
        return IPv6Network((data[1:], data[0]))
    raise ValueError(f"a prefix has 5 or 17 bytes, not {len(data)}")


def route(prefix: Network) -> Route:
    cut = BITS[prefix.version] - prefix.prefixlen
    return prefix.version, prefix.prefixlen, int(prefix.network_address) >> cut


def route_untrusted(data: bytes) -> Route:
    """Reads a packed prefix as `unpack_untrusted` does, into a Route. Raises ValueError, and nothing else."""
    version = _VERSIONS.get(len(data))
    if version is None:
        raise ValueError(f"a prefix has 5 or 17 bytes, not {len(data)}")
    cut, address = BITS[version] - data[0], int.from_bytes(data[1:])
    if cut < 0 or address & (1 << cut) - 1:
        raise ValueError(f"{data.hex()} is no prefix: too long, or with host bits")
    return version, data[0], address >> cut


def network(route: Route) -> Network:
    """Returns a Route as a network."""
    version, length, bits = route
    if version == 4:
        return IPv4Network((bits << 32 - length, length))
    return IPv6Network((bits << 128 - length, length))
