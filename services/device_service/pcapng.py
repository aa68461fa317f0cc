"""Writes packets as pcapng (IETF draft-ietf-opsawg-pcapng, `PCAP Next Generation Capture File Format`).

A file is a sequence of blocks, each `type 4 | length 4 | body | length 4`, padded to 32 bits. Numbers are little endian, as
the byte-order magic of the section header says. An option is `code 2 | length 2 | value`, padded to 32 bits.
"""

import struct
from typing import Final

_SECTION: Final = 0x0A0D0D0A
"""Section Header Block, section 4.1."""
_INTERFACE: Final = 1
"""Interface Description Block, section 4.2."""
_PACKET: Final = 6
"""Enhanced Packet Block, section 4.3."""
_STATISTICS: Final = 5
"""Interface Statistics Block, section 4.6."""
_MAGIC: Final = 0x1A2B3C4D
_LINKTYPE_RAW: Final = 101
"""Each packet begins with its IPv4 or IPv6 header (tcpdump.org/linktypes.html)."""
_END: Final = struct.pack("<HH", 0, 0)
_OPTION: Final = struct.Struct("<HH")
_SHB_USERAPPL, _IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _EPB_FLAGS, _ISB_IFRECV, _ISB_IFDROP = 4, 2, 3, 9, 2, 4, 5
_NANOSECONDS: Final = b"\x09"
"""A time stamp counts units of 10^-9 s."""
_HEAD: Final = struct.Struct("<IIIIIII")
_FLAGS: Final = {way: _OPTION.pack(_EPB_FLAGS, 4) + struct.pack("<I", way) + _END for way in (1, 2)}
INBOUND, OUTBOUND = _FLAGS
"""Directions, as epb_flags has them."""


def begin(interface: str, about: str) -> bytes:
    """Writes the blocks before the first packet: a section and its only interface."""
    section = struct.pack("<IHHq", _MAGIC, 1, 0, -1) + _option(_SHB_USERAPPL, b"Stagewire") + _END
    described = struct.pack("<HHI", _LINKTYPE_RAW, 0, 0) + _option(_IF_NAME, interface.encode())
    described += _option(_IF_DESCRIPTION, about.encode()) + _option(_IF_TSRESOL, _NANOSECONDS) + _END
    return _block(_SECTION, section) + _block(_INTERFACE, described)


def packet(data: bytes, length: int, way: int, unix_ns: int) -> bytes:
    """Writes a packet of `length` bytes, of which `data` are kept."""
    padding = -len(data) % 4
    size = _HEAD.size + len(data) + padding + len(_FLAGS[way]) + 4
    head = _HEAD.pack(_PACKET, size, 0, unix_ns >> 32, unix_ns & 0xFFFFFFFF, len(data), length)
    return b"".join((head, data, bytes(padding), _FLAGS[way], size.to_bytes(4, "little")))


def end(packets: int, missed: int, unix_ns: int) -> bytes:
    """Writes how many packets were captured and missed."""
    body = struct.pack("<III", 0, unix_ns >> 32, unix_ns & 0xFFFFFFFF)
    counts = ((_ISB_IFRECV, packets + missed), (_ISB_IFDROP, missed))
    return _block(
        _STATISTICS, body + b"".join(_option(code, struct.pack("<Q", count)) for code, count in counts) + _END
    )


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size
