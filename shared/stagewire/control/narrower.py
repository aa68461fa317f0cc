"""Finds the peers that some rules let do more than other rules do. Pure.

While host-service can't set the wanted rules, key-service has the workers hold the packets of such peers back.
"""

from typing import Final

from stagewire.control.gateway import EVERY_PEER, AccessClass, Destination, GatewayRules
from stagewire.proto import prefix

MOST: Final = 256
"""Prefixes in one answer; beyond them, the answer means every peer."""


def sources(standing: GatewayRules | None, wanted: GatewayRules) -> tuple[bytes, ...]:
    """Returns packed prefixes of the peers that have to be held back; EVERY_PEER in it means all restricted ones.

    `standing` is None if no rules stand.
    """
    if wanted.isolates and not (standing is not None and standing.isolates):
        return (EVERY_PEER,)
    found = dict.fromkeys(_narrower(standing.access if standing is not None else (), wanted.access))
    if standing is not None:
        # A peer's port that is still forwarded.
        ports = (each for each in standing.ports if each not in wanted.ports)
        found |= dict.fromkeys(bytes([8 * len(each.address)]) + each.address for each in ports)
    return tuple(found) if len(found) <= MOST else (EVERY_PEER,)


def _narrower(standing: tuple[AccessClass, ...], wanted: tuple[AccessClass, ...]) -> list[bytes]:
    by_source = {source: each for each in standing for source in each.sources}
    lengths = {source[0] for source in by_source}
    found = []
    for each in wanted:
        if each.everything:
            continue
        for source in each.sources:
            before = by_source.get(source)
            if before is not None:
                wider = before.everything or not all(
                    any(_covers(other, one) for other in each.destinations) for one in before.destinations
                )
            else:  # without access rules every source passes; with them, those of a wider prefix may
                own = prefix.unpack_untrusted(source)
                around = (own.supernet(new_prefix=each) for each in lengths if each < own.prefixlen)
                wider = not standing or any(prefix.pack(each) in by_source for each in around)
            if wider:
                found.append(source)
    return found


def _covers(wide: Destination, one: Destination) -> bool:
    """Tells whether all that `one` allows is allowed by `wide` alone."""
    if wide.prefix:
        around = prefix.unpack_untrusted(wide.prefix)
        inside = prefix.unpack_untrusted(one.prefix) if one.prefix else None
        if inside is None or inside.version != around.version or inside.prefixlen < around.prefixlen:
            return False
        if inside.supernet(new_prefix=around.prefixlen) != around:
            return False
    ranges = [*zip(wide.ports[::2], wide.ports[1::2], strict=True)]
    return wide.protocol in (0, one.protocol) and (
        not ranges
        or (
            bool(one.ports)
            and all(
                any(low <= first and last <= high for low, high in ranges)
                for first, last in zip(one.ports[::2], one.ports[1::2], strict=True)
            )
        )
    )
