"""Reads the texts after a `=` that wg-quick and `wg` take beyond `values`.

Each function does as its namesake in `values`, and raises ValueError likewise. wg-quick hands its numbers to ip(8),
which reads them as C does; `wg` has decimal numbers. `wg` takes spaces anywhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from stagewire.config import keys, values
from stagewire.config.known import SPACES, squeezed
from stagewire.config.model import HostPort, Interface, Network, Table
from stagewire.limits import MAX_PACKET

MIN_MTU: Final = 68
"""Bytes: Linux's least for a TUN device (RFC 791)."""
MAIN_TABLE: Final = 254

_WORDS = re.compile(rf"[^{SPACES},]+")
_DIGITS = re.compile(r"[0-9]+")
_SERVICE = re.compile(r"[A-Za-z0-9_+./-]{1,32}")
_C_NUMBER = re.compile(r"0[xX]0*([0-9a-fA-F]{1,8})|0+([1-7][0-7]{0,10})?|[1-9][0-9]{0,9}")
_MASKED = re.compile(r"([0-9.]{7,15})/([0-9.]{7,15})")
_TABLES: Final[Mapping[str, int]] = {"unspec": 0, "default": 253, "main": MAIN_TABLE, "local": 255}


@dataclass(frozen=True, slots=True)
class Lookups:
    """Turns names of routing tables, as ip(8) knows them, and of UDP services into numbers; unknown names into None."""

    table: Callable[[str], int | None] = _TABLES.get
    service: Callable[[str], int | None] = lambda _name: None


BUILT_IN: Final = Lookups()
"""Names of every host."""


def split_words(text: str) -> list[str]:
    """Splits a list as wg-quick does. Commas alone make an empty list."""
    return _WORDS.findall(text)


def key(text: str) -> bytes:
    return keys.decode_key(squeezed(text))


def listen_port(text: str, lookups: Lookups) -> int:
    """Reads 0 to 65535, or a service's name."""
    return values.listen_port(_port(squeezed(text), lookups))


def fwmark(text: str) -> int:
    text = squeezed(text)
    if text[:2].lower() == "0x":
        text = "0x" + (text[2:].lstrip("0") or "0")
    return values.fwmark(_short(text))


def keepalive(text: str) -> int:
    return values.keepalive(_short(squeezed(text)))


def mtu(text: str) -> int:
    number = _c_number(text)
    if number is None or not MIN_MTU <= number <= MAX_PACKET:
        raise ValueError(f"must be a whole number from {MIN_MTU} to {MAX_PACKET}, not {values.shown(text)}")
    return number


def table(text: str, lookups: Lookups) -> Table:
    """Reads `auto`, `off`, or a table's number or name; 0 is the main table, as for the kernel."""
    if text.lower() in ("auto", "off"):
        return values.table(text)
    number = lookups.table(text)
    if number is None:
        number = _c_number(text)
    if number is None or number > values.MAX_U32:
        raise ValueError(f"must be auto, off, or a table's number or name, not {values.shown(text)}")
    return number or MAIN_TABLE


def address(text: str) -> Interface:
    """Reads an address with a prefix length or a netmask."""
    masked = _MASKED.fullmatch(text)
    if masked is None:
        return values.address(text)
    try:
        ip, mask = IPv4Address(masked[1]), int(IPv4Address(masked[2]))
    except ValueError:
        return values.address(text)
    length = mask.bit_count()
    if mask != (0xFFFF_FFFF << 32 - length) & 0xFFFF_FFFF:
        return values.address(text)
    return IPv4Interface((ip, length))


def allowed_ip(text: str) -> tuple[bool, bool, Network]:
    """Reads (added?, signed?, prefix). `-` takes a prefix away; later versions of `wg` know signs."""
    text = squeezed(text)
    signed = text[:1] in ("+", "-") and text != text[:1]
    prefix, slash, length = text[signed:].partition("/")
    return text[:1] != "-", signed, values.network(f"{prefix}{slash}{_short(length)}")


def is_domain(text: str) -> bool:
    """Tells whether a word is a search domain or a routing domain, such as `~corp.example` or `~.`."""
    return text == "~." or values.is_name(text.removeprefix("~"))


def endpoint(text: str, lookups: Lookups) -> HostPort:
    """Reads also `v6 address:port`, any host in brackets, and a service's name for the port."""
    text = squeezed(text)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.rpartition(":")
    if colon != ":" or not port:
        return values.endpoint(text)
    if ":" in host and not text.startswith("[") and not values.is_literal(host):
        raise ValueError(f"must be host:port, not {values.shown(text)}")
    return values.endpoint(f"[{host}]:{_port(port, lookups)}" if ":" in host else f"{host}:{_port(port, lookups)}")


def _port(text: str, lookups: Lookups) -> str:
    if not _DIGITS.fullmatch(text) and _SERVICE.fullmatch(text) and (number := lookups.service(text)) is not None:
        return str(number)
    return _short(text)


def _short(text: str) -> str:
    """Removes needless zeros before a decimal number."""
    return text.lstrip("0") or "0" if _DIGITS.fullmatch(text) else text


def _c_number(text: str) -> int | None:
    """Reads a number as strtoul(3) does: `0x` begins a hexadecimal one, `0` an octal one."""
    found = _C_NUMBER.fullmatch(text)
    if found is None:
        return None
    if found[1]:
        return int(found[1], 16)
    return int(found[2] or "0", 8) if text.startswith("0") else int(text)


@dataclass(frozen=True, slots=True)
class Readers:
    """Reads each kind of value. `allowed_ip` returns what the function of that name here returns."""

    key: Callable[[str], bytes]
    listen_port: Callable[[str], int]
    fwmark: Callable[[str], int]
    words: Callable[[str], list[str]]
    address: Callable[[str], Interface]
    mtu: Callable[[str], int]
    table: Callable[[str], Table]
    keepalive: Callable[[str], int]
    endpoint: Callable[[str], HostPort]
    allowed_ip: Callable[[str], tuple[bool, bool, Network]]


STRICT: Final = Readers(
    key=keys.decode_key,
    listen_port=values.listen_port,
    fwmark=values.fwmark,
    words=values.split_words,
    address=values.address,
    mtu=values.mtu,
    table=values.table,
    keepalive=values.keepalive,
    endpoint=values.endpoint,
    allowed_ip=lambda text: (True, False, values.network(text)),
)


def readers(lookups: Lookups) -> Readers:
    """Returns this module's functions."""
    return Readers(
        key=key,
        listen_port=lambda text: listen_port(text, lookups),
        fwmark=fwmark,
        words=split_words,
        address=address,
        mtu=mtu,
        table=lambda text: table(text, lookups),
        keepalive=keepalive,
        endpoint=lambda text: endpoint(text, lookups),
        allowed_ip=allowed_ip,
    )
