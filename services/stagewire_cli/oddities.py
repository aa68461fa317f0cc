"""Says what may surprise the operator of a configuration that changes: prefixes of peers, and forwarded ports."""

from collections.abc import Iterator

from stagewire.config import InterfaceConfig, encode_key, odd_networks
from stagewire_cli import taken_ports


def found(before: InterfaceConfig, after: InterfaceConfig) -> Iterator[str]:
    """Yields a line for each thing that was not there before."""
    had = {(each.public_key, prefix) for each in before.peers for prefix in each.allowed_ips}
    for peer in after.peers:
        for prefix in peer.allowed_ips:
            for oddity in odd_networks.oddities(prefix, after) if (peer.public_key, prefix) not in had else ():
                yield f"{prefix} of peer {peer.name or encode_key(peer.public_key)} {oddity}"
    known = taken_ports.forwards(before)
    yield from taken_ports.warnings(each for each in taken_ports.forwards(after) if each not in known)
