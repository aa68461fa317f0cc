"""Keeps datagrams that the peers sent, and sends them to the gateway again.

It replays only datagrams that the gateway has certainly served. A lost one would be new to the gateway, which may
rightly accept it from anywhere. A numbered packet was served if all packets sent around it arrived. A handshake
message was served if the gateway answered or used it.
"""

import contextlib
import random
import socket
import struct
from collections import deque
from typing import Final, Literal, NamedTuple

from tests.chaos.record import Record
from tests.chaos.stream import SIZE

from lab.namespaces import Namespace

KEPT: Final = 4000
KEPT_LONG: Final = 4000
ONE_IN: Final = 40
OVERHEAD: Final = 16 + 16
OUTER_SIZE: Final = -(-(SIZE + 28) // 16) * 16 + OVERHEAD
"""Bytes of a numbered packet's datagram; no other datagram of the peers has this size."""
BEFORE, AFTER = 1.5, 0.2
"""s; a packet may have waited for a session before the link carried it."""
FORGED_NETWORK: Final = "203.0.113."
PORTS: Final = range(1024, 60000)
IPV4_UDP: Final = struct.Struct("!BBHHHBBH4s4sHHHH")


class Kept(NamedTuple):
    """Holds a datagram as it passed the link at a unix time."""

    peer: int
    time: float
    data: bytes


class Cellar:
    """Keeps the newest numbered packets, a sample of the older ones, and all handshake messages."""

    def __init__(self, record: Record, luck: random.Random) -> None:
        self._record, self._random = record, luck
        self._new: deque[Kept] = deque(maxlen=KEPT)
        self._old: list[Kept] = []
        self._counted = 0
        self._pending: dict[tuple[int, bytes], Kept] = {}
        self._handshakes: list[Kept] = []

    def keep(self, peer: int, datagram: bytearray, now: float) -> None:
        """Notes a datagram on its way to the gateway."""
        if datagram[0] in (1, 2):
            self._pending[datagram[0], bytes(datagram[4:8])] = Kept(peer, now, bytes(datagram))
        elif datagram[0] == 4 and len(datagram) == OUTER_SIZE:
            kept = Kept(peer, now, bytes(datagram))
            self._new.append(kept)
            self._counted += 1
            if not self._counted % ONE_IN:
                if len(self._old) < KEPT_LONG:
                    self._old.append(kept)
                else:
                    self._old[self._random.randrange(KEPT_LONG)] = kept

    def answered(self, index: bytes) -> None:
        """Notes that the gateway responded to the initiation with this sender index."""
        self._serve(1, index)

    def confirmed(self, index: bytes) -> None:
        """Notes that the gateway uses the session whose response has this sender index."""
        self._serve(2, index)

    def _serve(self, kind: int, index: bytes) -> None:
        if (kept := self._pending.pop((kind, index), None)) is not None:
            self._handshakes.append(kept)

    def choose(self, count: int) -> list[Kept]:
        """Draws up to `count` served datagrams, of all kinds and ages."""
        pools: list[list[Kept]] = [list(self._new), self._old, self._handshakes]
        chosen = [self._random.choice(pool) for _ in range(count) for pool in pools if pool]
        self._random.shuffle(chosen)
        return [kept for kept in chosen[: count * 2] if kept.data[0] != 4 or self._served(kept)][:count]

    def _served(self, kept: Kept) -> bool:
        return self._record.clean(up(kept.peer), kept.time - BEFORE, kept.time + AFTER)


def down(peer: int) -> int:
    """Returns the flow from the gateway to a peer; peers are numbered from 1."""
    return 2 * (peer - 1)


def up(peer: int) -> int:
    """Returns the flow from a peer to the gateway."""
    return 2 * (peer - 1) + 1


class Replayer:
    """Sends datagrams from forged addresses: a stranger's, the peer's with another port, or the peer's."""

    def __init__(
        self, namespace: Namespace, gateway: tuple[str, int], peers: dict[int, tuple[str, int]], luck: random.Random
    ) -> None:
        self._gateway, self._peers, self._random = gateway, peers, luck
        self._raw = namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))

    def play(self, chosen: list[Kept]) -> None:
        """Sends all at once, each from a source drawn for it."""
        for kept in chosen:
            address, port = self._peers[kept.peer]
            how: Literal["stranger", "other port", "same"] = self._random.choice(["stranger", "other port", "same"])
            if how == "stranger":
                address = f"{FORGED_NETWORK}{self._random.randrange(1, 255)}"
            if how != "same":
                port = self._random.choice(PORTS)
            with contextlib.suppress(OSError):
                self._raw.sendto(self._packet(address, port, kept.data), self._gateway)

    def _packet(self, address: str, port: int, data: bytes) -> bytes:
        # The kernel fills in length, identification and IP's checksum. UDP over IPv4 needs none.
        return (
            IPV4_UDP.pack(
                *(0x45, 0, 28 + len(data), 0, 0, 64, socket.IPPROTO_UDP, 0),
                *(socket.inet_aton(address), socket.inet_aton(self._gateway[0])),
                *(port, self._gateway[1], 8 + len(data), 0),
            )
            + data
        )
