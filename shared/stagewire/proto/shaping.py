"""Holds one peer's traffic to its limits: a rate each way, and bytes until its quota is used up.

A token bucket lets packets pass at the rate. What comes faster waits in a queue, so that TCP finds the rate without losses
at each round trip; what exceeds the queue is dropped. Bucket and queue are bounded by time, and by bytes at both ends.

Only limited peers have an object of this module. Their packets go one by one, even in the compiled kernel.
"""

from collections.abc import Iterable
from typing import Final

from stagewire.proto.fair_queue import FairQueue
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
OVERHEAD: Final = 32
"""Bytes of a datagram around its packet, without padding (paper, section 5.4.6)."""


class Shaper:
    """Lets packets of one direction pass at a rate (bits/s). Times are in s, sizes in bytes."""

    __slots__ = ("_at", "_queue", "_rate", "_tokens", "burst")

    def __init__(self, rate: int, now: float) -> None:
        """Begins with a full bucket."""
        self._queue = FairQueue(0)
        self._set_rate(rate)
        self._tokens, self._at = self.burst, now

    def _set_rate(self, rate: int) -> None:
        self._rate = rate / 8
        self.burst = max(MIN_BURST, self._rate * BURST)
        self._queue.room = min(MAX_HELD, max(MIN_HELD, self._rate * HELD))

    def change(self, rate: int, now: float) -> list[bytes]:
        """Goes on at another rate; returns the packets for which the queue has no room any more."""
        self._fill(now)
        self._set_rate(rate)
        self._tokens = min(self._tokens, self.burst)
        return self._queue.shrink()

    def pass_on(self, packets: Iterable[bytes], now: float) -> tuple[list[bytes], list[bytes]]:
        """Returns the packets that may pass now, and those that must go for lack of room. A flow keeps its order."""
        passed, queue = self.release(now), self._queue
        dropped: list[bytes] = []
        for packet in packets:
            if not queue and self._take(len(packet)):
                passed.append(packet)
            else:
                dropped += queue.add(packet)
        # What has just come may have its turn before what waits.
        return passed + self.release(now), dropped

    def release(self, now: float) -> list[bytes]:
        """Returns the packets of the queue that may pass now."""
        self._fill(now)
        passed: list[bytes] = []
        queue = self._queue
        while queue and self._take(queue.next_size()):
            passed.append(queue.take())
        return passed

    def next_deadline(self) -> float | None:
        """Returns when the next packet of the queue may pass; None for an empty queue."""
        if not self._queue:
            return None
        wait = (min(self._queue.next_size(), self.burst) - self._tokens) / self._rate
        return self._at + max(GRAIN, wait + _ROUNDING)

    def clear(self) -> list[bytes]:
        """Empties the queue; returns its packets."""
        return self._queue.take_all()

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

    __slots__ = ("_drops", "_from_peer", "_spared", "_to_peer", "cap", "held_back", "rates", "refused")

    def __init__(self, rates: tuple[int, int], cap: int | None, drops: Drops, now: float) -> None:
        """Takes the rates to the peer and from the peer in bits/s, 0 for none."""
        self.rates, self.cap = rates, cap
        self._to_peer, self._from_peer = (Shaper(rate, now) if rate else None for rate in rates)
        self._drops = drops
        self.held_back = False
        self.refused = 0
        self._spared = 0
        """Bytes that `refused` doesn't count yet: no report may say less traffic than the one before."""

    def divert(self, traffic: int) -> bool:
        """Tells whether packets must go one by one, after so much traffic: there is a rate, or nothing may pass."""
        return self._to_peer is not None or self._stopped(traffic)

    def _stopped(self, traffic: int) -> bool:
        """Tells whether nothing may pass: the quota is used up, or the peer is held back."""
        return self.held_back or (self.cap is not None and traffic >= self.cap)

    def to_peer(self, packets: Iterable[bytes], traffic: int, now: float) -> list[bytes]:
        """Returns the packets that may go to the peer now; counts those that may never."""
        return self._pass_on(self._to_peer, packets, traffic, now)[0]

    def from_peer(self, packets: Iterable[bytes], traffic: int, now: float) -> list[bytes]:
        """Returns the packets that may come from the peer now; counts those that may never. `traffic` has all of them."""
        packets = list(packets)
        size = _size(packets)
        if self._stopped(traffic - size):
            self.refused += size
        passed, dropped = self._pass_on(self._from_peer, packets, traffic - size, now)
        self._spared += _size(dropped)
        refused = min(self._spared, size)
        self.refused, self._spared = self.refused + refused, self._spared - refused
        return passed

    def _pass_on(
        self, shaper: Shaper | None, packets: Iterable[bytes], traffic: int, now: float
    ) -> tuple[list[bytes], list[bytes]]:
        """Returns the packets that may pass now, and those that the rate has dropped."""
        packets = list(packets)
        if self._stopped(traffic):
            gone = (shaper.clear() if shaper is not None else []) + packets
            self._drop("held_back" if self.held_back else "quota_reached", gone)
            return [], []
        if shaper is None:
            return packets, []
        passed, dropped = shaper.pass_on(packets, now)
        self._drop("rate_exceeded", dropped)
        return passed, dropped

    def _drop(self, reason: str, packets: list[bytes]) -> None:
        if packets:
            newest = packets[-1]
            self._drops.note(reason, len(packets), place=ip.destination(newest) or b"", size=len(newest))

    def next_deadline(self) -> float | None:
        """Returns when a packet that waits may pass; None if none waits."""
        waits = [each.next_deadline() for each in (self._to_peer, self._from_peer) if each is not None]
        return min((at for at in waits if at is not None), default=None)

    def change(self, rates: tuple[int, int], traffic: int, now: float) -> tuple[list[bytes], list[bytes]]:
        """Goes on at other rates. Returns what waited for a rate that is no more: to the peer, and from the peer."""
        self.rates = rates
        self._to_peer, to_peer, _ = self._changed(self._to_peer, rates[0], now)
        self._from_peer, from_peer, dropped = self._changed(self._from_peer, rates[1], now)
        self._spared += _size(dropped)
        return self._pass_on(None, to_peer, traffic, now)[0], self._pass_on(None, from_peer, traffic, now)[0]

    def _changed(self, shaper: Shaper | None, rate: int, now: float) -> tuple[Shaper | None, list[bytes], list[bytes]]:
        """Returns the direction's shaper, the packets that it frees, and those that it drops."""
        if shaper is None:
            return Shaper(rate, now) if rate else None, [], []
        if not rate:
            return None, shaper.clear(), []
        dropped = shaper.change(rate, now)
        self._drop("rate_exceeded", dropped)
        return shaper, [], dropped

    def clear(self) -> None:
        """Drops what waits."""
        for shaper in (self._to_peer, self._from_peer):
            if shaper is not None:
                self._drop("rate_exceeded", shaper.clear())


def _size(packets: list[bytes]) -> int:
    """Counts the bytes of the datagrams of packets."""
    return sum(map(len, packets)) + OVERHEAD * len(packets)
