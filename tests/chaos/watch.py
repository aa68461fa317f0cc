"""Watches the outer link at all times in a process of its own, which also replays recorded datagrams.

Packets from the gateway must repeat no (receiver index, counter) and go only to the peers' real places. So the
gateway answers no replay, and no replay moves an endpoint. No frame may carry a plain byte, and only the tunnels'
datagrams may pass. The watch judges every datagram of a train that passes the tap as one frame.
"""

import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

from tests.chaos.children import Child
from tests.chaos.record import Record
from tests.chaos.replay import Cellar, Replayer
from tests.chaos.stream import MARKER

from lab.capture import (
    ETH_P_ALL,
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    SOL_PACKET,
    VIRTIO_NET_HDR,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from lab.namespaces import SO_RCVBUFFORCE, Namespace

BUFFER: Final = 128 << 20
TURN_MS: Final = 10
BATCH: Final = 2000
NICE: Final = 2
IP, UDP, PAYLOAD = 24, 44, 52
"""Offsets behind the kernel's own header and Ethernet's, in IPv4 without options."""
INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4
KNOWN_KINDS: Final = {0x0806, 0x86DD}
"""ARP, and IPv6, which only finds neighbours here."""
FARTHEST: Final = 1 << 26
SHOWN: Final = 20


@dataclass(slots=True)
class Findings:
    """Collects violations in words; the record has the counts."""

    violations: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Keeps the first violations."""
        if len(self.violations) < SHOWN:
            self.violations.append(f"{time.strftime('%H:%M:%S')} {text}")


class Watch(Child):
    """Runs the process. `peers` are their outer places by number; `gateway` is the watched one."""

    def __init__(
        self,
        record: Record,
        wire: tuple[Namespace, str],
        attacker: Namespace,
        gateway: tuple[str, int],
        peers: dict[int, tuple[str, int]],
        seed: int,
    ) -> None:
        """Takes `wire`, the gateway's end of the link, and `attacker`, the namespace that replays come from."""
        super().__init__("watch", self._work, NICE)
        self._record, self._wire, self._attacker = record, wire, attacker
        self._gateway, self._random = gateway, random.Random(seed)
        self._places = peers
        self._peers = {_place(*place): number for number, place in peers.items()}
        self._findings = Findings()
        self._seen: dict[bytes, bytearray] = {}

    def replay(self, count: int) -> int:
        """Replays up to `count` served datagrams. Returns how many there were to replay."""
        return int(self.ask(("replay", count)))

    def violations(self) -> list[str]:
        """Returns the first violations in words."""
        return list(self.ask(("violations", 0)))

    def _work(self, line: Connection) -> None:
        namespace, interface = self._wire
        tap = namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        tap.setblocking(False)
        tap.bind((interface, ETH_P_ALL))
        self._cellar = Cellar(self._record, self._random)
        self._replayer = Replayer(self._attacker, self._gateway, self._places, self._random)
        poll = select.poll()
        for each in (tap, line):
            poll.register(each, select.POLLIN)
        while True:
            ready = poll.poll(100)
            while self._drain(tap):
                pass
            missed = struct.unpack("=II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
            self._record.add("missed", missed)
            if any(descriptor == line.fileno() for descriptor, _ in ready):
                self._answer(line)
            else:
                time.sleep(TURN_MS / 1000)  # many frames at a time cost less

    def _answer(self, line: Connection) -> None:
        what, count = line.recv()
        if what == "violations":
            line.send(self._findings.violations)
            return
        chosen = self._cellar.choose(count)
        self._replayer.play(chosen)
        self._record.add("replayed", len(chosen))
        line.send(len(chosen))

    def _drain(self, tap: socket.socket) -> bool:
        buffer = bytearray(1 << 17)
        receive, find, now = tap.recvfrom_into, buffer.find, time.time()
        for count in range(BATCH):
            try:
                size, address = receive(buffer)
            except BlockingIOError:
                self._record.add("frames", count)
                return False
            if find(MARKER, 0, size) >= 0:
                self._record.add("plain")
                self._findings.add(f"plain bytes on the outer link, in a frame of {size} bytes")
            outgoing = address[2] == socket.PACKET_OUTGOING
            self._judge(buffer, size, now, outgoing=outgoing)
        self._record.add("frames", BATCH)
        return True

    def _judge(self, frame: bytearray, size: int, now: float, *, outgoing: bool) -> None:
        """Judges a frame, fastest for UDP in IPv4. Hot."""
        if frame[22:25] != b"\x08\x00\x45" or frame[33] != socket.IPPROTO_UDP:
            self._other(frame, size)
            return
        far = bytes(frame[40:44] + frame[46:48]) if outgoing else bytes(frame[36:40] + frame[44:46])
        peer = self._peers.get(far)
        end = min(size, UDP + int.from_bytes(frame[48:50], "big"))
        step = end
        if frame[1] == VIRTIO_NET_HDR_GSO_UDP_L4:
            end, step = size, VIRTIO_NET_HDR.unpack_from(frame)[3]
        handle = self._leaves if outgoing else self._arrives
        for start in range(PAYLOAD, end, step):
            handle(far, peer, frame[start : min(end, start + step)], now)

    def _other(self, frame: bytearray, size: int) -> None:
        kind = int.from_bytes(frame[22:24], "big")
        if kind in KNOWN_KINDS or (kind == 0x0800 and frame[33] == socket.IPPROTO_ICMP):
            return  # ICMP quotes a datagram that met no socket; the search for MARKER has covered that
        self._record.add("unexpected")
        self._findings.add(f"{size} bytes of type {kind:#06x}, protocol {frame[33]}, that belong to no tunnel")

    def _leaves(self, far: bytes, peer: int | None, datagram: bytearray, _now: float) -> None:
        record, cells = self._record, self._record.cells
        cells[record.place("out")] += 1
        kind = datagram[0] if len(datagram) >= 32 and datagram[1:4] == b"\0\0\0" else 0
        if peer is None and kind == COOKIE_REPLY:
            record.add("cookies_to_strangers")  # under load a cookie reply precedes any check of the sender
        elif peer is None:
            record.add("strange")
            self._findings.add(
                f"the gateway sent a datagram of type {kind} to {_spelled(far)}, which is no peer's place"
            )
        if kind == TRANSPORT:
            self._count(far[:4] + datagram[4:8], int.from_bytes(datagram[8:16], "little"))
            self._cellar.confirmed(bytes(datagram[4:8]))
        elif kind == RESPONSE:
            record.add("responses_out")
            self._cellar.answered(bytes(datagram[8:12]))
        elif kind == INITIATION:
            record.add("initiations_out")
        elif kind != COOKIE_REPLY:
            record.add("unexpected")
            self._findings.add(f"the gateway sent {len(datagram)} bytes that are no message")

    def _count(self, session: bytes, counter: int) -> None:
        seen = self._seen.get(session)
        if seen is None:
            seen = self._seen[session] = bytearray(4096)
        if counter >= len(seen):
            if counter > FARTHEST:
                raise RuntimeError(f"the gateway sent with counter {counter}, beyond {FARTHEST}")
            seen.extend(bytes(counter + 4096 - len(seen)))
        if seen[counter]:
            self._record.add("counters_again")
            self._findings.add(f"receiver {session[4:].hex()} counter {counter} left twice")
        seen[counter] = 1
        self._record.cells[self._record.place("counters")] += 1

    def _arrives(self, _far: bytes, peer: int | None, datagram: bytearray, now: float) -> None:
        if peer is None or len(datagram) < 32:
            return  # replays
        self._record.cells[self._record.place("into")] += 1
        if datagram[0] == TRANSPORT:
            self._record.set_home(peer, datagram[4])
        self._cellar.keep(peer, datagram, now)


def _place(address: str, port: int) -> bytes:
    return socket.inet_aton(address) + port.to_bytes(2, "big")


def _spelled(place: bytes) -> str:
    return f"{socket.inet_ntoa(place[:4])}:{int.from_bytes(place[4:], 'big')}"
