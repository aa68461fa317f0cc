"""Packs and checks trains: one ZeroMQ frame is one train. Each begins with the same 16 bytes:

    version 1 | kind 1 | takes 1 | age 1 | count 4 | stamp 8

A plain train is all that one visit to the TUN device found, or one train of datagrams opened. Its count is of packets,
where a super-packet counts for those it stands for. `takes` says what super-packets the device takes (TAKES_*, `offload`).

    item: length 4 | virtio_net_hdr 10 | packet        as it is read from the TUN device and written to it

A cipher train is a sequence of runs, and its count is of runs. A run is datagrams of one size to or from one endpoint; the
last may be shorter. UDP GSO sends a run in one call, and UDP GRO delivers it so. One frame may hold several runs, so that a
train of packets for several peers is still one message:

    run: endpoint 44 | size 2 | reserved 2 | length 4 | datagrams

A handshake frame is one message with its endpoint:

    endpoint 44 | message

A worker's mark is a header alone: `takes` is the worker's number, `count` the mark's. All packets that the worker judged
before lie in front of it.

All integers but those of the virtio_net_hdr are little endian. `stamp` is the birth of the train's oldest packet (s,
boot-time clock, a double): when the kernel took a datagram in, or tun-service read a packet. A worker passes it on. `age`
counts the whole ms from then until the sender made this train. A stage drops a train that is too old, so that no queue on
the way, nor all of them together, can turn into delay.
"""

import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from stagewire.limits import MAX_DATAGRAM, MAX_PACKET, MAX_SEGMENTS
from stagewire.proto import endpoint as places
from stagewire.proto.constants import MAX_INNER
from stagewire.proto.packets import fields, virtio
from stagewire.proto.packets.block import Block
from stagewire.proto.packets.merge import Item, Merged

VERSION: Final = 2
MAX_PACKETS: Final = MAX_SEGMENTS
"""A visit to the TUN device or a UDP socket takes this many at most: UDP GSO's limit, and fairness."""
REST: Final = 0.001
"""s since the last visit to a device or a socket, after which one packet is passed on at once; the next visit looks for
more. No two visits in a row do so: turns may be longer than this, and other packets wait behind."""
MAX_RUN: Final = MAX_DATAGRAM
"""Bytes of one run; one UDP GSO send carries no more."""
MAX_FRAME: Final = 160 * 1024
"""Bytes of packets in one frame; `names.MAX_TRAIN` leaves room for headers."""
MAX_ITEM: Final = fields.VNET_HEADER + MAX_PACKET
MAX_AGE: Final = 0.25
"""s; an older train is dropped."""
_MAX_AGE_MS: Final = 255

PLAIN: Final = 1
CIPHER: Final = 2
_HANDSHAKE: Final = 3
_MARK: Final = 4
HEADER: Final = struct.Struct("<BBBxId")
_AGED: Final = struct.Struct("<BBBBId")
_STAMP: Final = struct.Struct("<8xd")
AGE_AT: Final = 3
"""Offset of `age`."""
LENGTH: Final = struct.Struct("<I")
_LONE: Final = struct.Struct(f"<I{fields.VNET_HEADER}x")
"""Stands before a packet that is no super-packet: its length and an empty virtio_net_hdr."""
RUN: Final = struct.Struct(f"<{places.LENGTH}sHxxI")
_LONE_PLAIN: Final = struct.Struct(f"<BBxxIdI{fields.VNET_HEADER}s")
_IS_LONE: Final = (VERSION, PLAIN, 1, virtio.NONE)
_LONE_CIPHER: Final = struct.Struct(f"<BBxxId{places.LENGTH}sHxxI")

Data = bytes | mmap.mmap
"""Holds a received frame; slices of either type are bytes."""
Part = bytes | memoryview
"""A piece of a frame that is sent from several pieces of memory, and arrives whole."""
Run = tuple[bytes, Block]
"""(packed endpoint, datagrams)"""


