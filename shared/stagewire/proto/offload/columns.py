"""`coalesce.merge`, for the packets of one received run, where they were opened.

All headers are compared at once (`stacked`): what each row must have in common with the row before it, whether its
sequence number follows, whether its IPv4 header adds up as that did. Where all is so, the row goes on; where it isn't,
another stretch begins. A sender lays its super-packets one after another, so stretches are few. What goes on where a stretch
further up ended, with other flows between, is joined to it.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np

from stagewire.proto import ip
from stagewire.proto.offload import checksum, stacked
from stagewire.proto.offload.coalesce import TAKES_TCP, TAKES_UDP, Item, Merged, header, joined_headers
from stagewire.proto.offload.rows import Bytes
from stagewire.proto.offload.segment import ACK, PSH, TCP, UDP

Span = tuple[int, int]
"""(first row, end)"""
_FRAGMENT_BITS: Final = 0xBFFF
_DONT_FRAGMENT: Final = 0x40
_V6_HEADER: Final = 40
_TCP_HEADER: Final = 20
_UDP_HEADER: Final = 8


@dataclass(slots=True)
class _Shape:
    """How the first row's packet is made; all others must be alike."""

    version: int
    protocol: int
    transport: int
    headers: int
    addresses: int
    """Where they begin; ports follow them, at the start of the transport header."""

    def fits(self, head: bytes) -> bool:
        """Whether these are a packet's headers that may be merged."""
        if self.version == 4:
            if head[0] != 0x45 or head[9] != self.protocol or (head[6] << 8 | head[7]) & _FRAGMENT_BITS:
                return False
        elif head[0] >> 4 != 6 or head[6] != self.protocol:
            return False
        transport = self.transport
        if self.protocol == UDP:
            return True
        return head[transport + 12] == (self.headers - transport) << 2 and head[transport + 13] & ~PSH == ACK

    def carries(self, packet: bytes) -> bool:
        """Whether it is of this kind and has a payload; the packet, or as much of it as there may be headers."""
        if len(packet) <= self.headers or not self.fits(packet):
            return False
        length = int.from_bytes(packet[2:4]) if self.version == 4 else int.from_bytes(packet[4:6]) + _V6_HEADER
        return length > self.headers


def merge(packets: Bytes, padded_last: int, takes: int) -> list[Item] | None:
    """Merges what can be; None if the packets are of several kinds, which `coalesce.merge` can sort out.

    `packets` has one in each row, padded; the last row's has `padded_last` bytes, and zeros after. Two at least. The last
    may be of another kind: an acknowledgement, mostly, that ends a run of others (`trains.cipher_parts`).
    Hot: 48 us for 43 packets of 1,420 bytes of one flow, of which 6 us are the checksums' sum; 66 us for 36 of nine flows.
    """
    shape = _shape_of(packets[0, :100].tobytes(), takes)
    if shape is None or shape.headers >= packets.shape[1]:
        return None
    last = packets[-1, :padded_last]
    if shape.carries(last[: shape.headers + 1].tobytes()):
        return _merge(packets, padded_last, shape)
    alike = _merge(packets[:-1], packets.shape[1], shape) if len(packets) > 2 else None
    if alike is None:
        return None
    packet = last.tobytes()
    return [*alike, packet[: ip.inner_length(packet) or padded_last]]


def _merge(packets: Bytes, padded_last: int, shape: _Shape) -> list[Item] | None:
    heads = packets[:, : shape.headers].tobytes()
    lengths = _numbers(heads, shape.headers, 2 if shape.version == 4 else 4)
    if shape.version == 6:
        lengths = [length + _V6_HEADER for length in lengths]
    if min(lengths) <= shape.headers or max(lengths) > packets.shape[1] or lengths[-1] > padded_last:
        return None
    if shape.protocol == UDP:
        said, sums = (_numbers(heads, shape.headers, shape.transport + at) for at in (4, 6))
        if 0 in sums or said != [length - shape.transport for length in lengths]:
            return None
    return _Run(packets, shape, heads, lengths).merged()


def _shape_of(first: bytes, takes: int) -> _Shape | None:
    """`first` has 20 bytes at least."""
    if first[0] == 0x45:
        version, protocol, transport, addresses = 4, first[9], 20, 12
    elif first[0] >> 4 == 6:
        version, protocol, transport, addresses = 6, first[6], 40, 8
    else:
        return None
    least = transport + (_TCP_HEADER if protocol == TCP else _UDP_HEADER)
    if len(first) < least:
        return None
    if protocol == TCP and takes & TAKES_TCP:
        headers = transport + (first[transport + 12] >> 4) * 4
    elif protocol == UDP and takes & TAKES_UDP:
        headers = transport + _UDP_HEADER
    else:
        return None
    shape = _Shape(version, protocol, transport, headers, addresses)
    return shape if headers >= least and shape.fits(first) else None


