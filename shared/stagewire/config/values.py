"""Reads the texts after a `=`, one function for each kind of value.

Each raises ValueError, with a message that continues the key's name.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Final

from stagewire.config.model import ClientSettings, HostPort, Interface, Network, PeerLimits, Table
from stagewire.limits import MAX_PACKET, MAX_PORT
from stagewire.proto.constants import MIN_REKEY_AFTER_TIME, REKEY_AFTER_TIME

MAX_KEEPALIVE: Final = 0xFFFF
MIN_MTU: Final = 576
MAX_U32: Final = 0xFFFF_FFFF

SHOWN: Final = 60
"""Characters of a text in a message."""
MAYBE_KEY: Final = re.compile(r"[A-Za-z0-9+/=]{20,}")
"""A run that may be a key, pasted into the wrong line."""
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}")
"""Without zeros before it: `ip` and `wg` read such a number as an octal one."""
_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,8}")
_SECONDS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")
# ipaddress alone would also take netmasks, host masks and scopes, which `wg` doesn't.
_CIDR = re.compile(r"[0-9a-fA-F:.]{2,45}(/[0-9]{1,3})?")
_V6_LITERAL = re.compile(r"[0-9a-fA-F:.]{2,45}(%[a-zA-Z0-9_=+.-]{1,15})?")
_V4_LIKE = re.compile(r"[0-9.]+")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")
_DNS_SERVER = re.compile(r"[0-9.]+|.*:.*")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?Z)?")
_AMOUNT = re.compile(r"([1-9][0-9]{0,11})([KMGT]?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
MIN_RATE: Final = 64_000
"""Bits/s. With less, a packet would wait for seconds."""
MAX_RATE: Final = 10**12
MAX_QUOTA: Final = 10**18
_MONTHLY: Final = "monthly"
_SPACES_OR_COMMAS = re.compile(r"[\s,]+", re.ASCII)  # wg-quick knows no other spaces


def shown(text: str) -> str:
    """Quotes a text for a message, cut short; hides a text that may hold a key."""
    if not text:
        return "an empty text"
    if MAYBE_KEY.search(text):
        return "the text given (not shown, it could be a key)"
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def split_words(text: str) -> list[str]:
    """Splits a list as wg-quick reads it: commas and spaces alike separate, in any number. One word at least."""
    words = [word for word in _SPACES_OR_COMMAS.split(text) if word]
    if not words:
        raise ValueError("has no value")
    return words


def whole(text: str, low: int, high: int) -> int:
    """Reads a decimal number from low to high."""
    if not _DECIMAL.fullmatch(text) or not low <= int(text) <= high:
        raise ValueError(f"must be a whole number from {low} to {high}, not {shown(text)}")
    return int(text)


def listen_port(text: str) -> int:
    """Reads 0 to 65535; 0 is any free port, as for `wg`."""
    return whole(text, 0, MAX_PORT)


def mtu(text: str) -> int:
    """Reads bytes. Whether IPv6 fits is known only when all addresses are."""
    return whole(text, MIN_MTU, MAX_PACKET)


def fwmark(text: str) -> int:
    """Reads 32 bits, decimal or hexadecimal; `off` is 0."""
    if text.lower() == "off":
        return 0
    if _HEX.fullmatch(text):
        return int(text, 16)
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_U32:
        raise ValueError(f"must be off, or a number from 0 to 0xffffffff, not {shown(text)}")
    return int(text)


def table(text: str) -> Table:
    """Reads a routing table's number, `auto`, or `off` for no routes."""
    match text.lower():
        case "auto":
            return "auto"
        case "off":
            return "off"
    if not _DECIMAL.fullmatch(text) or not 1 <= int(text) <= MAX_U32:
        raise ValueError(f"must be auto, off, or a table's number from 1 to {MAX_U32}, not {shown(text)}")
    return int(text)


def keepalive(text: str) -> int:
    """Reads seconds; `off` is 0."""
    if text.lower() == "off":
        return 0
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_KEEPALIVE:
        raise ValueError(f"must be off, or seconds from 0 to {MAX_KEEPALIVE}, not {shown(text)}")
    return int(text)


def rekey_after_time(text: str) -> float:
    """Reads seconds, decimals allowed."""
    if not _SECONDS.fullmatch(text) or not MIN_REKEY_AFTER_TIME <= float(text) <= REKEY_AFTER_TIME:
        raise ValueError(f"must be seconds from {MIN_REKEY_AFTER_TIME:g} to {REKEY_AFTER_TIME:g}, not {shown(text)}")
    return float(text)


def choice(text: str, yes: str, no: str) -> bool:
    """Reads one of two words, in any case."""
    if text.lower() not in (yes, no):
        raise ValueError(f"must be {yes} or {no}, not {shown(text)}")
    return text.lower() == yes


def address(text: str) -> Interface:
    """Reads an address of our own with its prefix length; bare, it stands alone (/32 or /128)."""
    try:
        if _CIDR.fullmatch(text):
            return ip_interface(text)
    except ValueError:
        pass
    raise ValueError(f"must be an address with its prefix length, such as 10.0.0.1/24, not {shown(text)}")


def network(text: str) -> Network:
    """Reads a prefix and masks its host bits; a bare address is /32 or /128."""
    try:
        if _CIDR.fullmatch(text):
            return ip_network(text, strict=False)
    except ValueError:
        pass
    raise ValueError(f"must be a prefix such as 10.0.0.0/24 or fd00::/64, not {shown(text)}")


