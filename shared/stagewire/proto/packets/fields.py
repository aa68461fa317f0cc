"""Names every offset, length and flag of an inner packet's headers, and of the header before it on a TUN device.

IPv4: RFC 791. IPv6: RFC 8200. TCP: RFC 9293. UDP: RFC 768. ICMP: RFC 792, RFC 4443. virtio_net_hdr: VIRTIO 1.2, section
5.1.6, and Linux, include/uapi/linux/virtio_net.h.

A field's name is its offset in bytes from the start of its own header. The field ends where the next one begins:
`packet[V4_LENGTH:V4_IDENTIFICATION]`. A header's last field ends at the header's length:
`packet[V6_DESTINATION:V6_HEADER]`.
"""

from typing import Final

# --- IP ----------------------------------------------------------------------------------------------------

ICMP: Final = 1
IGMP: Final = 2
TCP: Final = 6
UDP: Final = 17
DCCP: Final = 33
GRE: Final = 47
ESP: Final = 50
ICMPV6: Final = 58
SCTP: Final = 132
UDP_LITE: Final = 136

V4_FIRST: Final = 0x45
"""First byte of an IPv4 header without options."""
V4_LENGTH: Final = 2
V4_IDENTIFICATION: Final = 4
V4_FRAGMENT: Final = 6
"""Three flags and the fragment's offset: 16 bits."""
V4_HOPS: Final = 8
"""Hop limit, which RFC 791 calls time to live."""
V4_PROTOCOL: Final = 9
V4_CHECKSUM: Final = 10
V4_SOURCE: Final = 12
V4_DESTINATION: Final = 16
V4_HEADER: Final = 20
"""Length without options."""

RESERVED_BIT: Final = 0x8000
DONT_FRAGMENT: Final = 0x4000
MORE_FRAGMENTS: Final = 0x2000
FRAGMENT_OFFSET: Final = 0x1FFF
"""In units of 8 bytes."""

V6_LENGTH: Final = 4
"""Length of all that follows the IPv6 header."""
V6_NEXT: Final = 6
V6_HOPS: Final = 7
V6_SOURCE: Final = 8
V6_DESTINATION: Final = 24
V6_HEADER: Final = 40

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
DESTINATION_OPTIONS: Final = 60
MOBILITY: Final = 135
HOST_IDENTITY: Final = 139
SHIM6: Final = 140
EXTENSION_LENGTH: Final = 1
"""Of an extension header, in units of 8 bytes without the first; of AUTHENTICATION, of 4 without the first two."""
EXTENSION_LEAST: Final = 8
V6_FRAGMENT_OFFSET: Final = 2
"""In the extension header FRAGMENT; the offset is the upper 13 of the 16 bits."""
V6_FRAGMENT_OFFSET_BITS: Final = 0xFFF8

# --- TCP and UDP -------------------------------------------------------------------------------------------

PORTS_END: Final = 4

TCP_SEQUENCE: Final = 4
TCP_ACKNOWLEDGEMENT: Final = 8
TCP_DATA_OFFSET: Final = 12
"""Length of the header in units of 4 bytes, in the upper half of the byte."""
TCP_FLAGS: Final = 13
TCP_WINDOW: Final = 14
TCP_CHECKSUM: Final = 16
TCP_URGENT: Final = 18
TCP_HEADER: Final = 20
"""Length without options."""

TCP_FIN: Final = 0x01
TCP_PSH: Final = 0x08
TCP_ACK: Final = 0x10
TCP_CWR: Final = 0x80

UDP_LENGTH: Final = 4
UDP_CHECKSUM: Final = 6
UDP_HEADER: Final = 8

# --- ICMP --------------------------------------------------------------------------------------------------

ICMP_HEADER: Final = 8
V4_UNREACHABLE: Final = 3
V4_HOST_UNREACHABLE: Final = 1
"""Code of V4_UNREACHABLE."""
V4_ERRORS: Final = frozenset({V4_UNREACHABLE, 4, 5, 11, 12})
"""Types: unreachable, source quench, redirect, time exceeded, parameter problem."""
V6_UNREACHABLE: Final = 1
V6_ADDRESS_UNREACHABLE: Final = 3
"""Code of V6_UNREACHABLE."""
V6_FIRST_QUERY: Final = 128
"""Types below are errors."""
V6_REDIRECT: Final = 137

# --- virtio_net_hdr ----------------------------------------------------------------------------------------

VNET_HEADER: Final = 10

NEEDS_CSUM: Final = 1
"""The checksum at `csum_start + csum_offset` is still to be made, of all that follows `csum_start`."""
DATA_VALID: Final = 2
"""The sender has checked the checksum."""

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80
"""Added to the kind: the TCP header says that the congestion window was reduced."""