@lru_cache(512)
def _shorts(length: int, at: int, count: int) -> struct.Struct:
    return struct.Struct(">" + f"{at}xH{length - at - 2}x" * count)


def _numbers(heads: bytes, length: int, at: int) -> list[int]:
    """The field of 16 bits at `at` of each of the headers."""
    return list(_shorts(length, at, len(heads) // length).unpack(heads))


def _mask(version: int, protocol: int) -> bytes:
    """What may differ is 0: lengths, identification, checksums, sequence number, PSH."""
    transport = 20 if version == 4 else 40
    mask = bytearray(b"\xff" * (transport + (60 if protocol == TCP else 8)))
    for start, end in ((2, 6), (10, 12)) if version == 4 else ((4, 6),):
        mask[start:end] = bytes(end - start)
    if protocol == UDP:
        mask[transport + 4 : transport + 8] = bytes(4)
    else:
        mask[transport + 4 : transport + 8] = bytes(4)
        mask[transport + 16 : transport + 18] = bytes(2)
        mask[transport + 13] = 0xFF & ~PSH
    return bytes(mask)


_SAME: Final = {(version, protocol): _mask(version, protocol) for version in (4, 6) for protocol in (TCP, UDP)}


class _Run:
    """Packets of one shape."""

    def __init__(self, packets: Bytes, shape: _Shape, heads: bytes, lengths: list[int]) -> None:
        self._packets, self._shape, self._heads, self._lengths = packets, shape, heads, lengths
        self._same = _SAME[shape.version, shape.protocol][: shape.headers]

    def merged(self) -> list[Item] | None:
        lengths, count = self._lengths, len(self._lengths)
        lone = self._wrong()
        starts = {0, count, *stacked.rows_with_any(self._differs(), self._shape.headers, count)}
        starts.update(lone, [row + 1 for row in lone])
        if lengths[:-1].count(lengths[0]) != count - 1 or lengths[-1] > lengths[0]:
            # All of one size but the last: who goes on with less is the last.
            for row, (before, length) in enumerate(pairwise(lengths), 1):
                if length > before:
                    starts.add(row)
                elif length < before and row not in starts:
                    starts.add(row + 1)
        if self._shape.protocol == TCP:
            flags = self._heads[self._shape.transport + 13 :: self._shape.headers]
            at = flags.find(ACK | PSH)
            while at >= 0:
                starts.add(at + 1)
                at = flags.find(ACK | PSH, at + 1)
        items = self._join(list(pairwise(sorted(starts))), lone)
        if items is None:
            return None
        headers = self._shape.headers
        largest = max(lengths) - headers
        payloads = memoryview(self._packets[:, headers : headers + largest].tobytes())
        return [self._item(spans, payloads, largest) for spans in items]

    def _differs(self) -> int:
        """Something for each row but the first that doesn't go on where the row before it ended; sizes apart."""
        shape, rest, lengths = self._shape, len(self._lengths) - 1, self._lengths
        headers, bits = shape.headers, 8 * shape.headers
        rows = int.from_bytes(self._heads)
        before = rows >> bits
        differs = (rows ^ before) & stacked.repeated(self._same, rest)
        if shape.protocol == TCP:
            place = shape.transport + 4
            numbers = stacked.field(headers, place, 4, rest)
            if lengths[:-1].count(lengths[0]) == rest:
                steps = stacked.each(headers, place + 4, rest) * (lengths[0] - headers)
            else:
                steps = stacked.numbers([length - headers for length in lengths[:-1]], headers, place + 4)
            differs |= ((before & numbers) + steps ^ rows) & numbers
        if shape.version == 4:
            # Length, identification and checksum together, as all else in the IPv4 header is the same.
            short = stacked.field(headers, 10, 2, rest + 1)
            total = (rows & short) + (rows >> 48 & short) + (rows >> 64 & short)
            total = (total & short) + (total >> 16 & short)
            total = (total & short) + (total >> 16 & short)
            differs |= (total ^ total >> bits) & stacked.field(headers, 10, 2, rest)
            # A packet that may be fragmented has the identification after that of the one before it.
            whole = stacked.repeated(bytes(6) + bytes([_DONT_FRAGMENT]) + bytes(headers - 7), rest)
            if may := whole & ~rows:
                counted = stacked.field(headers, 4, 2, rest)
                identifications = (before & counted) + stacked.each(headers, 6, rest)
                differs |= (identifications ^ rows) & (may << 2) * 0xFFFF  # that bit is 2 below the field's last
        return differs

    def _wrong(self) -> list[int]:
        """The rows whose checksum of TCP or UDP is wrong."""
        packets, shape, lengths = self._packets, self._shape, self._lengths
        # From the addresses, which are summed as well, up to the end of the row: padding is zeros, and where it isn't,
        # the packet is passed on alone.
        width = packets.shape[1] - shape.addresses
        words = packets[:, shape.addresses : shape.addresses + (width & ~1)].view("<u2")
        sums = np.add.reduce(words, axis=1, dtype=np.uint32)
        if width & 1:
            sums += packets[:, -1]
        sums %= 0xFFFF
        found = sums.tolist()
        rest = shape.protocol - shape.transport
        # Times 256, modulo 65,535, is the same as the two bytes swapped.
        right, last = (-256 * (length + rest) % 0xFFFF for length in (lengths[0], lengths[-1]))
        before = len(found) - 1
        if found[:-1].count(right) == before == lengths[:-1].count(lengths[0]):
            return [] if found[-1] == last else [before]
        return [
            row
            for row, (length, total) in enumerate(zip(lengths, found, strict=True))
            if total != -256 * (length + rest) % 0xFFFF
        ]

    def _head(self, row: int) -> bytes:
        at = row * self._shape.headers
        return self._heads[at : at + self._shape.headers]

    def _join(self, stretches: list[Span], lone: list[int]) -> list[list[Span]] | None:
        """What makes an item each; None if there is a packet of another kind. `lone` are rows to be left as they are."""
        shape = self._shape
        ports = shape.transport + 4
        items: list[list[Span]] = []
        last_of: dict[bytes, list[Span]] = {}
        for span in stretches:
            head = self._head(span[0])
            if not shape.fits(head):
                return None
            flow = head[shape.addresses : ports]
            # An IPv4 header that is wrong: so are all that go on from it.
            if span[0] in lone or (shape.version == 4 and checksum.remainder(head[:20])):
                items += [[(row, row + 1)] for row in range(*span)]
                last_of.pop(flow, None)
                continue
            before = last_of.get(flow)
            if before is not None and self._follows(before, span):
                before.append(span)
            else:
                last_of[flow] = item = [span]
                items.append(item)
        return items

    def _follows(self, before: list[Span], span: Span) -> bool:
        """Whether a stretch goes on where those before it ended."""
        lengths, shape = self._lengths, self._shape
        last, row, transport = before[-1][1] - 1, span[0], shape.transport
        one, other, length = self._head(last), self._head(row), lengths[before[0][0]]
        if (int.from_bytes(one) ^ int.from_bytes(other)) & int.from_bytes(self._same):
            return False
        if lengths[last] != length or lengths[row] > length or (lengths[row] < length and span[1] - row > 1):
            return False
        counted = shape.version == 4 and not other[6] & _DONT_FRAGMENT
        if counted and int.from_bytes(other[4:6]) != (int.from_bytes(one[4:6]) + 1) & 0xFFFF:
            return False
        if shape.protocol == UDP:
            return True
        ended = int.from_bytes(one[transport + 4 : transport + 8]) + length - shape.headers
        goes_on = int.from_bytes(other[transport + 4 : transport + 8]) == ended & 0xFFFFFFFF
        return goes_on and not one[transport + 13] & PSH

    def _item(self, spans: list[Span], payloads: memoryview, largest: int) -> Item:
        """`payloads` are those of all rows, `largest` bytes for each."""
        shape, lengths, headers = self._shape, self._lengths, self._shape.headers
        start, final = spans[0][0], spans[-1][1] - 1
        if final == start:
            return self._packets[start, : lengths[start]].tobytes()
        size, parts = lengths[start] - headers, []
        for first, end in spans:
            length = (end - first - 1) * size + lengths[end - 1] - headers
            if size == largest:
                parts.append(payloads[first * size : first * size + length])
            else:
                rows = self._packets[first:end, headers : headers + size]
                parts.append(memoryview(rows.tobytes())[:length])
        pushed = shape.protocol == TCP and bool(self._head(final)[shape.transport + 13] & PSH)
        made = joined_headers(
            self._head(start), shape.transport, headers + sum([len(part) for part in parts]), pushed=pushed
        )
        kind = header(shape.protocol, shape.transport, headers, size)
        return Merged(kind, b"".join((made, *parts)), sum([end - first for first, end in spans]))
