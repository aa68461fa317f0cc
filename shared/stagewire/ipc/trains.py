"""Data-plane framing: one ZeroMQ frame is one train. Each begins with the same 16 bytes:

    version 1 | kind 1 | takes 1 | reserved 1 | count 4 | stamp 8

A plain train is whatever one visit to the TUN device found, or one train of datagrams opened. Its count is of packets,
where a super-packet counts for those it stands for. `takes` says what super-packets the device takes (TAKES_*, `offload`).

    item: length 4 | virtio_net_hdr 10 | packet        as it is read from the TUN device and written to it

A cipher train is a sequence of runs, which its count is of. A run is datagrams of one size to (or from) one endpoint, of
which the last may be shorter: what UDP GSO sends and UDP GRO delivers in one call. One frame may hold several runs, so that
a train of packets for several peers is still one message:

    run: endpoint 44 | size 2 | reserved 2 | length 4 | datagrams

A handshake frame is one message with its place:

    endpoint 44 | message

All integers but those of the virtio_net_hdr are little endian. `stamp` is when the train was made (s, boot-time clock, as a
double): a train that is too old when it is met is dropped, so that no queue on the way can turn into delay.
"""

import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from stagewire.proto import endpoint as places
from stagewire.proto.constants import MAX_INNER, TRANSPORT_OVERHEAD
from stagewire.proto.offload import virtio
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.coalesce import Item, Merged

VERSION: Final = 2
MAX_PACKETS: Final = 64
"""A visit to the TUN device or a UDP socket takes this many at most: UDP GSO's limit, and fairness."""
REST: Final = 0.001
"""s since the last visit to a device or a socket, after which one packet is passed on at once: whether it is alone is looked
for in the next turn. Not two visits in a row do so: turns may be longer than this, and others wait behind it."""
MAX_RUN: Final = 65507
"""Bytes of one run: what one UDP GSO send can carry."""
MAX_FRAME: Final = 160 * 1024
"""Bytes of packets in one frame; `endpoints.MAX_TRAIN`, beyond which ZeroMQ cuts the line, leaves room for headers."""
MAX_ITEM: Final = virtio.LENGTH + 65535
MAX_AGE: Final = 0.25
"""s; an older train is dropped."""

PLAIN: Final = 1
CIPHER: Final = 2
_HANDSHAKE: Final = 3
HEADER: Final = struct.Struct("<BBBxId")
LENGTH: Final = struct.Struct("<I")
_LONE: Final = struct.Struct(f"<I{virtio.LENGTH}x")
"""What is before a packet that stands for itself: its length and an empty virtio_net_hdr."""
RUN: Final = struct.Struct(f"<{places.LENGTH}sHxxI")
_LONE_PLAIN: Final = struct.Struct(f"<BBxxIdI{virtio.LENGTH}s")
_IS_LONE: Final = (VERSION, PLAIN, 1, virtio.NONE)
_LONE_CIPHER: Final = struct.Struct(f"<BBxxId{places.LENGTH}sHxxI")

Data = bytes | mmap.mmap
"""Where a frame lies that came: slices of either are bytes."""
Part = bytes | memoryview
"""Of a frame that is sent as several pieces of memory one after another, and is whole again where it arrives."""
Run = tuple[bytes, Block]
"""(packed endpoint, datagrams)"""


