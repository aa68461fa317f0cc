"""Packets that wait for a session: bounded for each peer, as with everybody, and for all peers of a worker together.

10,000 peers that are away, with 128 packets each, would be 2 GB.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from stagewire.proto import constants as c

MAX_BYTES: Final = 32 * 2**20
"""Of all peers of a worker: 170 of them with all that one may have, at 1,420 bytes a packet."""
_OVERHEAD: Final = 64
"""Bytes that Python takes beside a packet's own."""


class Room:
    """What is taken of MAX_BYTES. One for each worker."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Staged:
    """One peer's packets, oldest first. What there is no room for is dropped, the peer's own oldest first; one may stay."""

    __slots__ = ("_drops", "_packets", "_room")

    def __init__(self, room: Room, drops: Counter[str]) -> None:
        self._room = room
        self._drops = drops
        self._packets: deque[bytes] = deque()

    def __len__(self) -> int:
        """Packets."""
        return len(self._packets)

    def add(self, packets: Iterable[bytes]) -> None:
        """Keeps them until they are taken."""
        for packet in packets:
            self._packets.append(packet)
            self._room.used += len(packet) + _OVERHEAD
            if len(self._packets) > c.MAX_STAGED_PACKETS:
                self._drop_oldest("staging_full")
            while len(self._packets) > 1 and self._room.used > MAX_BYTES:  # a living peer needs one for its handshake
                self._drop_oldest("staging_room_full")

    def take(self) -> list[bytes]:
        """All of them; none wait then."""
        packets = list(self._packets)
        self._packets.clear()
        self._room.used -= sum(map(len, packets)) + _OVERHEAD * len(packets)
        return packets

    def _drop_oldest(self, reason: str) -> None:
        self._room.used -= len(self._packets.popleft()) + _OVERHEAD
        self._drops[reason] += 1
