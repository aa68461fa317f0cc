"""A `set` is answered once it holds: afterwards no packet comes from a prefix's former owner, and none goes to it.

Two peers send and are sent as much as this process can. The kernel's time of each packet is compared with the time of each
answer. MOVES in the environment sets how often a prefix moves.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
from tests.far_peer import FarPeer

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.wait import until
from lab.wg import WgHub, hexadecimal, say
from stagewire.config import decode_key
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.messages import BadMessage

pytestmark = pytest.mark.system

MOVES = int(os.environ.get("MOVES", "100"))
REMOVALS = max(6, MOVES // 20)
MOVED, PORT = "10.99.0.1", 4747
SPOKES = {"a": Spoke(1), "b": Spoke(2)}
SO_TIMESTAMPNS = 35
TRAIN = 4
PATIENCE = 20


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return int(~(total + (total >> 16)) & 0xFFFF)


def datagram(source: str, destination: str, body: bytes) -> bytes:
    """An IPv4 packet with UDP in it, as the kernel takes it."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0) + addresses
    head = head[:10] + checksum(head).to_bytes(2) + head[12:]
    return head + struct.pack("!HHHH", PORT, PORT, 8 + len(body), 0) + body


class Arrivals:
    """What came to a socket, and when, by the kernel's clock (ns since 1970)."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        opened.settimeout(0.1)
        self.seen: list[tuple[int, bytes]] = []

    def read(self) -> bytes:
        """The next, or nothing."""
        try:
            data, notes, _, _ = self.socket.recvmsg(2048, 64)
        except TimeoutError:
            return b""
        seconds, nanoseconds = struct.unpack("@ll", notes[0][2])
        self.seen.append((seconds * 10**9 + nanoseconds, data))
        return data


class Far:
    """A peer and its socket. It sends packets from MOVED whoever may, and reads what it gets."""

    def __init__(self, network: Topology, hub: WgHub, name: str) -> None:
        self.name, spoke = name, SPOKES[name]
        place = Endpoint(ip_address(Topology.B4).packed, hub.port).pack()
        self.peer = FarPeer(decode_key(hub.keys.public), decode_key(spoke.keys.private), place)
        self.key = hexadecimal(spoke.keys.public)
        self.arrivals = Arrivals(network.a.udp_socket(Topology.A4))
        self._to = (Topology.B4, hub.port)
        self._packets = [datagram(MOVED, SPOKES["a"].gateway_inner[0], name.encode() * 64)] * TRAIN
        self.may_send = False

    def shake_hands(self) -> None:
        def answered() -> bool:
            self._send([self.peer.initiation()])
            while data := self.arrivals.read():
                if data[:1] == bytes([c.TYPE_RESPONSE]):
                    with suppress(BadMessage):  # the answer to the initiation before
                        for _, datagrams in self.peer.take(data).runs:
                            self._send(datagrams)
                        return True
            return False

        until(answered, PATIENCE, "a response")

    def send(self) -> None:
        self._send(self.peer.sealed(*self._packets))

    def _send(self, datagrams: Iterable[bytes]) -> None:
        for each in datagrams:
            self.arrivals.socket.sendto(each, self._to)

    def got(self) -> list[tuple[int, bytes]]:
        """The packets with something in them."""
        return [
            (at, self.name.encode())
            for at, data in self.arrivals.seen
            if data[:1] == bytes([c.TYPE_TRANSPORT]) and len(data) > c.TRANSPORT_OVERHEAD
        ]


class Traffic:
    """Threads that send and read until the end."""

    def __init__(self, network: Topology, *fars: Far) -> None:
        self._os = network.b.udp_socket("0.0.0.0", PORT)
        self.delivered = Arrivals(self._os)
        self._fars = fars
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        self._threads += [threading.Thread(target=self._read, args=(far,), daemon=True) for far in fars]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()
        self._os.close()

    def _send(self) -> None:
        while not self._over.is_set():
            for far in self._fars:
                if far.may_send:
                    far.send()
            for _ in range(TRAIN):
                with suppress(OSError):  # no peer has it for a moment
                    self._os.sendto(b"out" * 20, (MOVED, PORT))
            time.sleep(0.002)  # lets the other threads have the interpreter

    def _receive(self) -> None:
        while not self._over.is_set():
            self.delivered.read()

    def _read(self, far: Far) -> None:
        while not self._over.is_set():
            if far.may_send:
                far.arrivals.read()
            else:
                time.sleep(0.001)

    def came_from(self, far: Far, since: int) -> bool:
        """Whether the OS got a packet of a peer's after that time."""
        return any(at > since and data[:1] == far.name.encode() for at, data in reversed(self.delivered.seen[-50:]))


