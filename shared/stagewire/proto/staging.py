"""Holds packets that wait for a session, within a bound for each peer and a bound for all peers of a worker.

Without the second bound, 10,000 absent peers with 128 packets each would take 2 GB.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from stagewire.proto import constants as c
from stagewire.proto.packets import ip
from stagewire.reasons import Drops

MAX_BYTES: Final = 32 * 2**20
"""Bytes for all peers of a worker: enough for 170 peers with MAX_STAGED_PACKETS of 1,420 bytes each."""
_OVERHEAD: Final = 64
"""Bytes of Python's own for each packet."""


class Room:
    """Counts the bytes in use of MAX_BYTES, for one worker."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Staged:
    """Holds one peer's packets, oldest first.

    Over a bound, it drops the peer's own oldest packets. The newest packet always stays, as a peer needs one for its
    handshake.
    """

    __slots__ = ("_drops", "_packets", "_room")

    def __init__(self, room: Room, drops: Drops) -> None:
        self._room = room
        self._drops = drops
        self._packets: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._packets)

    def add(self, packets: Iterable[bytes]) -> None:
        """Keeps packets until `take`."""
        for packet in packets:
            self._packets.append(packet)
            self._room.used += len(packet) + _OVERHEAD
            if len(self._packets) > c.MAX_STAGED_PACKETS:
                self._drop_oldest("staging_full")
            while len(self._packets) > 1 and self._room.used > MAX_BYTES:  # the last one stays
                self._drop_oldest("staging_room_full")

    def give_up(self, reason: str) -> None:
        """Drops all packets, and counts them under a reason."""
        if packets := self.take():
            newest = packets[-1]
            self._drops.note(reason, len(packets), place=ip.destination(newest) or b"", size=len(newest))

    def take(self) -> list[bytes]:
        """Returns all packets and keeps none."""
        packets = list(self._packets)
        self._packets.clear()
        self._room.used -= sum(map(len, packets)) + _OVERHEAD * len(packets)
        return packets

    def _drop_oldest(self, reason: str) -> None:
        packet = self._packets.popleft()
        self._room.used -= len(packet) + _OVERHEAD
        self._drops.note(reason, place=ip.destination(packet) or b"", size=len(packet))
