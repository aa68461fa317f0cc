"""Reads and writes the values that say what a gateway does with packets of its peers: exit, access, port forwards.

    Exit = on                          routed-ipv6, routed or off: which packets leave under the gateway's own address
    Allow = staff: 10.0.0.0/24 tcp 443     in [Interface]; without a group it is for every peer
    Allow = any udp 53,8000-8010           in [Peer]
    Groups = staff, guests
    Forward = tcp 8080 10.66.0.2:80        in [Peer] the address may be left out

Each reader raises ValueError, with a message that continues the key's name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeVar

from stagewire.config import values
from stagewire.config.model import Access, Exit, Forward, Network, Reach
from stagewire.limits import MAX_PORT

_T = TypeVar("_T")
MAX_RANGES: Final = 32
"""Ports and ranges of ports in one line."""
_GROUP: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_GROUPED: Final = re.compile(r"([^\s:]*):\s+(.*)")
_EXITS: Final[tuple[Exit, ...]] = ("off", "on", "routed-ipv6", "routed")
_PORTED: Final = ("tcp", "udp")
_PROTOCOLS: Final = (*_PORTED, "icmp")


def exit_mode(text: str) -> Exit:
    """Reads whether and how packets of peers leave by other interfaces."""
    for each in _EXITS:
        if text.lower() == each:
            return each
    raise ValueError(f"must be one of {', '.join(_EXITS)}, not {values.shown(text)}")


def groups(text: str) -> tuple[str, ...]:
    """Reads a list of groups."""
    return tuple(dict.fromkeys(map(_group, values.split_words(text))))


def _group(text: str) -> str:
    if not _GROUP.fullmatch(text):
        raise ValueError(f"must name groups of letters, digits, - and _, not {values.shown(text)}")
    return text


def reach(text: str, *, grouped: bool = False) -> Reach:
    """Reads one destination: `any` or a prefix, then a protocol, then ports. `grouped`: a group may stand before it."""
    group = ""
    if grouped and (found := _GROUPED.fullmatch(text)):
        group, text = _group(found[1]), found[2]
    elif found := _GROUPED.fullmatch(text):
        raise ValueError(f"takes the group {values.shown(found[1])} only in a line of [Interface]")
    words = text.split()
    if not words or len(words) > 3:
        raise ValueError(f"must be a destination such as 10.0.0.0/24 tcp 443, not {values.shown(text)}")
    to = None if words[0].lower() == "any" else values.network(words[0])
    protocol = words[1].lower() if len(words) > 1 else ""
    if protocol and protocol not in _PROTOCOLS:
        raise ValueError(f"must have the protocol tcp, udp or icmp, not {values.shown(words[1])}")
    if len(words) == 3 and protocol not in _PORTED:
        raise ValueError("has ports only with tcp or udp")
    return Reach(to, protocol, _ranges(words[2]) if len(words) == 3 else (), group)


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Reads ports and ranges of ports, merged and in order."""
    found = []
    for word in text.split(","):
        first, dash, last = word.partition("-")
        low = _port(first)
        high = _port(last) if dash else low
        if high < low:
            raise ValueError(f"has a range of ports that ends before it begins: {values.shown(word)}")
        found.append((low, high))
    if len(found) > MAX_RANGES:
        raise ValueError(f"has more than {MAX_RANGES} ports and ranges in a line: write several lines")
    merged: list[tuple[int, int]] = []
    for low, high in sorted(found):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _port(text: str) -> int:
    try:
        return values.whole(text, 1, MAX_PORT)
    except ValueError:
        raise ValueError(f"must have ports from 1 to {MAX_PORT}, not {values.shown(text)}") from None


def forward(text: str, *, own: bool = False) -> Forward:
    """Reads a port forward. `own`: without an address, the port goes to the peer's own addresses."""
    words = text.split()
    if len(words) != 3 or words[0].lower() not in _PORTED:
        such = "tcp 8080 80: a port of the gateway, then the peer's" if own else "tcp 8080 10.66.0.2:80"
        raise ValueError(f"must be such as {such}, not {values.shown(text)}")
    address, colon, port = words[2].rpartition(":")
    if not colon and not own:
        raise ValueError(f"must name the address to forward to, such as 10.66.0.2:80, not {values.shown(words[2])}")
    return Forward(words[0].lower(), _port(words[1]), _address(address) if colon else None, _port(port))


def _address(text: str) -> IPv4Address | IPv6Address:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not values.is_literal(bare) or "%" in bare or (":" in bare) != (bare != text):
        raise ValueError(f"must have an address, IPv6 in brackets, not {values.shown(text)}")
    return ip_address(bare)


def own_addresses(allowed: Iterable[Network]) -> list[IPv4Address | IPv6Address]:
    """Returns a peer's first address of each family that stands alone in its allowed-IPs."""
    found: dict[int, IPv4Address | IPv6Address] = {}
    for each in allowed:
        if each.num_addresses == 1:
            found.setdefault(each.version, each.network_address)
    return [*found.values()]


def targets(one: Forward, allowed: Iterable[Network]) -> dict[int, tuple[IPv4Address | IPv6Address, int]]:
    """Returns the address and port to which a forward leads, by family. `allowed` are the allowed-IPs of its peer."""
    to = own_addresses(allowed) if one.to is None else [one.to]
    return {each.version: (each, one.to_port) for each in to}


# --- as texts -----------------------------------------------------------------------------------------------


def reach_text(one: Reach) -> str:
    """Writes a destination as `reach` reads it."""
    ports = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in one.ports)
    words = ["any" if one.to is None else str(one.to), one.protocol, ports]
    return (f"{one.group}: " if one.group else "") + " ".join(filter(None, words))


def forward_text(one: Forward) -> str:
    """Writes a port forward as `forward` reads it."""
    to = "" if one.to is None else f"[{one.to}]:" if one.to.version == 6 else f"{one.to}:"
    return f"{one.protocol} {one.port} {to}{one.to_port}"


# --- a peer's or all peers' ---------------------------------------------------------------------------------


def add_line(access: Access, key: str, text: str, *, whole: bool = False) -> Access:
    """Adds what a line of the file says. `whole`: the line is the interface's, not a peer's."""
    match key:
        case "Groups":
            return replace(access, groups=tuple(dict.fromkeys((*access.groups, *groups(text)))))
        case "Allow":
            return replace(access, allow=_with(access.allow, reach(text, grouped=whole)))
        case _:
            return replace(access, forwards=_with(access.forwards, forward(text, own=not whole)))


def _with(known: tuple[_T, ...], one: _T) -> tuple[_T, ...]:
    return known if one in known else (*known, one)


def words(access: Access) -> Mapping[str, tuple[str, ...]]:
    """Returns the values of each key; of a repeatable one, one a line."""
    return {
        "Groups": (", ".join(access.groups),) if access.groups else (),
        "Allow": tuple(map(reach_text, access.allow)),
        "Forward": tuple(map(forward_text, access.forwards)),
    }


def setting(access: Access, key: str, text: str) -> Access:
    """Replaces what one key says of a peer. Several lines are separated by semicolons; an empty text removes the key."""
    bare = _EMPTY[key](access)
    for each in filter(None, map(str.strip, text.split(";"))):
        bare = add_line(bare, key, each)
    return bare


_EMPTY: Final[Mapping[str, Callable[[Access], Access]]] = {
    "Groups": lambda access: replace(access, groups=()),
    "Allow": lambda access: replace(access, allow=()),
    "Forward": lambda access: replace(access, forwards=()),
}
KEYS: Final = tuple(_EMPTY)
"""Keys of Access."""