class Changes:
    """Makes changes, and notes when each began and was answered."""

    def __init__(self, hub: WgHub) -> None:
        self._hub = hub
        self.made: list[tuple[int, int, bytes]] = []
        """(begun, answered, name of the owner from then on), in ns since 1970."""

    def make(self, text: str, owner: str) -> int:
        begun = time.time_ns()
        assert say(self._hub.name, f"set=1\n{text}\n") == b"errno=0\n\n"
        self.made.append((begun, time.time_ns(), owner.encode()))
        return self.made[-1][1]

    def late(self, packets: list[tuple[int, bytes]]) -> list[float]:
        """How long (ms) after an answer packets passed that may not."""
        found = []
        ends = [*[begun for begun, _, _ in self.made[1:]], time.time_ns()]
        for (_, answered, owner), end in zip(self.made, ends, strict=True):
            found += [(at - answered) / 1e6 for at, data in packets if answered < at < end and data[:1] != owner]
        return found


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("w") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    with WgHub(network.b, shared_directory, SPOKES) as hub:
        yield hub


@pytest.fixture
def fars(network: Topology, hub: WgHub) -> Iterator[list[Far]]:
    """Both peers, with sessions."""
    found = [Far(network, hub, name) for name in SPOKES]
    for far in found:
        far.shake_hands()
        far.may_send = True
    with ExitStack() as stack:
        for far in found:
            stack.callback(far.arrivals.socket.close)
        yield found


def test_a_prefix_moves_between_peers(network: Topology, hub: WgHub, fars: list[Far]) -> None:
    changes = Changes(hub)
    with Traffic(network, *fars) as traffic:
        for number in range(MOVES):
            far = fars[number % 2]
            answered = changes.make(f"public_key={far.key}\nallowed_ip={MOVED}/32\n", far.name)
            until(lambda far=far, at=answered: traffic.came_from(far, at), PATIENCE, f"packets of {far.name}")  # type: ignore[misc]
    delivered, sent = traffic.delivered.seen, [each for far in fars for each in far.got()]
    print(f"{MOVES} moves: {len(delivered)} packets delivered, {len(sent)} sent")
    print(f"longest answer {max(b - a for a, b, _ in changes.made) / 1e6:.1f} ms")
    assert min(len(fars[n].got()) for n in (0, 1)) > MOVES // 4
    assert changes.late(delivered) == []
    assert changes.late(sent) == []
    assert all(answered <= begun for (_, answered, _), (begun, _, _) in pairwise(changes.made))


def test_a_peer_is_removed(network: Topology, hub: WgHub, fars: list[Far]) -> None:
    changes, far = Changes(hub), fars[0]
    with Traffic(network, far) as traffic:
        for _ in range(REMOVALS):
            answered = changes.make(f"public_key={far.key}\nallowed_ip={MOVED}/32\n", far.name)
            if not far.may_send:
                far.shake_hands()
                far.may_send = True
            until(lambda at=answered: traffic.came_from(far, at), PATIENCE, "packets")  # type: ignore[misc]
            changes.make(f"public_key={far.key}\nremove=true\n", "nobody")
            time.sleep(0.02)  # what may not pass would pass now
            far.may_send = False
            time.sleep(0.11)  # its thread reads no more
    assert changes.late(traffic.delivered.seen) == []
    assert changes.late(far.got()) == []
