"""What may stand after a `=`. Each function reads one value.

Each raises ValueError, with a message that goes on from the key's name.
"""

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

from stagewire.config.model import HostPort, Interface, Network, Table
from stagewire.proto.constants import MIN_REKEY_AFTER_TIME, REKEY_AFTER_TIME

MAX_PORT: Final = 0xFFFF
MAX_KEEPALIVE: Final = 0xFFFF
MIN_MTU: Final = 576
MIN_MTU_IPV6: Final = 1280
"""An IPv6 link must carry this much (RFC 8200, section 5); Linux takes IPv6 off a device with less."""
MAX_MTU: Final = 0xFFFF
_MAX_U32: Final = 0xFFFF_FFFF

_SHOWN = 60
# A run as long as this may be a key that was pasted into the wrong line.
_MAYBE_KEY = re.compile(r"[A-Za-z0-9+/=]{20,}")
_DECIMAL = re.compile(r"[0-9]{1,10}")
_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,8}")
_SECONDS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")
# ipaddress alone would also take netmasks, host masks and scopes, which `wg` doesn't.
_CIDR = re.compile(r"[0-9a-fA-F:.]{2,45}(/[0-9]{1,3})?")
_V6_LITERAL = re.compile(r"[0-9a-fA-F:.]{2,45}(%[a-zA-Z0-9_=+.-]{1,15})?")
_V4_LIKE = re.compile(r"[0-9.]+")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")
_SPACES_OR_COMMAS = re.compile(r"[\s,]+")


def shown(text: str) -> str:
    """The text as a message may show it: quoted, cut short, and not at all when a key could be in it."""
    if _MAYBE_KEY.search(text):
        return "the text given (not shown, it could be a key)"
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def split_words(text: str) -> list[str]:
    """A list as wg-quick reads it: commas and spaces alike separate, and any number of them. One word at least."""
    words = [word for word in _SPACES_OR_COMMAS.split(text) if word]
    if not words:
        raise ValueError("has no value")
    return words


def whole(text: str, low: int, high: int) -> int:
    """A decimal number from low to high."""
    if not _DECIMAL.fullmatch(text) or not low <= int(text) <= high:
        raise ValueError(f"must be a whole number from {low} to {high}, not {shown(text)}")
    return int(text)


def listen_port(text: str) -> int:
    """0 to 65535; 0 is any free port, as for `wg`."""
    return whole(text, 0, MAX_PORT)


def mtu(text: str) -> int:
    """Bytes. Whether IPv6 fits is known only when all addresses are."""
    return whole(text, MIN_MTU, MAX_MTU)


def fwmark(text: str) -> int:
    """32 bits, decimal or hexadecimal; `off` is 0."""
    if text.lower() == "off":
        return 0
    if _HEX.fullmatch(text):
        return int(text, 16)
    if not _DECIMAL.fullmatch(text) or int(text) > _MAX_U32:
        raise ValueError(f"must be off, or a number from 0 to 0xffffffff, not {shown(text)}")
    return int(text)


def table(text: str) -> Table:
    """The routing table that routes go to, `auto`, or `off` for no routes."""
    match text.lower():
        case "auto":
            return "auto"
        case "off":
            return "off"
    if not _DECIMAL.fullmatch(text) or not 1 <= int(text) <= _MAX_U32:
        raise ValueError(f"must be auto, off, or a table's number from 1 to {_MAX_U32}, not {shown(text)}")
    return int(text)


def keepalive(text: str) -> int:
    """Seconds; `off` is 0."""
    if text.lower() == "off":
        return 0
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_KEEPALIVE:
        raise ValueError(f"must be off, or seconds from 0 to {MAX_KEEPALIVE}, not {shown(text)}")
    return int(text)


def rekey_after_time(text: str) -> float:
    """Seconds, decimals allowed."""
    if not _SECONDS.fullmatch(text) or not MIN_REKEY_AFTER_TIME <= float(text) <= REKEY_AFTER_TIME:
        raise ValueError(f"must be seconds from {MIN_REKEY_AFTER_TIME:g} to {REKEY_AFTER_TIME:g}, not {shown(text)}")
    return float(text)


def choice(text: str, yes: str, no: str) -> bool:
    """One of two words, in any case."""
    if text.lower() not in (yes, no):
        raise ValueError(f"must be {yes} or {no}, not {shown(text)}")
    return text.lower() == yes


def address(text: str) -> Interface:
    """An address of our own with its prefix length; bare, it stands alone (/32 or /128)."""
    try:
        if _CIDR.fullmatch(text):
            return ip_interface(text)
    except ValueError:
        pass
    raise ValueError(f"must be an address with its prefix length, such as 10.0.0.1/24, not {shown(text)}")


def network(text: str) -> Network:
    """A prefix with its host bits masked; a bare address is /32 or /128."""
    try:
        if _CIDR.fullmatch(text):
            return ip_network(text, strict=False)
    except ValueError:
        pass
    raise ValueError(f"must be a prefix such as 10.0.0.0/24 or fd00::/64, not {shown(text)}")


def dns(text: str) -> str:
    """A server's address or a search domain."""
    if not _is_literal(text) and not _is_name(text):
        raise ValueError(f"must be an address or a search domain, not {shown(text)}")
    return text


def endpoint(text: str) -> HostPort:
    """`address:port`, `[v6 address]:port` or `name:port`. A name is checked for its form, not looked up."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"must be host:port, not {shown(text)}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host or not _is_literal(host):
            raise ValueError(f"must have an IPv6 address in its brackets, not {shown(host)}")
    elif ":" in host:
        raise ValueError(f"must have its IPv6 address in brackets, as in [fd00::1]:51820, not {shown(text)}")
    elif not _is_literal(host) and not _is_name(host):
        raise ValueError(f"must begin with an address or a host's name, not {shown(host)}")
    if not _DECIMAL.fullmatch(port) or not 1 <= int(port) <= MAX_PORT:
        raise ValueError(f"must end with a port from 1 to {MAX_PORT}, not {shown(port)}")
    return HostPort(str(ip_address(host)) if _is_literal(host) else host, int(port))


def _is_literal(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return ":" not in text or _V6_LITERAL.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    # Digits and dots alone are a mistyped address: some resolvers would make one of it.
    return _NAME.fullmatch(text) is not None and not _V4_LIKE.fullmatch(text)
