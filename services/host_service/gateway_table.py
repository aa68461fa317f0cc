"""Writes the nftables table that treats packets of peers: exit, access rules, port forwards. Pure.

Each interface has one such table, made and removed whole, beside the table of its default routes (`firewall`).

    dstnat      port forwards: a port of this host's addresses leads to a peer
    clamp       TCP's segments fit the tunnel's MTU, and the MTU of the way on
    isolated    peers don't reach one another
    access      what each peer may reach, by its source: its class's chain decides, also for this host itself
    answers     what comes back on connections that peers began, by its destination: the same class decides
    srcnat      packets of peers leave with an address of this host; so do forwarded ports' packets to some peers

A peer's answers pass: its rules are for what the peer begins. Each packet of a connection that a peer began is judged anew,
in both directions, so a changed rule also holds for connections that exist. A set counts the packets that were denied, by
the peer's address and the other end's. A new table goes on with the counts of the one before, but for those of packets that
may pass now.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from host_service.firewall import COMMENT, FAMILIES, commented
from stagewire.control.gateway import AccessClass, Destination, GatewayRules, PortForward
from stagewire.linux.nft_names import gateway_table_of
from stagewire.proto import prefix
from stagewire.proto.prefix import BITS, Network

FORWARDS: Final = f"{COMMENT}, needs forwarding"
"""The comment of a table whose packets the host must forward."""
_PROTOCOLS: Final = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_PER_LINE: Final = 256
"""Elements of a map in one line for nft."""
DENIED: Final = "denied"
UNANSWERED: Final = "unanswered"
"""The chains that count and drop packets from peers, and what comes back to peers."""
MAX_DENIED: Final = 4096
"""Pairs of source and destination that are counted; others are dropped alike."""
_DENIED_FOR: Final = "1h"
_ADDRESS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}
_SOCKETS: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def standing_forwards() -> bool:
    """Tells whether a table of ours stands whose packets the host must forward."""
    try:
        return bool(commented(FORWARDS))
    except OSError:  # a kernel without nftables
        return False


class Pair(NamedTuple):
    """Counts the packets that were denied from one packed address to another, and until when (ms from now)."""

    source: bytes
    destination: bytes
    packets: int
    bytes: int
    expires: int


class Counts(NamedTuple):
    """Counts the packets that a table has denied, in whole and by pair."""

    packets: int = 0
    pairs: tuple[Pair, ...] = ()


NO_COUNTS: Final = Counts()


def lines(interface: str, rules: GatewayRules, instead_of: int = 0, denied: Counts = NO_COUNTS) -> Iterator[str]:
    """Yields the lines of one transaction that makes the table. Raises ValueError for rules that make no sense.

    `instead_of` is the handle of our table to replace, 0 for none; `denied` is what that table has counted.
    """
    table = f"inet {gateway_table_of(interface)}"
    if instead_of:
        yield f"delete table inet handle {instead_of}"
    yield f'create table {table} {{ comment "{FORWARDS if rules.forwards else COMMENT}"; }}'
    if rules.forwards:
        yield from _clamp(table, interface)
    if rules.isolates or rules.access:
        for hook in ("input", "forward", *(("output",) if rules.access else ())):
            yield f"add chain {table} {hook} {{ type filter hook {hook} priority filter; }}"
        yield from _denied(table, denied.packets)
        yield from _counted(table, rules, denied.pairs)
    if rules.isolates:
        yield f'add rule {table} forward iifname "{interface}" oifname "{interface}" goto {DENIED} comment "isolated"'
    if rules.access:
        yield from _access(table, interface, rules, instead_of)
    if rules.ports:
        yield f"add chain {table} dstnat {{ type nat hook prerouting priority dstnat; }}"
    if rules.ports or rules.masquerades:
        yield f"add chain {table} srcnat {{ type nat hook postrouting priority srcnat; }}"
    for port in rules.ports:
        yield from _port(table, interface, port)
    for version in rules.masquerades:
        beyond = f'meta nfproto {_nfproto(version)} iifname "{interface}" oifname != "{interface}"'
        yield f"add rule {table} srcnat {beyond} masquerade"


def _clamp(table: str, interface: str) -> Iterator[str]:
    yield f"add chain {table} clamp {{ type filter hook forward priority mangle; }}"
    for way in ("iifname", "oifname"):
        syn = f'{way} "{interface}" tcp flags & (syn | rst) == syn'
        yield f"add rule {table} clamp {syn} tcp option maxseg size set rt mtu"


def _nfproto(version: int) -> str:
    if version not in FAMILIES:
        raise ValueError(f"there is no IPv{version}")
    return f"ipv{version}"


# --- access -------------------------------------------------------------------------------------------------


def _counted(table: str, rules: GatewayRules, pairs: Iterable[Pair]) -> Iterator[str]:
    owned = {source: each for each in rules.access for source in each.sources} if not rules.isolates else {}
    for version, family in _SOCKETS.items():
        told = [
            f"{socket.inet_ntop(family, each.source)} . {socket.inet_ntop(family, each.destination)} "
            f"counter packets {each.packets} bytes {each.bytes} expires {each.expires}ms"
            for each in pairs
            if len(each.source) == BITS[version] // 8 and each.expires and not (owned and _may_pass(owned, each))
        ]
        for start in range(0, len(told), _PER_LINE):
            yield f"add element {table} denied{version} {{ {', '.join(told[start : start + _PER_LINE])} }}"


def _may_pass(owned: Mapping[bytes, AccessClass], pair: Pair) -> bool:
    """Tells whether the rules let all packets of a pair pass."""
    around = (ip_network((pair.source, length), strict=False) for length in range(8 * len(pair.source), -1, -1))
    found = next((owned[packed] for packed in map(prefix.pack, around) if packed in owned), None)
    if found is None or found.everything:
        return found is not None
    to = ip_address(pair.destination)
    return any(
        not each.protocol and (not each.prefix or to in prefix.unpack_untrusted(each.prefix))
        for each in found.destinations
    )


def _denied(table: str, packets: int) -> Iterator[str]:
    yield f"add chain {table} {DENIED}"
    yield f"add chain {table} {UNANSWERED}"
    for version, family in FAMILIES.items():
        pair = f"type {_ADDRESS[version]} . {_ADDRESS[version]}; size {MAX_DENIED}; flags dynamic,timeout"
        yield f"add set {table} denied{version} {{ {pair}; timeout {_DENIED_FOR}; counter; }}"
        yield f"add rule {table} {DENIED} update @denied{version} {{ {family} saddr . {family} daddr }}"
        yield f"add rule {table} {UNANSWERED} update @denied{version} {{ {family} daddr . {family} saddr }}"
    # A full set ends its own rule alone.
    yield f"add rule {table} {DENIED} counter packets {packets} bytes 0 drop"
    yield f"add rule {table} {UNANSWERED} counter drop"


def _access(table: str, interface: str, rules: GatewayRules, instead_of: int) -> Iterator[str]:
    classes = [
        f"{kind}{number}"
        for number, each in enumerate(rules.access)
        for kind in ("class", *(() if each.everything else ("answers",)))
    ]
    for chain in ("access", "answers", *classes):
        yield f"add chain {table} {chain}"
    # These come first: what a peer answers to another peer leaves by the interface where it came in.
    for hook in ("output", "forward"):
        yield f'add rule {table} {hook} oifname "{interface}" ct direction reply jump answers'
    for hook in ("input", "forward"):
        yield f'add rule {table} {hook} iifname "{interface}" jump access'
    errors = "ct state related meta l4proto { icmp, ipv6-icmp } accept"
    yield f"add rule {table} access ct state established ct direction reply accept"
    for chain in ("access", "answers"):
        yield f"add rule {table} {chain} {errors}"
    owned: dict[Network, int] = {
        prefix.unpack_untrusted(source): number for number, each in enumerate(rules.access) for source in each.sources
    }
    for version, family in FAMILIES.items():
        # nft compares new ranges with those of a map of the same name, though the same transaction removes its table.
        sources = f"sources{version}_{instead_of}"
        yield f"add map {table} {sources} {{ type {_ADDRESS[version]} : verdict; flags interval; }}"
        yield from _elements(
            f"{table} {sources}", version, {each: owned[each] for each in owned if each.version == version}
        )
        yield f"add rule {table} access {family} saddr vmap @{sources}"
        yield f"add rule {table} answers {family} daddr vmap @{sources}"
    yield f"add rule {table} access goto {DENIED}"
    for number, each in enumerate(rules.access):
        if each.everything:
            yield f"add rule {table} class{number} accept"
            continue
        yield f"add rule {table} class{number} ct direction reply goto answers{number}"
        for destination in each.destinations:
            yield f"add rule {table} class{number} {_matches(destination, 'd')} accept"
            yield f"add rule {table} answers{number} {_matches(destination, 's')} accept"
        yield f"add rule {table} class{number} goto {DENIED}"
        yield f"add rule {table} answers{number} goto {UNANSWERED}"


def _matches(one: Destination, side: str) -> str:
    """Returns what knows packets to a destination, or those from there: `side` is d or s."""
    words = []
    if one.prefix:
        to = prefix.unpack_untrusted(one.prefix)
        words.append(
            f"{FAMILIES[to.version]} {side}addr {to}" if to.prefixlen else f"meta nfproto {_nfproto(to.version)}"
        )
    if one.ports:
        ranges = [*zip(one.ports[::2], one.ports[1::2], strict=True)]
        for low, high in ranges:
            _check_port(low)
            _check_port(high)
        words.append(f"{_protocol(one.protocol)} {side}port {{ {', '.join(f'{low}-{high}' for low, high in ranges)} }}")
    elif one.protocol == socket.IPPROTO_ICMP:
        words.append("meta l4proto { icmp, ipv6-icmp }")
    elif one.protocol:
        words.append(f"meta l4proto {_protocol(one.protocol)}")
    return " ".join(words)


def _protocol(number: int) -> str:
    if number not in _PROTOCOLS:
        raise ValueError(f"there are no rules for protocol {number}")
    return _PROTOCOLS[number]


def _check_port(number: int) -> None:
    if not 1 <= number <= 0xFFFF:
        raise ValueError(f"{number} is no port")


def _elements(place: str, version: int, owned: Mapping[Network, int]) -> Iterator[str]:
    length = prefix.BITS[version] // 8

    def text(address: int) -> str:
        return socket.inet_ntop(_SOCKETS[version], address.to_bytes(length))

    found = [
        f"{text(low)}-{text(high)} : goto class{owner}" if low < high else f"{text(low)} : goto class{owner}"
        for low, high, owner in flattened(owned)
    ]
    for start in range(0, len(found), _PER_LINE):
        yield f"add element {place} {{ {', '.join(found[start : start + _PER_LINE])} }}"


def flattened(owned: Mapping[Network, int]) -> list[tuple[int, int, int]]:
    """Turns prefixes of one family, which may lie in one another, into ranges apart: (first, last, owner), in order.

    Each address belongs to the owner of its longest prefix.
    """
    edges: list[tuple[int, int, int]] = []
    around: list[tuple[int, int]] = []
    """(last, owner) of the prefixes around the present address, the longest last."""
    at = 0

    def close(until: int) -> None:
        nonlocal at
        while around and around[-1][0] < until:
            last, owner = around.pop()
            if at <= last:
                edges.append((at, last, owner))
                at = last + 1

    for network in sorted(owned, key=lambda each: (int(each.network_address), each.prefixlen)):
        first = int(network.network_address)
        close(first)
        if around and at < first:
            edges.append((at, first - 1, around[-1][1]))
        at = first
        around.append((int(network.broadcast_address), owned[network]))
    close(1 << 128)
    return _merged(edges)


def _merged(edges: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for first, last, owner in edges:
        if found and found[-1][1] + 1 == first and found[-1][2] == owner:
            found[-1] = (found[-1][0], last, owner)
        else:
            found.append((first, last, owner))
    return found


# --- port forwards ------------------------------------------------------------------------------------------


def _port(table: str, interface: str, port: PortForward) -> Iterator[str]:
    if len(port.address) not in (4, 16):
        raise ValueError("a port forward has no address")
    to = ip_address(port.address)
    _check_port(port.port)
    _check_port(port.to_port)
    protocol, family = _protocol(port.protocol), FAMILIES[to.version]
    place = f"[{to}]:{port.to_port}" if to.version == 6 else f"{to}:{port.to_port}"
    ours = f"meta nfproto {_nfproto(to.version)} fib daddr type local {protocol} dport {port.port}"
    yield f"add rule {table} dstnat {ours} dnat {family} to {place}"
    if not port.keeps_source:
        # A peer that sends only some networks through the tunnel would drop another source, or answer elsewhere.
        at_peer = f'oifname "{interface}" ct status dnat {family} daddr {to} {protocol} dport {port.to_port}'
        yield f"add rule {table} srcnat {at_peer} masquerade"
