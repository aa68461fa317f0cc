"""Refuses at the gate what public data suffices to refuse: conn-service's whole core.

    size and type ─▶ transport: to the worker its receiver index names
                  ├▶ answer (response, cookie reply): is it awaited? ─▶ mac1 of a response ──▶ key-service, first
                  └▶ initiation: mac1 ─▶ mac2 and the source's rate ─────────────────────────▶ key-service, first
                                      └▶ admission ──────────────────────────────────────────▶ key-service, after those
                                                 └▶ a cookie reply, for the sender's next try

WireGuard paper, sections 5.3 and 5.4.7; what costs least comes first. Without load, admission refuses none, so mac2 is of no
matter. Load is what `Admission` refuses, or a queue to key-service of LOADED_AT. A source gets no memory before its cookie
has proved that it receives at its address.
"""

from collections.abc import Callable
from typing import Final

from stagewire.proto import admission
from stagewire.proto import constants as c
from stagewire.proto.admission import ALLOWANCE, Admission, Allowance
from stagewire.proto.awaited import Awaited
from stagewire.proto.cookie import PLAIN, CookieChecker, Macs
from stagewire.proto.ratelimit import RateLimiter
from stagewire.reasons import Reasons

QUEUE_LIMIT: Final = 512
"""Handshake messages that may wait for key-service."""
LOADED_AT: Final = QUEUE_LIMIT // 8

_INITIATION: Final = b"\x01\0\0\0"
_RESPONSE: Final = b"\x02\0\0\0"
_COOKIE_REPLY: Final = b"\x03\0\0\0"
_NO_MAC: Final = bytes(c.MAC_LENGTH)

DROP: Final = 0
PASS: Final = 1
PASS_FIRST: Final = 2
_DROPPED: Final = (DROP, b"")


class Gate:
    """Judges handshake datagrams. `drops` counts refusals by reason."""

    def __init__(
        self,
        public_key: bytes,
        random_bytes: Callable[[int], bytes],
        drops: Reasons,
        now: float,
        *,
        stamped: bool = False,
        macs: Macs = PLAIN,
        admits: type[Admission] = Admission,
    ) -> None:
        """Begins at `now` to be told of our own messages."""
        self._drops = drops
        self._checker = CookieChecker(public_key, random_bytes, macs)
        self._limiter = RateLimiter()
        self._admission = admits(random_bytes(16))
        self._awaited = Awaited(now)
        self._unsure = Allowance(ALLOWANCE)
        self._queue = 0
        self._lengths: dict[bytes, tuple[int, ...]] = {
            _INITIATION: (c.INITIATION_LENGTH,),
            _RESPONSE: (c.RESPONSE_LENGTH, c.STAMPED_RESPONSE_LENGTH) if stamped else (c.RESPONSE_LENGTH,),
            _COOKIE_REPLY: (c.COOKIE_REPLY_LENGTH,),
        }

    def note_queue(self, length: int) -> None:
        """Notes the number of messages that wait for key-service."""
        self._queue = length

    def note_wait(self, part: float, now: float) -> None:
        """Notes which part of its visits' time our process has waited for a processor of late."""
        self._admission.note_wait(part, now)

    def note_sent(self, message: bytes, place: bytes, now: float) -> None:
        """Notes a handshake message of ours to an address and port: answers to it are awaited."""
        if len(message) >= c.COOKIE_REPLY_LENGTH:
            self._awaited.sent(int.from_bytes(message[4:8], "little"), now)
            if message[:4] == _RESPONSE:
                self._admission.answered(place)

    def judge_untrusted(self, datagram: bytes, source: bytes, now: float, *, known: bool = False) -> tuple[int, bytes]:
        """Judges a datagram that isn't a transport message: (DROP, PASS or PASS_FIRST; an answer or nothing). Never raises.

        `source` is the sender's address and port; `known` tells whether we send there. Hot.
        """
        kind = datagram[:4]
        lengths = self._lengths.get(kind)
        if lengths is None:
            self._drop("bad_type" if len(datagram) >= 4 else "too_short", datagram, source)
            return _DROPPED
        if len(datagram) not in lengths:
            self._drop("bad_length", datagram, source)
            return _DROPPED
        if kind != _INITIATION:
            return self._judge_answer(datagram, kind, source, now)
        if not self._checker.mac1_valid(datagram):
            self._drop("bad_mac1", datagram, source)
            return _DROPPED
        proven = datagram[-16:] != _NO_MAC and self._checker.mac2_valid(datagram, source, now)
        if proven and self._limiter.allow(source[:-2], now):
            return PASS_FIRST, b""
        verdict = self._admission.admit(datagram, source, now, known=known, loaded=self._queue >= LOADED_AT)
        if verdict == admission.ADMITTED:
            return PASS_FIRST if known else PASS, b""
        if verdict == admission.SEEN:
            self._drop("handshake_repeated", datagram, source)
            return _DROPPED
        if proven:
            self._drop("source_rate_exceeded", datagram, source)
            return _DROPPED
        self._drop("cookie_demanded", datagram, source)
        return DROP, self._checker.cookie_reply(datagram, source, now)

    def _drop(self, reason: str, datagram: bytes, source: bytes) -> None:
        self._drops.note(reason, place=source, size=len(datagram))

    def _judge_answer(self, datagram: bytes, kind: bytes, source: bytes, now: float) -> tuple[int, bytes]:
        """Judges a response or a cookie reply. No cookie is demanded: how many may come is bounded by our own messages."""
        response = kind == _RESPONSE
        if not self._awaited.answered(int.from_bytes(datagram[8:12] if response else datagram[4:8], "little")) and (
            self._awaited.settled(now) or not self._unsure.spend(now)
        ):
            self._drop("unknown_response" if response else "unknown_cookie_reply", datagram, source)
            return _DROPPED
        if response and not self._checker.mac1_valid(datagram):
            self._drop("bad_mac1", datagram, source)
            return _DROPPED
        return PASS_FIRST, b""
