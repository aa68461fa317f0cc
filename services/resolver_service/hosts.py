"""Reads addresses from the text of hosts(5)."""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

HOSTS: Final = Path("/etc/hosts")


def addresses(text: str, name: str) -> list[str]:
    """Returns a name's addresses as written, in the file's order. Skips lines without an address."""
    wanted = name.rstrip(".").lower()
    return [address for address, names in _lines(text) if wanted in names]


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            ip_address(address.partition("%")[0])
        except ValueError:
            continue
        yield address, [each.rstrip(".").lower() for each in names]
