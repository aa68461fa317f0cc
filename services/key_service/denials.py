"""Counts what the host's access rules have dropped, for the peers that sent it: host-service knows addresses alone."""

from key_service.registry import Registry
from stagewire.control.gateway import MAX_PAIRS, PacketsDenied
from stagewire.limits import MAX_COUNT
from stagewire.reasons import Reasons


def note(found: PacketsDenied, registry: Registry, reasons: Reasons) -> None:
    """Notes each pair, with its destination as the example."""
    for each in found.pairs[: MAX_PAIRS + 1]:
        packets = min(max(each.packets, 0), MAX_COUNT)
        peer = registry.owner_of(each.source) if len(each.source) in (4, 16) else None
        place = each.destination if peer else each.source
        reasons.note("access_denied", packets, peer=peer or b"", place=place[:16], size=each.size)
