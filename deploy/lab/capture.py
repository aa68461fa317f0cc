"""Sniffs on one interface, and runs two oracles on the frames: no nonce twice, no plain byte outside.

A train of equal datagrams (UDP GSO) passes a tap on a veth as one frame of up to 64 KB. Parsed as one frame, it would
hide all its datagrams but the first. PACKET_VNET_HDR tells where the cuts belong, and the capture makes them. So its
frames are those of a wire, and offloads can stay on.
"""

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from lab.namespaces import SO_RCVBUFFORCE, Namespace
from lab.wait import Bell

ETH_P_ALL: Final = 3
SOL_PACKET: Final = 263
PACKET_STATISTICS: Final = 6
PACKET_VNET_HDR: Final = 15
SO_TIMESTAMPNS: Final = 35
ARPHRD_ETHER: Final = 1
VIRTIO_NET_HDR: Final = struct.Struct("=BBHHHH")
VIRTIO_NET_HDR_GSO_UDP_L4: Final = 5
TIMESPEC: Final = struct.Struct("@ll")
TRANSPORT_HEADER: Final = struct.Struct("<IIQ")

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW: Final = 101
BATCH: Final = 512

Address = tuple[str, int]


class Frame(NamedTuple):
    """Holds a frame as it was on the wire. `time` is in seconds since 1970, stamped by the kernel."""

    time: float
    outgoing: bool
    data: bytes


class Datagram(NamedTuple):
    """Holds the payload of a frame that is UDP in IPv4 or IPv6."""

    time: float
    source: Address
    destination: Address
    payload: bytes


@dataclass(frozen=True, slots=True)
class DuplicateCounter:
    """Names a (destination, receiver, counter) that the capture saw more than once.

    `identical` tells a datagram that was duplicated or replayed on its way from a nonce used for two plaintexts.
    """

    destination: Address
    receiver: int
    counter: int
    times: int
    identical: bool


