"""Bounds how often one source may start a handshake while we are under load (paper, section 5.3).

Each source has a token bucket: a message costs 50 ms, and a source saves up at most 250 ms. So a source gets 20
messages a second, in bursts of 5. Ask only about a source that has proved its address by a valid mac2. Spoofed sources
would fill the table.
"""

from typing import Final

# Whole microseconds: sums of 0.05 s as floats would refuse a message at the very time it is due.
_COST: Final = 50_000
_BURST: Final = 250_000
_SECOND: Final = 1_000_000


class RateLimiter:
    """Holds at most `max_entries` buckets."""

    __slots__ = ("_buckets", "_max_entries", "_next_collection")

    def __init__(self, max_entries: int = 65536) -> None:
        self._max_entries = max_entries
        # Source -> (time of its last message, tokens then), the longest idle first.
        self._buckets: dict[bytes, tuple[int, int]] = {}
        self._next_collection = 0

    def allow(self, address: bytes, now: float) -> bool:
        """Tells whether a message from `address` may be looked at now.

        `address` is packed and has 4 or 16 bytes; an IPv4-mapped one must be unmapped. Of 16 bytes only the first 8
        count, as the owner of one IPv6 address has 2**64. A new source is refused while the table is full.
        """
        at = round(now * _SECOND)
        if at >= self._next_collection:
            self._collect(at)
        key = address if len(address) == 4 else address[:8]
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            if len(self._buckets) >= self._max_entries:
                return False
            tokens = _BURST
        else:
            last, tokens = bucket
            tokens = min(_BURST, tokens + max(0, at - last))
        allowed = tokens >= _COST
        self._buckets[key] = (at, tokens - _COST if allowed else tokens)
        return allowed

    def _collect(self, at: int) -> None:
        """Forgets sources that were idle for over a second, whose buckets are full. Looks at no others."""
        self._next_collection = at + _SECOND
        idle = []
        for key, (last, _) in self._buckets.items():
            if at - last <= _SECOND:
                break
            idle.append(key)
        for key in idle:
            del self._buckets[key]
