"""Defines what key-service tells host-service about packets that peers send beyond the gateway."""

import re
from dataclasses import dataclass
from typing import Final

MAX_PAIRS: Final = 16
"""Pairs of addresses in one PacketsDenied; key-service looks up the peer of each."""
EVERY_PEER: Final = b""
"""Stands in HostState's `unheld` for each peer with access rules."""
KEPT: Final = "what peers send through this host"
"""What chains of other tables drop, in host-service's warning: `kept` finds that warning again."""
_KEPT: Final = re.compile(rf"(chain .* drops? {KEPT}): (.*)")


@dataclass(frozen=True, slots=True)
class Destination:
    """Names what peers may reach: a packed prefix, empty for every address; a protocol's number, 0 for each.

    The number of ICMP also stands for ICMPv6. `ports` has the first and last port of each range in turn; empty for all.
    """

    prefix: bytes
    protocol: int
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AccessClass:
    """Says what packets from some packed prefixes may reach. `everything`: the destinations don't matter."""

    sources: tuple[bytes, ...]
    everything: bool
    destinations: tuple[Destination, ...]


@dataclass(frozen=True, slots=True)
class PortForward:
    """Forwards a port of the gateway's addresses to a packed address of the same family.

    `keeps_source`: the peer sees the sender's address, as it sends all of its answers through the tunnel.
    """

    protocol: int
    port: int
    address: bytes
    to_port: int
    keeps_source: bool


@dataclass(frozen=True, slots=True)
class GatewayRules:
    """Says how the host treats packets of peers. Versions of IP are 4 and 6.

    The host forwards packets of `forwards`; those of `masquerades` leave by other interfaces with the gateway's address.
    `isolates`: peers don't reach one another. `opens`: other nftables tables may be changed so that they let the packets
    pass. Without classes in `access`, every peer reaches everything; otherwise a source of no class reaches nothing.
    `ports_alone`: the host forwards for `ports` and for nothing else.
    """

    forwards: tuple[int, ...] = ()
    masquerades: tuple[int, ...] = ()
    isolates: bool = False
    opens: bool = False
    access: tuple[AccessClass, ...] = ()
    ports: tuple[PortForward, ...] = ()
    ports_alone: bool = False


NO_RULES = GatewayRules()


@dataclass(frozen=True, slots=True)
class Denied:
    """Counts packets from one packed address to another, of `size` bytes each on average, that the rules have dropped.

    Both addresses are empty where the host had no room to keep them apart.
    """

    source: bytes
    destination: bytes
    packets: int
    size: int


@dataclass(frozen=True, slots=True)
class PacketsDenied:
    """Tells key-service what the access rules have dropped since the last such message: MAX_PAIRS pairs, and the rest."""

    pairs: tuple[Denied, ...]


def kept_warning(chains: list[str], mend: str) -> str:
    """Returns the warning that other tables drop what a gateway forwards."""
    return f"{' and '.join(chains)} {'drop' if len(chains) > 1 else 'drops'} {KEPT}: {mend}"


def kept(warnings: list[str]) -> tuple[str, str] | None:
    """Finds that warning among others, and returns its two parts: what happens, and what to do."""
    found = next(filter(None, map(_KEPT.fullmatch, warnings)), None)
    return (found[1], found[2]) if found is not None else None
