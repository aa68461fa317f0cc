"""Reads the texts after a `=` on the configuration socket, one function for each kind of value.

Each raises ValueError, and nothing else, with a message that continues the key's name. No message holds the value of a
key line; of other values it holds nothing that may be a key.
"""

import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, NetmaskValueError
from typing import Final

from stagewire.config.keys import NO_KEY
from stagewire.config.values import MAX_U32, MAYBE_KEY, SHOWN
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.noise import clamp

MAX_U16: Final = 0xFFFF

IndexOf = Callable[[str], int]
"""Finds the number of the interface of a name; 0 without one."""

# Too few letters and digits to be a key, in hex or in base64.
_NAME = re.compile(rb"[a-z_]{1,32}[0-9]{0,2}")
_KEY = re.compile(rb"[0-9a-fA-F]{64}")
_DECIMAL = re.compile(rb"[0-9]{1,20}")
_HEX = re.compile(rb"0[xX][0-9a-fA-F]{1,8}")
_V4_ENDPOINT = re.compile(rb"([0-9.]{7,15}):([0-9]{1,5})")
_V6_ENDPOINT = re.compile(rb"\[([0-9a-fA-F:.]{2,45})(?:%([^\[\]%]+))?\]:([0-9]{1,5})")
_ZONE = re.compile(rb"[!-$&-.0-~]{1,15}")
# ipaddress alone would also take netmasks, host masks, scopes and lengths with leading zeros.
_PREFIX = re.compile(rb"[0-9a-fA-F:.]{2,45}/(?:0|[1-9][0-9]{0,2})")


def shown(value: bytes) -> str:
    """Quotes a value for a message, in ASCII, cut short; hides a value that may hold a key."""
    text = value.decode("ascii", "backslashreplace")
    if MAYBE_KEY.search(text):
        return "the value given (not shown, it could be a key)"
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def shown_name(name: bytes) -> str:
    """Quotes the name before a `=` if it looks like the name of a key and not like key material."""
    return repr(name.decode()) if _NAME.fullmatch(name) else "(not shown)"


def key(value: bytes) -> bytes:
    """Reads 64 hex digits in either case, as 32 bytes."""
    if not _KEY.fullmatch(value):
        raise ValueError("must be 64 hex digits")
    return bytes.fromhex(value.decode())


def private_key(value: bytes) -> bytes:
    """Reads a key and clamps it; NO_KEY stays as it is."""
    secret = key(value)
    return secret if secret == NO_KEY else clamp(secret)


def whole(value: bytes, high: int) -> int:
    """Reads a decimal number from 0 to `high`."""
    if not _DECIMAL.fullmatch(value) or int(value) > high:
        raise ValueError(f"must be a whole number from 0 to {high}, not {shown(value)}")
    return int(value)


def fwmark(value: bytes) -> int:
    """Reads 32 bits, decimal as wg(8) sends them, or hexadecimal after 0x as people write them."""
    return int(value, 16) if _HEX.fullmatch(value) else whole(value, MAX_U32)


def true(value: bytes) -> bool:
    """Reads a flag, whose only value is `true`."""
    if value != b"true":
        raise ValueError(f"must be true, not {shown(value)}")
    return True


def protocol_version(value: bytes) -> int:
    """Reads the protocol's version, of which there is one."""
    if value != b"1":
        raise ValueError(f"must be 1, not {shown(value)}")
    return 1


def endpoint(value: bytes, index_of: IndexOf) -> Endpoint:
    """Reads `address:port` or `[v6 address%zone]:port`, port 1 to 65535. Takes no names of hosts.

    A zone is an interface, by its name, as wg(8) sends it, or by its number. The zone of an address that isn't
    link-local means nothing and is dropped.
    """
    try:
        if four := _V4_ENDPOINT.fullmatch(value):
            return Endpoint(IPv4Address(four[1].decode()).packed, _port(four[2]))
        if six := _V6_ENDPOINT.fullmatch(value):
            address = IPv6Address(six[1].decode())
            scope = _scope(six[2], index_of) if six[2] is not None and address.is_link_local else 0
            return Endpoint(address.packed, _port(six[3]), scope)
    except AddressValueError:
        pass
    raise ValueError(f"must be address:port or [v6 address]:port, not {shown(value)}")


def _port(digits: bytes) -> int:
    if not 1 <= int(digits) <= MAX_U16:
        raise ValueError(f"must have a port from 1 to {MAX_U16}, not {shown(digits)}")
    return int(digits)


def _scope(zone: bytes, index_of: IndexOf) -> int:
    # A name may look like a number, so names come first, as in the C library.
    if _ZONE.fullmatch(zone) and (index := index_of(zone.decode())):
        return index
    if not _DECIMAL.fullmatch(zone) or int(zone) > MAX_U32:
        raise ValueError(f"must have the name or number of an interface after the %, not {shown(zone)}")
    return int(zone)


def allowed_ip(value: bytes) -> tuple[IPv4Network | IPv6Network, bool]:
    """Reads a prefix with its host bits masked, and whether it is added: `-` before it removes, `+` or nothing adds.

    The length is needed: a bare address is refused, as wireguard-go refuses it.
    """
    sign, prefix = (value[:1], value[1:]) if value[:1] in (b"+", b"-") else (b"", value)
    try:
        if _PREFIX.fullmatch(prefix):
            network = IPv6Network if b":" in prefix else IPv4Network
            return network(prefix.decode(), strict=False), sign != b"-"
    except (AddressValueError, NetmaskValueError):
        pass
    raise ValueError(f"must be a prefix such as 10.0.0.0/24 or fd00::/64, not {shown(value)}")
