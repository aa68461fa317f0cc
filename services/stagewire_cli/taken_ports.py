"""Finds ports on which programs of this host listen, which a port forward would lead away from them."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from stagewire.config import InterfaceConfig
from stagewire.config.model import Forward

_NET: Final = Path("/proc/self/net")
_LISTENS: Final = {"tcp": "0A", "udp": "07"}
"""The kernel's state of a socket that waits for anybody: TCP_LISTEN, and of UDP one without a peer."""


def forwards(interface: InterfaceConfig) -> list[Forward]:
    """Returns all port forwards of a configuration."""
    return [*interface.access.forwards, *(each for peer in interface.peers for each in peer.access.forwards)]


def warnings(asked: Iterable[Forward]) -> Iterator[str]:
    """Says which of these ports a program of this host listens on."""
    for protocol, port in dict.fromkeys((each.protocol, each.port) for each in asked):
        if port in _listening(protocol):
            yield (
                f"a program of this host listens on {protocol.upper()} port {port}: calls from elsewhere will reach the "
                "peer instead"
            )


def _listening(protocol: str) -> set[int]:
    found = set[int]()
    for name in (protocol, f"{protocol}6"):
        with suppress(OSError, ValueError, IndexError):
            for line in (_NET / name).read_text().splitlines()[1:]:
                words = line.split()
                address, _, port = words[1].partition(":")
                if words[3] == _LISTENS[protocol] and not _address(address).is_loopback:
                    found.add(int(port, 16))
    return found


def _address(text: str) -> IPv4Address | IPv6Address:
    """Reads an address as the kernel writes it: words of 32 bits in the order of this machine."""
    packed = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
