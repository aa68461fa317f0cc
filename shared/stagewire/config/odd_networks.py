"""Judges networks: those that no tunnel and no peer can have, and those that an operator may not have meant."""

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from stagewire.config.model import InterfaceConfig, Network

_NEVER: Final = (
    (IPv4Network("127.0.0.0/8"), "this host's own loopback"),
    (IPv6Network("::1"), "this host's own loopback"),
    (IPv4Network("0.0.0.0/8"), "no address of a host"),
    (IPv6Network("::"), "no address of a host"),
    (IPv4Network("240.0.0.0/4"), "reserved, and no host takes it"),
)
_ONE_LINK: Final = (
    (IPv4Network("224.0.0.0/4"), "multicast, which groups of hosts have and no peer"),
    (IPv6Network("ff00::/8"), "multicast, which groups of hosts have and no peer"),
    (IPv4Network("169.254.0.0/16"), "link-local, which no route leads to"),
    (IPv6Network("fe80::/10"), "link-local, which no route leads to"),
)
_NO_BROADCAST: Final = 31
"""An IPv4 network of this prefix length or a longer one has no broadcast address (RFC 3021)."""


def of_no_tunnel(network: Network) -> str:
    """Says why no tunnel can have a network, in words that continue it; an empty text if one can."""
    for other, what in (*_NEVER, *_ONE_LINK):
        if network.version == other.version and network.overlaps(other):
            return f"is {what}" if _within(network, other) else f"holds {other}, which is {what}"
    return ""


def of_no_peer(network: Network, interface: InterfaceConfig) -> str:
    """Says why no peer can have a prefix, in words that continue it; an empty text if one can."""
    for other, what in _NEVER:
        if _within(network, other) and network.prefixlen:
            return f"is {what}"
    for own in (each.network for each in interface.addresses):
        if network.num_addresses > 1 or not _within(network, own) or own.num_addresses < 4:
            continue
        if network.network_address == own.network_address:
            return f"is the address of the network {own} itself, not of a host in it"
        if own.version == 4 and own.prefixlen < _NO_BROADCAST and network.network_address == own.broadcast_address:
            return f"is the broadcast address of the network {own}, not of a host in it"
    return ""


def oddities(network: Network, interface: InterfaceConfig) -> Iterator[str]:
    """Yields what may surprise the operator if a peer has a prefix, in sentences that continue it."""
    if not network.prefixlen:
        if interface.table != "off":
            yield "makes this gateway send all its own packets to the peer; --full-tunnel has a client send all here"
        return
    for other, what in _ONE_LINK:
        if network.version == other.version and network.overlaps(other):
            yield f"is {what}" if _within(network, other) else f"holds {other}, which is {what}"
    for own in (each.network for each in interface.addresses):
        if own.num_addresses < 4:
            continue
        if _within(own, network):
            yield f"holds the tunnel's own network {own}: what no other peer has there goes to this peer"
        elif _within(network, own) and network.num_addresses > 1:
            yield f"lies in the tunnel's own network {own}: no other peer gets an address of it"


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
