"""Recognises a tunnel's datagram in a packet: then a tunnel leads through a tunnel, or through itself.

Two tunnels that lead through one another would turn one packet for ever: longer each time, then in ever more fragments.
Neither can see into the other's datagrams, so what we seal tells on its outside how deep it is: its hop limit is the inner
one less EACH. Such packets end after HOPS / EACH tunnels of ours, on this host or others.

Other implementations begin with a new hop limit. For them conn-service has a second rule (`conn_service/nesting.py`): what
comes from one tunnel of the host and leads into a third must be whole and must fit. A packet in a loop soon doesn't.
If the third is Stagewire's, that holds only for what is deeper than most real tunnels in tunnels are.
"""

from collections.abc import Iterable
from typing import Any, Final

from stagewire.proto import constants as c
from stagewire.proto.packets import fields as f

HOPS: Final = 64
"""Hop limit of a datagram that carries no other."""
EACH: Final = 8
"""Hops that each tunnel takes: tunnels may be 8 deep, and 3 deep leave 48 hops, more than any way on the internet has.

A tunnel takes one more from a fragment, so that later tunnels know of it."""
TOO_DEEP: Final = -1
CUT: Final = 0x80
"""Bit that is added to the hop limit if the packet is a fragment."""
MAX_HEADS: Final = 64
"""First fragments that are remembered, to recognise those after them."""
_TYPES: Final = frozenset(
    kind.to_bytes(4, "little") for kind in (c.TYPE_INITIATION, c.TYPE_RESPONSE, c.TYPE_COOKIE_REPLY, c.TYPE_TRANSPORT)
)
_V4_PAYLOAD: Final = slice(f.V4_HEADER + f.UDP_HEADER, f.V4_HEADER + f.UDP_HEADER + 4)
_V6_PAYLOAD: Final = slice(f.V6_HEADER + f.UDP_HEADER, f.V6_HEADER + f.UDP_HEADER + 4)
_V4_CUT: Final = (f.MORE_FRAGMENTS | f.FRAGMENT_OFFSET) >> 8
_V4_MORE: Final = f.MORE_FRAGMENTS >> 8
_V4_OFFSET: Final = f.FRAGMENT_OFFSET >> 8
_TO_UDP: Final = frozenset({f.UDP, f.FRAGMENT})


def any_may_be(packets: Iterable[Any]) -> bool:
    """Tells quickly whether to look at packets or super-packets one by one. There must be whole IPv4 headers.

    hot: bench Worker.outbound
    """
    for each in packets:
        packet = each if each.__class__ is bytes else each.packet
        if packet[f.V4_PROTOCOL] == f.UDP:
            if packet[0] != f.V4_FIRST or packet[f.V4_FRAGMENT] & _V4_CUT or packet[f.V4_FRAGMENT + 1]:
                return True
            if bytes(packet[_V4_PAYLOAD]) in _TYPES:
                return True
        elif packet[f.V6_NEXT] in _TO_UDP and (packet[f.V6_NEXT] == f.FRAGMENT or bytes(packet[_V6_PAYLOAD]) in _TYPES):
            return True
    return False


class Carried:
    """Looks at the packets of one peer."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, None] = {}

    def limit(self, packet: bytes | memoryview) -> int:
        """Returns the hop limit for what is made of the packet, perhaps with CUT; TOO_DEEP to drop the packet.

        Returns 0 if no tunnel's datagram is in it. Fragments without a first fragment before them are not recognised.
        """
        if packet[0] >> 4 == 4:
            if packet[f.V4_PROTOCOL] != f.UDP:
                return 0
            high = packet[f.V4_FRAGMENT]
            later = bool(high & _V4_OFFSET or packet[f.V4_FRAGMENT + 1])
            payload, cut, hops = (packet[0] & 0x0F) * 4 + f.UDP_HEADER, bool(high & _V4_MORE), packet[f.V4_HOPS]
        else:
            following = packet[f.V6_NEXT]
            if following not in _TO_UDP or len(packet) < f.V6_HEADER + f.EXTENSION_LEAST:
                return 0
            payload, cut, later, hops = f.V6_HEADER + f.UDP_HEADER, False, False, packet[f.V6_HOPS]
            if following == f.FRAGMENT:
                if packet[f.V6_HEADER] != f.UDP:
                    return 0
                start = f.V6_HEADER + f.V6_FRAGMENT_OFFSET
                field = packet[start] << 8 | packet[start + 1]
                later, cut = bool(field & f.V6_FRAGMENT_OFFSET_BITS), bool(field & 1)
                payload += f.EXTENSION_LEAST
        if later:
            if _name(packet) not in self._heads:
                return 0
        elif bytes(packet[payload : payload + 4]) not in _TYPES:
            return 0
        elif cut:
            if len(self._heads) >= MAX_HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[_name(packet)] = None
        piece = cut or later
        limit = min(hops, HOPS) - EACH - piece
        if limit <= 0:
            return TOO_DEEP
        return limit | CUT if piece else limit


def _name(fragment: bytes | memoryview) -> bytes:
    """Returns what all fragments of one packet have in common."""
    if fragment[0] >> 4 == 4:
        return bytes(fragment[f.V4_IDENTIFICATION : f.V4_FRAGMENT]) + bytes(fragment[f.V4_SOURCE : f.V4_HEADER])
    identification = f.V6_HEADER + f.V6_FRAGMENT_OFFSET + 2
    return bytes(fragment[identification : identification + 4]) + bytes(fragment[f.V6_SOURCE : f.V6_HEADER])
