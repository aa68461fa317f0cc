"""Packs a peer's place: its outer UDP address, with the address of ours that it reached or that spoke to it.

On the pipes and in the workers an endpoint is bytes of one fixed length; only conn-service looks inside. Two packed
endpoints are the same place if and only if their bytes are equal.

Layout, network order (44 bytes; IPv4 addresses use the first four bytes of their field, zeros after):

    family 1 | limit 1 | port 2 | scope 4 | address 16 | source address 16 | source interface 4
"""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

_LAYOUT = struct.Struct("!BBHI16s16sI")
LENGTH: Final = _LAYOUT.size
_WIDTH = {4: 4, 6: 16}


class Endpoint(NamedTuple):
    """Names a peer's place. `address` is packed (4 or 16 bytes).

    `scope` is the interface index of a link-local IPv6 address, else 0. `source` is our packed address to send from;
    empty leaves the choice to the routing table. `source_interface` is the interface that received the peer's datagram,
    or 0 for any. `limit` is `packets.carried`'s word on what goes there, 0 for no word; the place is the same.
    """

    address: bytes
    port: int
    scope: int = 0
    source: bytes = b""
    source_interface: int = 0
    limit: int = 0

    def pack(self) -> bytes:
        family = 4 if len(self.address) == 4 else 6
        return _LAYOUT.pack(family, self.limit, self.port, self.scope, self.address, self.source, self.source_interface)

    @property
    def host(self) -> IPv4Address | IPv6Address:
        return ip_address(self.address)

    def __str__(self) -> str:
        if len(self.address) == 4:
            return f"{self.host}:{self.port}"
        zone = f"%{self.scope}" if self.scope else ""
        return f"[{self.host}{zone}]:{self.port}"


def unpack_untrusted(data: bytes) -> Endpoint:
    """Reads a packed endpoint. Raises ValueError, and nothing else, for other bytes."""
    if len(data) != LENGTH:
        raise ValueError(f"an endpoint has {LENGTH} bytes, not {len(data)}")
    family, limit, port, scope, address, source, interface = _LAYOUT.unpack(data)
    width = _WIDTH.get(family)
    if width is None:
        raise ValueError(f"an endpoint's family is 4 or 6, not {family}")
    source = source[:width]
    return Endpoint(address[:width], port, scope, source if any(source) else b"", interface, limit)


def place_of(packed: bytes) -> bytes:
    """Returns the address (4 or 16 bytes) and the port (2 bytes) of a packed endpoint, as `cookie` takes them."""
    return packed[8 : 8 + _WIDTH.get(packed[0], 16)] + packed[2:4]


def without_source(packed: bytes) -> bytes:
    """Returns the same place, with the choice of our address left to the routing table."""
    return packed[:24] + bytes(20)


def with_limit(packed: bytes, limit: int) -> bytes:
    """Returns the same place with another limit."""
    return packed[:1] + bytes((limit,)) + packed[2:]


def same_place(a: bytes, b: bytes) -> bool:
    """Tells whether two packed endpoints have the same outer address and port, whatever they say of our address."""
    return a[0] == b[0] and a[2:24] == b[2:24]
