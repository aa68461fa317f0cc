"""Keeps packets that wait for a peer's rate, each flow apart: a full stream delays neither a call nor acknowledgements.

Flows take turns by bytes, as in RFC 8290. A flow that has nothing waiting, and has not used up its turn, comes first. What
exceeds the room is taken from the longest flow, and there from the front: TCP hears of it soonest.
"""

from collections import deque
from typing import Final

from stagewire.proto.packets import ip

QUANTUM: Final = 1500
"""Bytes of a flow's turn."""
MAX_FLOWS: Final = 64
"""Flows that are told apart; others share the turn of packets without a flow."""
OVERHEAD: Final = 64
"""Bytes of Python's own for each packet."""


class _Flow:
    __slots__ = ("credit", "key", "packets", "size")

    def __init__(self, key: bytes | None) -> None:
        self.key = key
        self.packets: deque[bytes] = deque()
        self.size = 0
        """Bytes, with Python's own."""
        self.credit = QUANTUM
        """Bytes that the flow may still send in its turn."""


class FairQueue:
    """Holds `room` bytes at most, with Python's own for each packet. It is false while nothing waits."""

    __slots__ = ("_first", "_flows", "_packets", "_size", "_turns", "room")

    def __init__(self, room: float) -> None:
        self.room = room
        self._size = self._packets = 0
        self._flows: dict[bytes | None, _Flow] = {}
        self._turns: deque[bytes | None] = deque()
        """All flows; the turn is the first one's."""
        self._first: deque[bytes | None] = deque()
        """Flows that come before those whose turn it is, until they have used up their own."""

    def __len__(self) -> int:
        """Counts the packets that wait."""
        return self._packets

    def add(self, packet: bytes) -> list[bytes]:
        """Takes an IP packet with a whole header; returns the packets that must make room."""
        if not self._packets:
            for each in (self._flows, self._turns, self._first):
                each.clear()
        key = ip.flow(packet)
        flow = self._flows.get(key) or self._begin(key)
        size = len(packet) + OVERHEAD
        if not flow.packets and flow.credit > 0:
            self._first.append(flow.key)
        flow.packets.append(packet)
        flow.size += size
        self._size += size
        self._packets += 1
        return self.shrink() if self._size > self.room else []

    def _begin(self, key: bytes | None) -> _Flow:
        if len(self._flows) >= MAX_FLOWS:
            key = None
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key)
            self._turns.append(key)
        return flow

    def shrink(self) -> list[bytes]:
        """Returns the packets that exceed the room."""
        gone: list[bytes] = []
        while self._size > self.room:
            gone.append(self._pop(max(self._flows.values(), key=lambda flow: flow.size)))
        return gone

    def next_size(self) -> int:
        """Returns the bytes of the packet that `take` returns. Something must wait."""
        return len(self._turn().packets[0])

    def take(self) -> bytes:
        """Returns the packet whose turn it is. Something must wait."""
        flow = self._turn()
        packet = self._pop(flow)
        flow.credit -= len(packet)
        return packet

    def take_all(self) -> list[bytes]:
        """Empties the queue."""
        found: list[bytes] = []
        while self._packets:
            found.append(self.take())
        return found

    def _pop(self, flow: _Flow) -> bytes:
        packet = flow.packets.popleft()
        size = len(packet) + OVERHEAD
        flow.size -= size
        self._size -= size
        self._packets -= 1
        return packet

    def _turn(self) -> _Flow:
        """Returns the flow whose turn it is, and leaves it at the front."""
        flows, first, turns = self._flows, self._first, self._turns
        while first:
            flow = flows[first[0]]
            if flow.packets and flow.credit > 0:
                return flow
            first.popleft()
        while True:
            flow = flows[turns[0]]
            if flow.packets and flow.credit > 0:
                return flow
            turns.popleft()
            if not flow.packets and flow.credit == QUANTUM:
                del flows[flow.key]
            else:
                flow.credit = min(QUANTUM, flow.credit + QUANTUM)
                turns.append(flow.key)