class Capture:
    """Collects all frames of an interface from the start of the context to its end, both ways.

    `snap` keeps only the first bytes of each frame, for long runs. 128 are enough for the nonce oracle: they include
    16 bytes of ciphertext, which tell identical datagrams from others.
    """

    def __init__(self, namespace: Namespace, interface: str, buffer: int = 64 << 20, snap: int | None = None) -> None:
        self.namespace, self.interface, self._snap = namespace, interface, snap
        self._buffer_size = buffer
        self._buffer = bytearray(1 << 17)
        self._frames: list[Frame] = []
        self._dropped = 0
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        self._socket = self.namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self._bell = Bell()
        tap = self._socket
        try:
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self._buffer_size)
            tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            tap.setblocking(False)
            tap.bind((self.interface, ETH_P_ALL))  # before it is bound the tap has no protocol, and so gets no frames
        except BaseException:
            tap.close()
            self._bell.close()
            raise
        self._ethernet = tap.getsockname()[3] == ARPHRD_ETHER  # a TUN device's packets have no link header
        self._thread = threading.Thread(target=self._run, name=f"capture-{self.interface}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.ring()
        self._thread.join()
        self._catch_up()
        self._count_dropped()
        self._closed = True
        self._socket.close()
        self._bell.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while not self._bell.rung:
            poll.poll()
            with self._lock:
                self._drain(time.time())

    def _drain(self, upto: float) -> bool:
        """Takes a batch of frames. Returns whether more may wait that arrived before `upto`."""
        for _ in range(BATCH):
            try:
                size, notes, _, address = self._socket.recvmsg_into([self._buffer], 64)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                return True  # the kernel reports once that the interface went down; frames follow when it is up again
            seconds, nanoseconds = TIMESPEC.unpack(notes[0][2])
            stamp = seconds + nanoseconds / 1e9
            _, gso, _, gso_size, _, _ = VIRTIO_NET_HDR.unpack_from(self._buffer)
            data = bytes(memoryview(self._buffer)[VIRTIO_NET_HDR.size : size])
            pieces = self._cut(data, gso_size) if gso == VIRTIO_NET_HDR_GSO_UDP_L4 else (data,)
            outgoing = address[2] == socket.PACKET_OUTGOING
            self._frames.extend(Frame(stamp, outgoing, piece[: self._snap]) for piece in pieces)
            if stamp > upto:
                return False
        return True

    def _cut(self, data: bytes, size: int) -> Iterator[bytes]:
        """Yields the frames of a UDP GSO frame. UDP checksums stay as offloading leaves them."""
        network = 14 if self._ethernet else 0
        version = data[network] >> 4
        transport = network + (40 if version == 6 else (data[network] & 15) * 4)
        for start in range(transport + 8, len(data), size):
            payload = data[start : start + size]
            header = bytearray(data[: transport + 8])
            if version == 6:
                struct.pack_into("!H", header, network + 4, 8 + len(payload))
            else:
                struct.pack_into("!H", header, network + 2, len(header) - network + len(payload))
                struct.pack_into("!H", header, network + 10, 0)
                struct.pack_into("!H", header, network + 10, _internet_checksum(header[network:transport]))
            struct.pack_into("!H", header, transport + 4, 8 + len(payload))
            yield bytes(header) + payload

    def _catch_up(self) -> None:
        if not self._closed:
            now = time.time()
            with self._lock:
                while self._drain(now):
                    pass

    def _count_dropped(self) -> None:
        if not self._closed:  # reading the count sets it to zero
            statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
            self._dropped += struct.unpack("=II", statistics)[1]

    @property
    def dropped(self) -> int:
        """Counts the frames that the kernel could not keep. The oracles prove nothing unless it is 0."""
        self._count_dropped()
        return self._dropped

    def frames(self) -> list[Frame]:
        """Returns all frames until now, with those still in the kernel's buffer."""
        self._catch_up()
        return self._frames.copy()

    def datagrams(self, port: int | None = None, since: float = 0) -> list[Datagram]:
        """Returns the UDP datagrams from or to `port`, in order, without fragments."""
        parsed = (self._datagram(frame) for frame in self.frames() if frame.time >= since)
        return [each for each in parsed if each and port in (None, each.source[1], each.destination[1])]

    def _datagram(self, frame: Frame) -> Datagram | None:
        packet = frame.data[14:] if self._ethernet else frame.data
        with contextlib.suppress(struct.error, IndexError):  # the packet is shorter than its headers say
            if packet[0] >> 4 == 4:
                fragment, protocol = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF, packet[9]
                at = (packet[0] & 15) * 4
                family, source, destination = socket.AF_INET, packet[12:16], packet[16:20]
            elif packet[0] >> 4 == 6:
                fragment, protocol, at = 0, packet[6], 40
                family, source, destination = socket.AF_INET6, packet[8:24], packet[24:40]
            else:
                return None
            if fragment or protocol != socket.IPPROTO_UDP:
                return None
            from_port, to_port, length = struct.unpack_from("!HHH", packet, at)
            return Datagram(
                frame.time,
                (socket.inet_ntop(family, source), from_port),
                (socket.inet_ntop(family, destination), to_port),
                packet[at + 8 : at + length],
            )
        return None

    def duplicate_counters(self, port: int | None = None, source: str | None = None) -> list[DuplicateCounter]:
        """Finds nonces used twice. `source` limits the search to one sender, which cannot help replays towards it."""
        seen: dict[tuple[Address, int, int], list[bytes]] = defaultdict(list)
        for datagram in self.datagrams(port):
            if len(datagram.payload) >= TRANSPORT_HEADER.size and source in (None, datagram.source[0]):
                kind, receiver, counter = TRANSPORT_HEADER.unpack_from(datagram.payload)
                if kind == 4:
                    seen[datagram.destination, receiver, counter].append(datagram.payload)
        return [
            DuplicateCounter(*key, times=len(payloads), identical=len(set(payloads)) == 1)
            for key, payloads in seen.items()
            if len(payloads) > 1
        ]

    def assert_no_duplicate_counters(self, port: int | None = None, source: str | None = None) -> None:
        """Raises AssertionError if a nonce was used twice or the capture missed a frame."""
        duplicates = self.duplicate_counters(port, source)
        if duplicates:
            raise AssertionError(f"{len(duplicates)} nonces seen more than once, the first {duplicates[:5]}")
        if self.dropped:
            raise AssertionError(f"the capture on {self.interface} missed {self.dropped} frames")

    def contains(self, plain: bytes) -> bool:
        """Tells whether any frame carries these bytes as they are."""
        return any(plain in frame.data for frame in self.frames())

    def write_pcap(self, path: Path) -> None:
        """Writes the frames as nanosecond pcap, for Wireshark."""
        link = LINKTYPE_ETHERNET if self._ethernet else LINKTYPE_RAW
        with path.open("wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, link))
            for frame in self.frames():
                seconds, size = int(frame.time), len(frame.data)
                nanoseconds = int((frame.time - seconds) * 1e9)
                file.write(struct.pack("<IIII", seconds, nanoseconds, size, size) + frame.data)


def _internet_checksum(header: bytes | bytearray) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