class BadTrain(Exception):  # noqa: N818 - it is the sender's error
    """A frame that is no train, of another version, or too old.

    `reason` is the name of the counter it adds to, `packets` how much: those in it, as far as it can be told.
    """

    def __init__(self, reason: str, packets: int = 1, version: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.packets = packets
        self.version = version
        """The one it is of, where that is what is wrong."""


def cut_packets(packets: Sequence[Item]) -> Iterable[Sequence[Item]]:
    """Pieces that fit a frame each; nearly always the one that was given."""
    sizes = [len(packet.packet if isinstance(packet, Merged) else packet) for packet in packets]
    if sum(sizes) <= MAX_FRAME:
        return [packets]
    return (packets[start:end] for start, end, _ in _cuts(sizes))


def cut_runs(runs: Sequence[tuple[bytes, Sequence[bytes]]]) -> Iterable[Sequence[tuple[bytes, Sequence[bytes]]]]:
    """Pieces that fit a frame each, in order; nearly always the one that was given."""
    total = 0
    for _, datagrams in runs:
        total += len(datagrams.data) if isinstance(datagrams, Block) else sum(map(len, datagrams))
    return [runs] if total <= MAX_FRAME else _cut_runs(runs)


def _cut_runs(runs: Iterable[tuple[bytes, Sequence[bytes]]]) -> Iterator[list[tuple[bytes, Sequence[bytes]]]]:
    piece: list[tuple[bytes, Sequence[bytes]]] = []
    size = 0
    for endpoint, datagrams in runs:
        for part, length in _parts(datagrams):
            if piece and size + length > MAX_FRAME:
                yield piece
                piece, size = [], 0
            piece.append((endpoint, part))
            size += length
    if piece:
        yield piece


def _parts(datagrams: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], int]]:
    if isinstance(datagrams, Block):
        yield datagrams, len(datagrams.data)
        return
    for start, end, size in _cuts(list(map(len, datagrams))):
        yield datagrams[start:end], size


