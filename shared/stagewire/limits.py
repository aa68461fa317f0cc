"""Holds the numbers that several rooms must agree on, each with its source."""

from typing import Final

DEFAULT_PORT: Final = 51820
"""First UDP port, routing table and mark that a tunnel tries, as wg-quick does."""
ROUTE_PROTOCOL: Final = 87
"""Marks our routes and rules (rtnetlink(7), rtm_protocol); no routing daemon uses it."""
MAX_WORKERS: Final = 64
"""Workers of one interface; a receiver index has room for 256."""
MAX_SPARES: Final = 4
"""Spares of one stage."""
DEFAULT_MTU: Final = 1420
"""Bytes of an inner packet: Ethernet's 1500 less TUNNEL_OVERHEAD."""
TUNNEL_OVERHEAD: Final = 80
"""Bytes that an inner packet grows by: IPv6 header 40, UDP header 8, transport message 32."""
MIN_MTU_IPV6: Final = 1280
"""Bytes; an interface with a smaller MTU carries no IPv6 (RFC 8200, section 5)."""
MAX_PORT: Final = 65535
"""Largest port (RFC 768)."""
MAX_DATAGRAM: Final = 65507
"""Bytes of a UDP payload over IPv4 (RFC 768)."""
MAX_PACKET: Final = 65535
"""Bytes of an IP packet (RFC 791)."""
MAX_ACCEPTED: Final = 64 << 20
"""Bytes of the configuration in force as key-service keeps it: twice the largest file."""
MAX_TRIAL: Final = 86_400
"""s that a file may be in force before it is confirmed."""
MAX_CAPTURE: Final = 86_400
"""s that a capture may go on."""
MAX_SEGMENTS: Final = 64
"""Datagrams of one UDP GSO send (Linux, UDP_MAX_SEGMENTS) and packets of one super-packet."""
MAX_COUNT: Final = (1 << 63) - 1
"""A counter that reaches it stays there."""
LATEST: Final = 253_402_300_799.0
"""s of UNIX time in the year 9999, after which no date can be written."""