class BadTrain(Exception):  # noqa: N818 - it is the sender's error
    """Reports a frame that is no train, of another version, or too old.

    `reason` names the counter that grows by `packets`: those in the frame, as far as is known.
    """

    def __init__(self, reason: str, packets: int = 1, version: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.packets = packets
        self.version = version
        """The frame's version, if that is wrong."""


def cut_packets(packets: Sequence[Item]) -> Iterable[Sequence[Item]]:
    """Cuts packets into pieces that fit a frame each; nearly always the one that was given."""
    sizes = [len(packet.packet if isinstance(packet, Merged) else packet) for packet in packets]
    if sum(sizes) <= MAX_FRAME:
        return [packets]
    return (packets[start:end] for start, end, _ in _cuts(sizes))


def cut_runs(runs: Sequence[tuple[bytes, Sequence[bytes]]]) -> Iterable[Sequence[tuple[bytes, Sequence[bytes]]]]:
    """Cuts runs into pieces that fit a frame each, in order; nearly always the one that was given."""
    total = sum([sum(map(len, datagrams)) for _, datagrams in runs])
    return [runs] if total <= MAX_FRAME else _cut_runs(runs)


def _cut_runs(runs: Iterable[tuple[bytes, Sequence[bytes]]]) -> Iterator[list[tuple[bytes, Sequence[bytes]]]]:
    piece: list[tuple[bytes, Sequence[bytes]]] = []
    size = 0
    for endpoint, datagrams in runs:
        sizes = list(map(len, datagrams))
        if piece and size + sum(sizes) > MAX_FRAME:
            yield piece
            piece, size = [], 0
        for start, end, length in _cuts(sizes):
            if piece and size + length > MAX_FRAME:
                yield piece
                piece, size = [], 0
            piece.append((endpoint, datagrams[start:end]))
            size += length
    if piece:
        yield piece


def _cuts(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, bytes) of pieces."""
    start = total = 0
    for position, size in enumerate(sizes):
        if total + size > MAX_FRAME and position > start:
            yield start, position, total
            start, total = position, 0
        total += size
    yield start, len(sizes), total


def weight(packets: Iterable[Item]) -> int:
    """Counts the packets that these stand for."""
    return sum([packet.segments if isinstance(packet, Merged) else 1 for packet in packets])


def age_of(born: float, now: float) -> int:
    """Returns the age (ms) of what was born then, as a header has it."""
    return int(min((now - born) * 1000, _MAX_AGE_MS)) if born < now - 0.001 else 0  # even if infinite


def born_of(frame: Data, begin: int) -> float:
    """Returns when the oldest packet of a train was born; infinite for an empty train. The train is known to be one."""
    _, _, _, count, stamp = HEADER.unpack_from(frame, begin)
    return float(stamp) if count else math.inf


def sent_of(frame: Data, begin: int) -> float:
    """Returns when its sender made a train, which is no shorter than a header."""
    (stamp,) = _STAMP.unpack_from(frame, begin)
    return float(stamp) + frame[begin + AGE_AT] * 0.001


def pack_plain(packets: Sequence[Item], now: float, takes: int = 0) -> bytes:
    """Packs a plain train."""
    return b"".join(plain_parts(packets, now, takes))


def plain_parts(packets: Sequence[Item], now: float, takes: int = 0, age: int = 0) -> list[Part]:
    """Packs a plain train, in parts; its oldest packet is `age` ms old. hot: bench pack_plain"""
    parts: list[Part] = [_AGED.pack(VERSION, PLAIN, takes, age, weight(packets), now - age * 0.001)]
    for packet in packets:
        if isinstance(packet, Merged):
            parts += (LENGTH.pack(fields.VNET_HEADER + len(packet.packet)), packet.header, packet.packet)
        else:
            parts += (_LONE.pack(fields.VNET_HEADER + len(packet)), packet)
    return parts


def unpack_plain_untrusted(frame: Data, now: float, begin: int = 0, end: int | None = None) -> list[Item]:
    """Returns the packets of a plain train, which lies in `frame` from `begin` to `end`. Raises BadTrain.

    Super-packets are only views, and their header is not judged yet (`split.open_untrusted`). hot: bench unpack_plain
    """
    found: list[Item] = []
    whole = memoryview(frame)
    for start, over, packets in spans_untrusted(frame, now, begin, end):
        packet = start + fields.VNET_HEADER
        header = frame[start:packet]
        if header != virtio.NONE:
            found.append(Merged(header, whole[packet:over], packets))
        elif over - packet <= MAX_INNER:
            found.append(frame[packet:over])
        else:  # its sender has changed the header meanwhile
            raise BadTrain("train_malformed")
    return found


def spans_untrusted(frame: Data, now: float, begin: int = 0, end: int | None = None) -> list[tuple[int, int, int]]:
    """Returns (start, end, packets) of a plain train's items, headers included. Raises BadTrain. hot: bench unpack_plain"""
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
        if offset > total or not fields.VNET_HEADER <= length <= MAX_ITEM:
            raise BadTrain("train_malformed")
        packet, packets = start + fields.VNET_HEADER, 1
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
    """Returns the packet of a plain train of one, if it is no super-packet. Raises BadTrain. hot: bench traffic

    None for any other train; `unpack_plain_untrusted` judges that.
    """
    start = begin + _LONE_PLAIN.size
    if start > end:
        return None
    version, kind, count, stamp, length, header = _LONE_PLAIN.unpack_from(frame, begin)
    if (
        (version, kind, count, header) != _IS_LONE
        or start + length != end + fields.VNET_HEADER
        or end - start > MAX_INNER
    ):
        return None
    _check_age(stamp, now, 1)
    return frame[start:end]


def pack_mark(worker: int, number: int, now: float) -> bytes:
    """Packs a worker's mark."""
    return HEADER.pack(VERSION, _MARK, worker, number, now)


def mark_untrusted(frame: Data, begin: int, end: int) -> tuple[int, int] | None:
    """Returns (worker, number) of a mark; None for anything else."""
    if end - begin != HEADER.size:
        return None
    version, kind, worker, number, _ = HEADER.unpack_from(frame, begin)
    return (worker, number) if (version, kind) == (VERSION, _MARK) else None


def takes_of(frame: Data, begin: int = 0) -> int:
    """Returns which super-packets the device takes that an unpacked plain train comes from."""
    return frame[begin + 2]


def pack_cipher(runs: Sequence[tuple[bytes, Sequence[bytes]]], now: float) -> bytes:
    """Packs a cipher train."""
    return b"".join(cipher_parts(runs, now))


def cipher_parts(runs: Sequence[tuple[bytes, Sequence[bytes]]], now: float, age: int = 0) -> list[Part]:
    """Packs a cipher train, in parts; its oldest datagram is `age` ms old. hot: bench pack_cipher

    Cuts an endpoint's datagrams into runs where sizes change.
    """
    if not age and len(runs) == 1 and len(runs[0][1]) == 1:
        endpoint, (datagram,) = runs[0]
        length = len(datagram)
        return [_LONE_CIPHER.pack(VERSION, CIPHER, 1, now, endpoint, length, length), datagram]
    parts: list[Part] = [b""]
    count = 0
    for endpoint, datagrams in runs:
        for size, run in _runs(datagrams):
            parts.append(RUN.pack(endpoint, size, sum(map(len, run))))
            parts += run
            count += 1
    parts[0] = _AGED.pack(VERSION, CIPHER, 0, age, count, now - age * 0.001)
    return parts


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
    """Returns the runs of a cipher train, as views. Raises BadTrain. hot: bench unpack_cipher"""
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
    """Returns (packed endpoint, datagram) of a cipher train of one datagram. Raises BadTrain. hot: bench traffic

    None for any other train; `unpack_cipher_untrusted` judges that.
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
    """Packs a handshake frame."""
    return HEADER.pack(VERSION, _HANDSHAKE, 0, 0, now) + endpoint + message


def unpack_handshake_untrusted(frame: Data, _now: float, begin: int = 0, end: int | None = None) -> tuple[bytes, bytes]:
    """Returns (packed endpoint, message) of a handshake frame. Raises BadTrain."""
    # A handshake that waited is still worth an answer: its own timestamp decides.
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