def is_server(word: str) -> bool:
    """Tells whether wg-quick takes a word of DNS for a server's address; else it is a search domain."""
    return _DNS_SERVER.fullmatch(word) is not None


def endpoint(text: str) -> HostPort:
    """Reads `address:port`, `[v6 address]:port` or `name:port`. Checks a name's form, without a look-up."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"must be host:port, not {shown(text)}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host or not is_literal(host):
            raise ValueError(f"must have an IPv6 address in its brackets, not {shown(host)}")
    elif ":" in host:
        raise ValueError(f"must have its IPv6 address in brackets, as in [fd00::1]:51820, not {shown(text)}")
    elif not is_literal(host) and not is_name(host):
        raise ValueError(f"must begin with an address or a host's name, not {shown(host)}")
    if not _DECIMAL.fullmatch(port) or not 1 <= int(port) <= MAX_PORT:
        raise ValueError(f"must end with a port from 1 to {MAX_PORT}, not {shown(port)}")
    return HostPort(_plain(ip_address(host)) if is_literal(host) else host, int(port))


def _plain(address: IPv4Address | IPv6Address) -> str:
    """Shows an address; an IPv4 address written as IPv6 as IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def is_literal(text: str) -> bool:
    """Tells whether a text is an address, of either family."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return ":" not in text or _V6_LITERAL.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Tells whether a text has the form of a DNS name."""
    # Digits and dots alone are a mistyped address, which some resolvers would accept.
    return _NAME.fullmatch(text) is not None and not _V4_LIKE.fullmatch(text)


def expires(text: str) -> int:
    """Reads a day, or a time in UTC, as seconds since 1970. A day means its beginning."""
    try:
        if _TIME.fullmatch(text):
            return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except ValueError:
        pass
    raise ValueError(f"must be a day or a time in UTC, such as 2030-12-31 or 2030-12-31T18:00Z, not {shown(text)}")


def as_time(seconds: int) -> str:
    """Writes seconds since 1970 as `expires` reads them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rate(text: str) -> tuple[int, int]:
    """Reads bits/s to the peer and from the peer: `20M` for both, or `20M/5M`."""
    to, slash, back = text.partition("/")
    try:
        both = _amount(to), _amount(back if slash else to)
    except ValueError:
        both = 0, 0
    if not all(MIN_RATE <= each <= MAX_RATE for each in both):
        what = "bits/s from 64K to 1T, such as 20M, or 20M/5M to the peer and from the peer"
        raise ValueError(f"must be {what}, not {shown(text)}")
    return both


def as_rate(to: int, back: int) -> str:
    """Writes bits/s as `rate` reads them."""
    return as_amount(to) if to == back else f"{as_amount(to)}/{as_amount(back)}"


def quota(text: str) -> int:
    """Reads bytes a month: `50G` or `50G monthly`."""
    words = text.split()
    with suppress(ValueError):
        if len(words) == 1 or (len(words) == 2 and words[1].lower() == _MONTHLY):
            found = _amount(words[0])
            if found <= MAX_QUOTA:
                return found
    raise ValueError(f"must be bytes a month, such as 50G, not {shown(text)}")


def as_quota(amount: int) -> str:
    """Writes bytes a month as `quota` reads them."""
    return f"{as_amount(amount)} {_MONTHLY}"


def _amount(text: str) -> int:
    """Reads a number with a unit of 1,000: K, M, G or T."""
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError("is no amount")
    return int(found[1]) * _UNITS[found[2].upper()]


def as_amount(amount: int) -> str:
    """Writes a number with the largest unit that leaves it whole."""
    unit = next((unit for unit in "TGMK" if amount and amount % _UNITS[unit] == 0), "")
    return f"{amount // _UNITS[unit]}{unit}"


LIMITS: Final[Mapping[str, Callable[[PeerLimits, str], PeerLimits]]] = {
    "Rate": lambda limits, text: replace(limits, **dict(zip(("rate_to", "rate_from"), rate(text), strict=True))),
    "Quota": lambda limits, text: replace(limits, quota=quota(text)),
}
"""Reads each key of a peer's limits."""


def networks(text: str) -> tuple[Network, ...]:
    """Reads a list of prefixes."""
    return tuple(dict.fromkeys(map(network, split_words(text))))


def dns(text: str) -> tuple[str, ...]:
    """Reads a list of servers' addresses and search domains."""
    words = split_words(text)
    for word in words:
        if not is_literal(word) and not is_name(word):
            raise ValueError(f"must be addresses or search domains, not {shown(word)}")
    return tuple(words)


def servers(text: str) -> tuple[str, ...]:
    """Reads what a client's DNS is set to: a server's address at least, and search domains."""
    words = dns(text)
    if words and not any(map(is_literal, words)):
        raise ValueError(f"must name the address of a DNS server beside search domains, not {shown(text)}")
    return words


CLIENT: Final[Mapping[str, Callable[[ClientSettings, str], ClientSettings]]] = {
    "ClientAllowedIPs": lambda client, text: replace(client, allowed_ips=networks(text)),
    "ClientDNS": lambda client, text: replace(client, dns=dns(text)),
    "ClientMTU": lambda client, text: replace(client, mtu=mtu(text)),
    "ClientKeepalive": lambda client, text: replace(client, keepalive=keepalive(text)),
}
"""Reads each key of a client's settings."""
