"""Holds one peer's traffic to its limits: a rate each way, and bytes until its quota is used up.

A token bucket lets packets pass at the rate. What comes faster waits in a queue, so that TCP finds the rate without losses
at each round trip; what finds the queue full is dropped. Bucket and queue are bounded by time, and by bytes at both ends.

Only limited peers have an object of this module. Their packets go one by one, even in the compiled kernel.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from stagewire.proto.packets import ip
from stagewire.reasons import Drops

BURST: Final = 0.1
"""s of the rate that an idle peer saves up; also what a new worker grants at once."""
HELD: Final = 0.2
"""s of the rate that the queue holds."""
MIN_BURST: Final = 8 * 1024
MIN_HELD: Final = 16 * 1024
MAX_HELD: Final = 1 << 20
"""Bytes: 100 peers with full queues take a worker 200 MiB at most."""
GRAIN: Final = 0.002
"""s between two looks at a queue: a look for each packet would cost more than the packet."""
_ROUNDING: Final = 1e-6
"""s by which a look must be late, lest rounding leaves the bucket short of a packet."""
_OVERHEAD: Final = 64
"""Bytes of Python's own for each packet."""
OVERHEAD: Final = 32
"""Bytes of a datagram around its packet, without padding (paper, section 5.4.6)."""


class Shaper:
    """Lets packets of one direction pass at a rate (bits/s). Times are in s, sizes in bytes."""

    __slots__ = ("_at", "_held", "_queue", "_rate", "_room", "_tokens", "burst", "dropped")

    def __init__(self, rate: int, now: float) -> None:
        """Begins with a full bucket."""
        self._rate = rate / 8
        self.burst = max(MIN_BURST, self._rate * BURST)
        self._room = min(MAX_HELD, max(MIN_HELD, self._rate * HELD))
        self._tokens, self._at = self.burst, now
        self._queue: deque[bytes] = deque()
        self._held = 0
        self.dropped = 0
        """Bytes of the datagrams whose packets found the queue full."""

    def pass_on(self, packets: Iterable[bytes], now: float) -> tuple[list[bytes], list[bytes]]:
        """Returns the packets that may pass now, earlier ones first, and those that found the queue full."""
        passed, queue = self.release(now), self._queue
        dropped: list[bytes] = []
        for packet in packets:
            if not queue and self._take(len(packet)):
                passed.append(packet)
            elif self._held + len(packet) + _OVERHEAD > self._room:
                dropped.append(packet)
                self.dropped += len(packet) + OVERHEAD
            else:
                queue.append(packet)
                self._held += len(packet) + _OVERHEAD
        return passed, dropped

    def release(self, now: float) -> list[bytes]:
        """Returns the packets of the queue that may pass now."""
        self._fill(now)
        passed: list[bytes] = []
        while self._queue and self._take(len(self._queue[0])):
            packet = self._queue.popleft()
            self._held -= len(packet) + _OVERHEAD
            passed.append(packet)
        return passed

    def next_deadline(self) -> float | None:
        """Returns when the next packet of the queue may pass; None for an empty queue."""
        if not self._queue:
            return None
        wait = (min(len(self._queue[0]), self.burst) - self._tokens) / self._rate
        return self._at + max(GRAIN, wait + _ROUNDING)

    def clear(self) -> list[bytes]:
        """Drops the queue; returns its packets."""
        packets = list(self._queue)
        self._queue.clear()
        self._held = 0
        return packets

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self._rate)
            self._at = now

    def _take(self, size: int) -> bool:
        """Takes tokens for a packet. A packet beyond the whole bucket takes a full one, and leaves a debt."""
        if self._tokens < min(size, self.burst):
            return False
        self._tokens -= size
        return True


class Limits:
    """Limits one peer in its worker. At `cap` bytes of the tunnel, both ways, the quota is used up; None for no quota.

    Nothing passes while `held_back` is set: the host could not set narrower rules for the peer. `refused` counts bytes that
    came from the peer and did not pass: they use up no quota. What waits has used it up.
    """

    __slots__ = ("_drops", "_from_peer", "_to_peer", "cap", "held_back", "rates", "refused")

    def __init__(self, rates: tuple[int, int], cap: int | None, drops: Drops, now: float) -> None:
        """Takes the rates to the peer and from the peer in bits/s, 0 for none."""
        self.rates, self.cap = rates, cap
        self._to_peer, self._from_peer = (Shaper(rate, now) if rate else None for rate in rates)
        self._drops = drops
        self.held_back = False
        self.refused = 0

    def divert(self, traffic: int) -> bool:
        """Tells whether packets must go one by one, after so much traffic: there is a rate, or nothing may pass."""
        return self._to_peer is not None or self._stopped(traffic)

    def _stopped(self, traffic: int) -> bool:
        """Tells whether nothing may pass: the quota is used up, or the peer is held back."""
        return self.held_back or (self.cap is not None and traffic >= self.cap)

    def to_peer(self, packets: Iterable[bytes], traffic: int, now: float) -> list[bytes]:
        """Returns the packets that may go to the peer now; counts those that may never."""
        return self._pass_on(self._to_peer, packets, traffic, now)

    def from_peer(self, packets: Iterable[bytes], traffic: int, now: float) -> list[bytes]:
        """Returns the packets that may come from the peer now; counts those that may never. `traffic` has all of them."""
        packets, shaper = list(packets), self._from_peer
        size = sum(map(len, packets)) + OVERHEAD * len(packets)
        before = shaper.dropped if shaper is not None else 0
        if self._stopped(traffic - size):
            self.refused += size
        passed = self._pass_on(shaper, packets, traffic - size, now)
        self.refused += shaper.dropped - before if shaper is not None else 0
        return passed

    def _pass_on(self, shaper: Shaper | None, packets: Iterable[bytes], traffic: int, now: float) -> list[bytes]:
        packets = list(packets)
        if self._stopped(traffic):
            gone = (shaper.clear() if shaper is not None else []) + packets
            self._drop("held_back" if self.held_back else "quota_reached", gone)
            return []
        if shaper is None:
            return packets
        passed, dropped = shaper.pass_on(packets, now)
        self._drop("rate_exceeded", dropped)
        return passed

    def _drop(self, reason: str, packets: list[bytes]) -> None:
        if packets:
            newest = packets[-1]
            self._drops.note(reason, len(packets), place=ip.destination(newest) or b"", size=len(newest))

    def next_deadline(self) -> float | None:
        """Returns when a packet that waits may pass; None if none waits."""
        waits = [each.next_deadline() for each in (self._to_peer, self._from_peer) if each is not None]
        return min((at for at in waits if at is not None), default=None)

    def clear(self) -> None:
        """Drops what waits."""
        for shaper in (self._to_peer, self._from_peer):
            if shaper is not None:
                self._drop("rate_exceeded", shaper.clear())
