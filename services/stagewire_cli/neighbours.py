"""Finds the ports, networks and keys that a gateway must leave to others: to other files, and to this host's routes."""

import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path
from typing import Final

from stagewire.config import Network

FOLDERS: Final = (Path("/etc/stagewire"), Path("/etc/wireguard"))
_MAX_SIZE: Final = 1 << 20
_MAX_FILES: Final = 256
_LINE: Final = re.compile(r"\s*(ListenPort|Address|PrivateKey)\s*=([^#]*)", re.IGNORECASE)
_NOT_ROUTED: Final = (IPv6Network("fe80::/10"), IPv6Network("ff00::/8"))


@dataclass(frozen=True, slots=True)
class Taken:
    """Says whose a network is. `by` continues a sentence; a link or a file has the whole of it."""

    network: Network
    by: str
    whole: bool

    def forbids(self, other: Network) -> bool:
        """Tells whether a tunnel's network would take something away. A narrower one within a wide route does not."""
        if self.network.version != other.version or not self.network.overlaps(other):
            return False
        return self.whole or self.network.prefixlen >= other.prefixlen


def files(path: Path) -> list[Path]:
    """Returns the other configuration files, beside a new one and where they usually are."""
    found = dict[Path, None]()
    for folder in dict.fromkeys((path.parent, *FOLDERS)):
        with suppress(OSError):
            found |= dict.fromkeys(each for each in sorted(folder.glob("*.conf"))[:_MAX_FILES] if each != path)
    return [*found]


def ports(path: Path) -> dict[int, Path]:
    """Returns the UDP ports that other files name."""
    found = dict[int, Path]()
    for file in files(path):
        for value in _values(file, "listenport"):
            if value.isdecimal() and 0 < int(value) < 1 << 16:
                found.setdefault(int(value), file)
    return found


def with_key(path: Path, private_key: str) -> Path | None:
    """Returns another file with this private key."""
    return next((file for file in files(path) if private_key in _values(file, "privatekey")), None)


def networks(path: Path) -> Iterator[Taken]:
    """Yields the networks of other files, and those to which this host has routes, but for the tunnel's own."""
    for file in files(path):
        for value in _values(file, "address"):
            for text in re.split(r"[\s,]+", value):
                with suppress(ValueError):
                    yield Taken(ip_interface(text).network, f"of {file}", whole=True)
    for network, interface, is_link in (*_routes4(), *_routes6()):
        if interface != path.stem:
            by = f"of {interface} here" if is_link else f"of a route of this host by {interface}"
            yield Taken(network, by, whole=is_link)


def forbidding(taken: Iterable[Taken], wanted: Network) -> Taken | None:
    """Returns the first that forbids a tunnel's network."""
    return next((each for each in taken if each.forbids(wanted)), None)


def _values(path: Path, key: str) -> list[str]:
    """Returns the values of a key in [Interface], also of a file with mistakes."""
    try:
        with path.open(errors="replace") as file:
            text = file.read(_MAX_SIZE)
    except OSError:
        return []
    head = re.split(r"^\s*\[peer\]", text, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)[0]
    lines = (found for found in map(_LINE.match, head.splitlines()) if found is not None)
    return [found[2].strip() for found in lines if found[1].lower() == key]


def _routes4() -> Iterator[tuple[Network, str, bool]]:
    """Yields where this host's routes lead, by which interface, and whether the network is that of a link."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/net/route").read_text(errors="replace").splitlines()[1:]:
            words = line.split()
            address, gateway, mask = (socket.ntohl(int(words[place], 16)) for place in (1, 2, 7))
            if mask:
                yield IPv4Network((address, mask.bit_count())), words[0], not gateway


def _routes6() -> Iterator[tuple[Network, str, bool]]:
    with suppress(OSError, ValueError):
        for line in Path("/proc/net/ipv6_route").read_text(errors="replace").splitlines():
            words = line.split()
            network = IPv6Network((int(words[0], 16), int(words[1], 16)))
            is_routed = network.prefixlen and not any(network.overlaps(each) for each in _NOT_ROUTED)
            if is_routed and words[-1] != "lo":
                yield network, words[-1], not int(words[4], 16)