def _cuts(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes) of pieces."""
    start = total = 0
    for position, size in enumerate(sizes):
        if total + size > MAX_FRAME and position > start:
            yield start, position, total
            start, total = position, 0
        total += size
    yield start, len(sizes), total


def weight(packets: Iterable[Item]) -> int:
    """How many packets these stand for."""
    return sum([packet.segments if isinstance(packet, Merged) else 1 for packet in packets])


def pack_plain(packets: Sequence[Item], now: float, takes: int = 0) -> bytes:
    """A plain train."""
    return b"".join(plain_parts(packets, now, takes))


def plain_parts(packets: Sequence[Item], now: float, takes: int = 0) -> list[Part]:
    """A plain train, in parts. Hot: 0.25 us per packet in a train of 64, 0.7 us for one alone."""
    parts: list[Part] = [HEADER.pack(VERSION, PLAIN, takes, weight(packets), now)]
    for packet in packets:
        if isinstance(packet, Merged):
            parts += (LENGTH.pack(virtio.LENGTH + len(packet.packet)), packet.header, packet.packet)
        else:
            parts += (_LONE.pack(virtio.LENGTH + len(packet)), packet)
    return parts


def unpack_plain_untrusted(frame: Data, now: float, begin: int = 0, end: int | None = None) -> list[Item]:
    """The packets of a plain train, which lies in `frame` from `begin` to `end`. Raises BadTrain.

    Hot: 0.5 us per packet, 1 us per super-packet.
    Super-packets are only views, and what their header says is not judged yet (`segment.open_untrusted`).
    """
    found: list[Item] = []
    whole = memoryview(frame)
    for start, over, packets in spans_untrusted(frame, now, begin, end):
        packet = start + virtio.LENGTH
        if frame[start:packet] == virtio.NONE:
            found.append(frame[packet:over])
        else:
            found.append(Merged(frame[start:packet], whole[packet:over], packets))
    return found


def spans_untrusted(frame: Data, now: float, begin: int = 0, end: int | None = None) -> list[tuple[int, int, int]]:
    """(start, end, packets it stands for) of a plain train's items, headers included. Raises BadTrain.

    Hot: 0.35 us per item.
    """
    total = len(frame) if end is None else end
    count, stamp = _open(frame, PLAIN, begin, total)
    spans, counted = [], 0
    offset = begin + HEADER.size
    while offset < total:
        start = offset + LENGTH.size
        if start > total:
            raise BadTrain("train_malformed")
        (length,) = LENGTH.unpack_from(frame, offset)
        offset = start + length
        if offset > total or not virtio.LENGTH <= length <= MAX_ITEM:
            raise BadTrain("train_malformed")
        packet, packets = start + virtio.LENGTH, 1
        if frame[start:packet] != virtio.NONE:
            packets = virtio.count(frame[start:packet], offset - packet)
        if packets == 1 and offset - packet > MAX_INNER:
            raise BadTrain("train_malformed")  # no datagram carries it
        spans.append((start, offset, packets))
        counted += packets
    if count != counted:
        raise BadTrain("train_malformed")
    _check_age(stamp, now, count)
    return spans


def lone_untrusted(frame: Data, now: float, begin: int, end: int) -> bytes | None:
    """The packet of a plain train that is the only one and stands for itself. Raises BadTrain.

    None for whatever else; then `unpack_plain_untrusted` is to tell. Hot: 0.3 us.
    """
    start = begin + _LONE_PLAIN.size
    if start > end:
        return None
    version, kind, count, stamp, length, header = _LONE_PLAIN.unpack_from(frame, begin)
    if (version, kind, count, header) != _IS_LONE or start + length != end + virtio.LENGTH or end - start > MAX_INNER:
        return None
    _check_age(stamp, now, 1)
    return frame[start:end]


def stride_untrusted(frame: Data, now: float, begin: int = 0, end: int | None = None) -> tuple[int, int, int] | None:
    """(start, stride, bytes before each virtio_net_hdr) of a plain train that looks as if all items had one length.

    None for another; then `unpack_plain_untrusted` is to tell. Whether it is so is for `uniform.of_items` to see. Raises
    BadTrain. Hot: 1 us.
    """
    total = len(frame) if end is None else end
    count, stamp = _open(frame, PLAIN, begin, total)
    start = begin + HEADER.size
    if total < start + LENGTH.size:
        return None
    stride = LENGTH.size + LENGTH.unpack_from(frame, start)[0]
    if stride * count != total - start or stride < LENGTH.size + virtio.LENGTH:
        return None
    _check_age(stamp, now, count)
    return start, stride, LENGTH.size


def takes_of(frame: Data, begin: int = 0) -> int:
    """What super-packets the device takes that a plain train, already unpacked, comes from."""
    return frame[begin + 2]


def pack_cipher(runs: Sequence[tuple[bytes, Sequence[bytes]]], now: float) -> bytes:
    """A cipher train."""
    return b"".join(cipher_parts(runs, now))


def cipher_parts(runs: Sequence[tuple[bytes, Sequence[bytes]]], now: float) -> list[Part]:
    """A cipher train, in parts; datagrams of one endpoint are cut into runs of one size where sizes change.

    Hot: 0.2 us per 1,452-byte datagram in a train of 64, 0.4 us for one alone, 0.5 us for a block.
    """
    if len(runs) == 1 and len(runs[0][1]) == 1:
        endpoint, (datagram,) = runs[0]
        length = len(datagram)
        return [_LONE_CIPHER.pack(VERSION, CIPHER, 1, now, endpoint, length, length), datagram]
    parts: list[Part] = [b""]
    count = 0
    goes_on: tuple[bytes, Block] | None = None
    """A run that a shorter datagram may end."""
    for endpoint, datagrams in runs:
        if isinstance(datagrams, Block):
            parts += (RUN.pack(endpoint, datagrams.size, len(datagrams.data)), datagrams.data)
            count += 1
            goes_on = (endpoint, datagrams)
            continue
        rest = datagrams
        if goes_on is not None and endpoint == goes_on[0] and _ends(goes_on[1], datagrams[0]):
            block = goes_on[1]
            parts[-2:] = (RUN.pack(endpoint, block.size, len(block.data) + len(datagrams[0])), block.data, datagrams[0])
            rest = datagrams[1:]
        for size, run in _runs(rest):
            parts.append(RUN.pack(endpoint, size, sum(map(len, run))))
            parts += run
            count += 1
        goes_on = None
    parts[0] = HEADER.pack(VERSION, CIPHER, 0, count, now)
    return parts


def _ends(block: Block, datagram: bytes) -> bool:
    """Whether a datagram can be the last, shorter one of a run before it.

    An acknowledgement, mostly, that so costs nobody a visit of its own. Not an empty packet, for which the receiver would
    have to go through the run one by one.
    """
    size, length = block.size, len(block.data)
    return (
        TRANSPORT_OVERHEAD < len(datagram) <= size
        and length % size == 0
        and length + len(datagram) <= MAX_RUN
        and length < size * MAX_PACKETS
    )


def _runs(datagrams: Sequence[bytes]) -> Iterable[tuple[int, Sequence[bytes]]]:
    start = 0
    size = total = 0
    for position, datagram in enumerate(datagrams):
        length = len(datagram)
        full = position - start == MAX_PACKETS or total + length > MAX_RUN
        # A shorter one ends its run, and a longer one cannot be in it.
        if position > start and (full or length > size or len(datagrams[position - 1]) < size):
            yield size, datagrams[start:position]
            start, total = position, 0
        if position == start:
            size = length
        total += length
    if datagrams:
        yield size, datagrams[start:]


def unpack_cipher_untrusted(frame: Data, now: float, begin: int = 0, end: int | None = None) -> list[Run]:
    """The runs of a cipher train, as views. Raises BadTrain. Hot: 1.2 us for each run."""
    total = len(frame) if end is None else end
    count, stamp = _open(frame, CIPHER, begin, total)
    runs = []
    view, offset = memoryview(frame), begin + HEADER.size
    for _ in range(count):
        start = offset + RUN.size
        if start > total:
            raise BadTrain("train_malformed")
        endpoint, size, length = RUN.unpack_from(frame, offset)
        offset = start + length
        if offset > total or not size or not length or length > size * MAX_PACKETS:
            raise BadTrain("train_malformed")
        runs.append((endpoint, Block(view[start:offset], size)))
    if offset != total:
        raise BadTrain("train_malformed")
    _check_age(stamp, now, sum([len(datagrams) for _, datagrams in runs]))
    return runs


def lone_run_untrusted(frame: Data, now: float, begin: int, end: int) -> tuple[bytes, bytes] | None:
    """(packed endpoint, datagram) of a cipher train that has only one. Raises BadTrain.

    None for whatever else; then `unpack_cipher_untrusted` is to tell. Hot: 0.3 us.
    """
    start = begin + _LONE_CIPHER.size
    if start >= end:
        return None
    version, kind, count, stamp, endpoint, size, length = _LONE_CIPHER.unpack_from(frame, begin)
    if (version, kind, count) != (VERSION, CIPHER, 1) or start + length != end or length > size:
        return None
    _check_age(stamp, now, 1)
    return endpoint, frame[start:end]


def pack_handshake(endpoint: bytes, message: bytes, now: float) -> bytes:
    """A handshake frame."""
    return HEADER.pack(VERSION, _HANDSHAKE, 0, 0, now) + endpoint + message


def unpack_handshake_untrusted(frame: Data, _now: float, begin: int = 0, end: int | None = None) -> tuple[bytes, bytes]:
    """(packed endpoint, message) of a handshake frame. Raises BadTrain."""
    # A handshake that waited is still worth an answer; the timestamp in it decides, not ours.
    total = len(frame) if end is None else end
    _open(frame, _HANDSHAKE, begin, total)
    endpoint = begin + HEADER.size
    message = endpoint + places.LENGTH
    if total <= message:
        raise BadTrain("train_malformed")
    return frame[endpoint:message], frame[message:total]


def _open(frame: Data, expected: int, begin: int, end: int) -> tuple[int, float]:
    if end - begin < HEADER.size:
        raise BadTrain("train_malformed")
    version, kind, _, count, stamp = HEADER.unpack_from(frame, begin)
    if version != VERSION:
        raise BadTrain("train_of_unknown_version", version=version)
    if kind != expected:
        raise BadTrain("train_malformed")
    return count, stamp


def _check_age(stamp: float, now: float, packets: int) -> None:
    if not now - stamp <= MAX_AGE:  # also for a stamp that is no number
        raise BadTrain("train_too_old", packets)
