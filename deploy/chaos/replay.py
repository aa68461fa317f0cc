"""Datagrams that the peers sent, kept to be sent to the gateway again.

Only such are played back as the gateway has certainly served: one that was lost on its way would be new to it, and be
accepted by right, from wherever it comes. A numbered packet was served when all those sent around it arrived; a
handshake message, when it was answered or used.
"""

import contextlib
import random
import socket
import struct
from collections import deque
from typing import Final, Literal, NamedTuple

from chaos.record import Record
from chaos.stream import SIZE
from lab.namespaces import Namespace

KEPT: Final = 4000
KEPT_LONG: Final = 4000
ONE_IN: Final = 40
OVERHEAD: Final = 16 + 16
OUTER_SIZE: Final = -(-(SIZE + 28) // 16) * 16 + OVERHEAD
"""Bytes of a numbered packet's datagram; nothing else that the peers send has this size."""
BEFORE, AFTER = 1.5, 0.2
"""s; a packet may have waited for a session before it was seen on the link."""
FORGED_NETWORK: Final = "203.0.113."
PORTS: Final = range(1024, 60000)
IPV4_UDP: Final = struct.Struct("!BBHHHBBH4s4sHHHH")


class Kept(NamedTuple):
    """A datagram as it passed the link at a unix time."""

    peer: int
    time: float
    data: bytes


class Cellar:
    """The newest numbered packets, a sample of the older ones, and all handshake messages."""

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
        """The gateway responded to the initiation that has this sender index."""
        self._serve(1, index)

    def confirmed(self, index: bytes) -> None:
        """The gateway uses the session whose response has this sender index."""
        self._serve(2, index)

    def _serve(self, kind: int, index: bytes) -> None:
        if (kept := self._pending.pop((kind, index), None)) is not None:
            self._handshakes.append(kept)

    def choose(self, count: int) -> list[Kept]:
        """Up to `count` that were served, of all kinds and ages."""
        pools: list[list[Kept]] = [list(self._new), self._old, self._handshakes]
        chosen = [self._random.choice(pool) for _ in range(count) for pool in pools if pool]
        self._random.shuffle(chosen)
        return [kept for kept in chosen[: count * 2] if kept.data[0] != 4 or self._served(kept)][:count]

    def _served(self, kept: Kept) -> bool:
        return self._record.clean(up(kept.peer), kept.time - BEFORE, kept.time + AFTER)


def down(peer: int) -> int:
    """The flow from the gateway to a peer; peers are numbered from 1."""
    return 2 * (peer - 1)


def up(peer: int) -> int:
    """The flow from a peer to the gateway."""
    return 2 * (peer - 1) + 1


class Replayer:
    """Sends datagrams from addresses that aren't its own, or that are the peer's, or nearly."""

    def __init__(
        self, namespace: Namespace, gateway: tuple[str, int], peers: dict[int, tuple[str, int]], luck: random.Random
    ) -> None:
        self._gateway, self._peers, self._random = gateway, peers, luck
        self._raw = namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))

    def play(self, chosen: list[Kept]) -> None:
        """All at once, each from a source drawn for it."""
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
        # The kernel fills in length, identification and checksum; UDP over IPv4 may go without its own.
        return (
            IPV4_UDP.pack(
                *(0x45, 0, 28 + len(data), 0, 0, 64, socket.IPPROTO_UDP, 0),
                *(socket.inet_aton(address), socket.inet_aton(self._gateway[0])),
                *(port, self._gateway[1], 8 + len(data), 0),
            )
            + data
        )
