"""Where a peer is: an outer UDP address, and the address of ours that it was reached from or spoke to.

On the pipes and in the workers an endpoint travels packed, as bytes of one fixed length that nobody but conn-service
looks into; two packed endpoints are the same place if and only if the bytes are equal.

Layout, network order (44 bytes; IPv4 addresses use the first four bytes of their field, zeros after):

    family 1 | reserved 1 | port 2 | scope 4 | address 16 | source address 16 | source interface 4
"""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

_LAYOUT = struct.Struct("!BxHI16s16sI")
LENGTH: Final = _LAYOUT.size
_WIDTH = {4: 4, 6: 16}


class Endpoint(NamedTuple):
    """`address` is packed (4 or 16 bytes). `scope` is the interface index of a link-local IPv6 address, else 0.

    `source` is the address of ours to send from (packed, or empty to let the routing table choose) and
    `source_interface` the interface it was seen on (0 for any).
    """

    address: bytes
    port: int
    scope: int = 0
    source: bytes = b""
    source_interface: int = 0

    def pack(self) -> bytes:
        """The fixed-length form."""
        family = 4 if len(self.address) == 4 else 6
        return _LAYOUT.pack(family, self.port, self.scope, self.address, self.source, self.source_interface)

    @property
    def host(self) -> IPv4Address | IPv6Address:
        """The address, as the standard library has it."""
        return ip_address(self.address)

    def __str__(self) -> str:
        if len(self.address) == 4:
            return f"{self.host}:{self.port}"
        zone = f"%{self.scope}" if self.scope else ""
        return f"[{self.host}{zone}]:{self.port}"


def unpack_untrusted(data: bytes) -> Endpoint:
    """Reads the fixed-length form. Raises ValueError, and nothing else, for other bytes."""
    if len(data) != LENGTH:
        raise ValueError(f"an endpoint has {LENGTH} bytes, not {len(data)}")
    family, port, scope, address, source, interface = _LAYOUT.unpack(data)
    width = _WIDTH.get(family)
    if width is None:
        raise ValueError(f"an endpoint's family is 4 or 6, not {family}")
    return Endpoint(address[:width], port, scope, source[:width] if any(source) else b"", interface)


def without_source(packed: bytes) -> bytes:
    """The same place, with the choice of our address left to the routing table."""
    return packed[:24] + bytes(20)


def same_place(a: bytes, b: bytes) -> bool:
    """Whether two packed endpoints are the same outer address and port, whatever they say of ours."""
    return a[:24] == b[:24]
