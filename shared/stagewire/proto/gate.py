"""conn-service's whole core: everything that can be refused with public data is refused here.

    size and type ─▶ transport: to the worker its receiver index names
                  └▶ handshake: mac1 ─▶ under load: mac2, else a cookie reply; then the source's rate ─▶ key-service

WireGuard paper, sections 5.3 and 5.4.7. Under load means: the queue to key-service was an eighth full within the last
second. Nothing is allocated for a source that has not proven, by its cookie, that it receives at its address.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from stagewire.proto import constants as c
from stagewire.proto.cookie import CookieChecker
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.ratelimit import RateLimiter

QUEUE_LIMIT: Final = 512
"""Handshake messages that may wait for key-service: an eighth of a second of its work."""
LOADED_AT: Final = QUEUE_LIMIT // 8
LOADED_FOR: Final = 1.0
"""Seconds for which one full queue counts as load."""

_LENGTHS: Final[dict[bytes, tuple[int, ...]]] = {
    b"\x01\0\0\0": (c.INITIATION_LENGTH,),
    b"\x02\0\0\0": (c.RESPONSE_LENGTH,),
    b"\x03\0\0\0": (c.COOKIE_REPLY_LENGTH,),
}
_COOKIE_REPLY: Final = b"\x03\0\0\0"
_RESPONSE: Final = b"\x02\0\0\0"


class Gate:
    """Judges handshake datagrams. `drops` counts, by reason, what was refused."""

    def __init__(
        self, public_key: bytes, random_bytes: Callable[[int], bytes], drops: Counter[str], *, stamped: bool = False
    ) -> None:
        self._drops = drops
        self._checker = CookieChecker(public_key, random_bytes)
        self._limiter = RateLimiter()
        self._cookie_replies = RateLimiter()
        self._loaded_until = float("-inf")
        self._lengths = dict(_LENGTHS)
        if stamped:
            self._lengths[_RESPONSE] = (c.RESPONSE_LENGTH, c.STAMPED_RESPONSE_LENGTH)

    def note_queue(self, length: int, now: float) -> None:
        """Tells how many messages wait for key-service."""
        if length >= LOADED_AT:
            self._loaded_until = now + LOADED_FOR

    def loaded(self, now: float) -> bool:
        """Whether sources must prove their address first."""
        return now < self._loaded_until

    def judge_untrusted(self, datagram: bytes, source: Endpoint, now: float) -> tuple[bool, bytes]:
        """A datagram that isn't a transport message: (pass it on?, what to answer or nothing). Never raises."""
        lengths = self._lengths.get(datagram[:4])
        if lengths is None:
            self._drops["bad_type" if len(datagram) >= 4 else "too_short"] += 1
            return False, b""
        if len(datagram) not in lengths:
            self._drops["bad_length"] += 1
            return False, b""
        if datagram[:4] == _COOKIE_REPLY:
            # It carries no mac, so its authenticity is key-service's to check; nobody has reason to send many.
            if self._cookie_replies.allow(source.address, now):
                return True, b""
            self._drops["source_rate_exceeded"] += 1
            return False, b""
        if not self._checker.mac1_valid(datagram):
            self._drops["bad_mac1"] += 1
            return False, b""
        if not self.loaded(now):
            return True, b""
        place = source.address + source.port.to_bytes(2, "big")
        if not self._checker.mac2_valid(datagram, place, now):
            self._drops["cookie_demanded"] += 1
            return False, self._checker.cookie_reply(datagram, place, now)
        if not self._limiter.allow(source.address, now):
            self._drops["source_rate_exceeded"] += 1
            return False, b""
        return True, b""
