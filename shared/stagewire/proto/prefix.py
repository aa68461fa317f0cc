"""A prefix as bytes: its length, then its address (5 or 17 bytes). What the pipes carry 130,000 of at a time."""

from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


def pack(prefix: Network) -> bytes:
    """The bytes of a prefix."""
    return bytes([prefix.prefixlen]) + prefix.network_address.packed


def unpack_untrusted(data: bytes) -> Network:
    """The prefix of some bytes; host bits must be zero. Raises ValueError, and nothing else."""
    if len(data) == 5:
        return IPv4Network((data[1:], data[0]))
    if len(data) == 17:
        return IPv6Network((data[1:], data[0]))
    raise ValueError(f"a prefix has 5 or 17 bytes, not {len(data)}")
