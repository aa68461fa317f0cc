"""A train of packets of one length and for one destination, as a table: what an overload of datagrams looks like.

Each of them was read from the TUN device by itself, and each checksum may still have to be made; but where they lie at equal
distances, they can be laid in rows, and sealed, like those of a super-packet.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from stagewire.proto.constants import TRANSPORT_HEADER_LENGTH as FRONT
from stagewire.proto.offload import segment, virtio
from stagewire.proto.offload.rows import Bytes, Laid, Rows, most, row_size
from stagewire.proto.offload.virtio import BadSuperPacket, VirtioHeader

LEAST: Final = 8
"""Packets from which on it is quicker than one by one."""


@dataclass(slots=True)
class Uniform:
    """Packets in a table's rows."""

    table: Bytes
    header: VirtioHeader
    """Of all of them: whether a checksum is to be made, and where."""

    @property
    def count(self) -> int:
        """How many."""
        return len(self.table)

    @property
    def longest(self) -> int:
        """Bytes of each."""
        return int(self.table.shape[1])

    @property
    def packet(self) -> bytes:
        """The first one, as it was read: its addresses are in it."""
        return bytes(self.table[0])

    def packets(self) -> list[bytes]:
        """One by one."""
        header = self.header.pack()
        found = [segment.open_untrusted(header, row.tobytes()) for row in self.table]
        return [packet for packet in found if isinstance(packet, bytes)]

    def first(self) -> bytes:
        """The first one, its checksum made."""
        return self.packets()[0]


def of_items(frame: bytes | memoryview, start: int, stride: int, before: int) -> Uniform | None:
    """What lies in a frame from `start` on: an item every `stride` bytes, with `before` bytes before its virtio_net_hdr.

    None unless they are alike: one header, that of single packets; one IP version, one destination; and what is before them.
    Hot: 6 us.
    """
    items = np.frombuffer(frame, np.uint8, offset=start).reshape(-1, stride)
    packet = before + virtio.LENGTH
    length = stride - packet
    head = items[0, : packet + 40].tobytes()
    version = head[packet] >> 4 if length >= 40 else 0
    if version not in {4, 6}:
        return None
    for begin, end in ((0, packet + 1), (packet + 16, packet + 20) if version == 4 else (packet + 24, packet + 40)):
        if items[:, begin:end].tobytes() != head[begin:end] * len(items):
            return None
    try:
        header = virtio.unpack_untrusted(head[before:packet], length)
    except BadSuperPacket:
        return None
    return Uniform(items[:, packet:], header) if header.kind == virtio.GSO_NONE else None


def runs_of(train: Uniform, mtu: int) -> int:
    """How many runs the packets make."""
    return -(-train.count // most(row_size(train.longest, mtu)))


def lay(train: Uniform, run: int, rows: Rows, mtu: int) -> Laid:
    """Lays the packets of the `run`th run (from 0) in rows, without transport headers and tags.

    Hot: 16 us for 50 packets of 1,228 bytes, of which 7 us are the checksums' sum and 2 us the copying.
    """
    length, header = train.longest, train.header
    row = row_size(length, mtu)
    first = run * most(row)
    packets = train.table[first : first + most(row)]
    inner = rows.table(row)[: len(packets), FRONT:]
    inner[:, :length] = packets
    inner[:, length:] = 0
    if header.flags & virtio.NEEDS_CSUM:
        start, place = header.csum_start, header.csum_start + header.csum_offset
        width = (inner.shape[1] - start) & ~1  # an odd byte more would be of the tag, which is zero still
        sums = np.add.reduce(inner[:, start : start + width].view("<u2"), axis=1, dtype=np.uint32)
        # Times 256, modulo 65,535, is the same as the two bytes swapped.
        inner[:, place : place + 2].view(">u2")[:, 0] = 0xFFFF - sums % 0xFFFF * 256 % 0xFFFF
    return Laid(rows, row, len(packets), [])
