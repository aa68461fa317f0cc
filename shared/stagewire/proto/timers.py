"""When something must happen although no packet arrives (WireGuard paper, section 6).

The timers are cut in two, as the state is: `SessionTimers` live with the sessions in the worker, `HandshakeTimers`
with the handshakes in key-service. Neither arms nor cancels anything: they remember when things happened, and derive
from that what is due when and why.

    why                  due                                                  until
    -------------------  ---------------------------------------------------  --------------------------------------
    keepalive            10 s after data was received                         any authenticated packet is sent
    no_answer            15 s + jitter after data was sent                    any authenticated packet is received
    persistent           its interval after any authenticated packet, either  the interval is set to 0
                         way
    wipe                 540 s after the last session was derived             another session is derived
    retransmit           5 s + jitter after an initiation was sent            the handshake is complete
    give_up              as retransmit, after the 20th initiation             a packet wants a session again

"Packet sent" includes initiations and responses; "data" is a transport message that isn't empty.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stagewire.proto import constants as c

Deadline = tuple[float, str]
"""(when in s, why)"""
Jitter = Callable[[], float]
"""Uniformly random seconds from 0 to REKEY_TIMEOUT_JITTER_MAX."""

NO_FLOOD = 1.5 / c.INITIATIONS_PER_SECOND
"""s between two of our initiations; the other side counts from when it took the first, which may have come late."""


@dataclass(slots=True)
class SessionTimers:
    """Of one peer, in its home worker. Times are in s on the boot-time clock, None for never."""

    jitter: Jitter
    persistent_interval: int = 0
    """s; 0 is off."""
    _keepalive: float | None = None
    _no_answer: float | None = None
    _last_traversal: float | None = None
    _wipe: float | None = None

    def data_sent(self, now: float) -> None:
        """A transport message with a packet in it was sent under the current session."""
        if self._no_answer is None:
            self._no_answer = now + c.KEEPALIVE_TIMEOUT + c.REKEY_TIMEOUT + self.jitter()

    def data_received(self, now: float) -> None:
        """A transport message with a packet in it was received and authenticated."""
        # The kernel's module also notes that more data came meanwhile, to arm again when this is due. The keepalive
        # sent then is an authenticated packet and disarms it, so nothing would come of that.
        if self._keepalive is None:
            self._keepalive = now + c.KEEPALIVE_TIMEOUT

    def any_sent(self, now: float) -> None:
        """Any authenticated packet was sent: the other side has heard of us."""
        self._keepalive = None
        self._last_traversal = now

    def any_received(self, now: float) -> None:
        """Any authenticated packet was received: the other side is there."""
        self._no_answer = None
        self._last_traversal = now

    def session_derived(self, now: float) -> None:
        """A handshake has yielded a session."""
        self._wipe = now + c.KEY_WIPE_TIME

    def handshake_gave_up(self, now: float) -> None:
        """Nobody answered for REKEY_ATTEMPT_TIME."""
        self._keepalive = None
        if self._wipe is None:
            self._wipe = now + c.KEY_WIPE_TIME

    def set_persistent_interval(self, interval: int, now: float) -> bool:
        """Changes the persistent keepalive (s, 0 is off); returns whether one is to be sent at once (0 to n)."""
        switched_on = interval > 0 and self.persistent_interval == 0
        self.persistent_interval = interval
        self._last_traversal = now
        return switched_on

    def next_deadline(self) -> Deadline | None:
        """What is due first, and why."""
        # Hot, once per train. Measured: 0.1 us.
        found: Deadline | None = None
        if (when := self._keepalive) is not None:
            found = when, "keepalive"
        if (when := self._no_answer) is not None and (found is None or when < found[0]):
            found = when, "no_answer"
        if self.persistent_interval and (when := self._persistent) is not None and (found is None or when < found[0]):
            found = when, "persistent"
        if (when := self._wipe) is not None and (found is None or when < found[0]):
            found = when, "wipe"
        return found

    @property
    def _persistent(self) -> float | None:
        if not self.persistent_interval or self._last_traversal is None:
            return None
        return self._last_traversal + self.persistent_interval

    def take_due(self, now: float) -> list[str]:
        """Why the worker must act now; each reason is given once."""
        reasons: list[str] = []
        if self._keepalive is not None and self._keepalive <= now:
            self._keepalive = None
            reasons.append("keepalive")
        if self._no_answer is not None and self._no_answer <= now:
            self._no_answer = None
            reasons.append("no_answer")
        if self._persistent is not None and self._persistent <= now:
            # Taken as sent, so that a peer without a session is asked for one at each interval, not at each turn.
            self._last_traversal = now
            if "keepalive" not in reasons:  # one empty packet serves both
                reasons.append("persistent")
        if self._wipe is not None and self._wipe <= now:
            self._wipe = None
            reasons.append("wipe")
        return reasons


@dataclass(slots=True)
class HandshakeTimers:
    """Of one peer, in key-service. Times are in s on the boot-time clock."""

    jitter: Jitter
    _last_sent: float | None = None
    _flood_until: float = 0.0
    """Until then the other side would drop another initiation, and the next one would be 5 s later."""
    _retransmit: float | None = None
    _held: float | None = None
    _attempts: int = 0

    def may_initiate(self, now: float) -> bool:
        """Initiations are REKEY_TIMEOUT apart, and that far from the last response we sent.

        After a reset as well they don't come as a flood: one that would is held, and `held` is due when it may leave.
        """
        if self._last_sent is None and now < self._flood_until:
            self._held = self._flood_until
            return False
        # A sum, as in the deadline: a difference may round to less than REKEY_TIMEOUT at the very time of the deadline.
        return self._last_sent is None or now >= self._last_sent + c.REKEY_TIMEOUT

    def wanted(self) -> None:
        """A packet, not a timer, asks for a handshake: the patience of REKEY_ATTEMPT_TIME starts anew."""
        self._attempts = 0

    def initiation_sent(self, now: float) -> None:
        """An initiation has left."""
        self._held = None
        self._last_sent = now
        self._flood_until = now + NO_FLOOD
        self._retransmit = now + c.REKEY_TIMEOUT + self.jitter()

    def response_sent(self, now: float) -> None:
        """A response has left: our own initiation, if we wanted one, would now cross it."""
        self._last_sent = now

    def defer(self, now: float) -> None:
        """A retransmission is due, but a response has just left: wait as if that had been the initiation."""
        self._retransmit = now + c.REKEY_TIMEOUT + self.jitter()

    def complete(self) -> None:
        """A session is confirmed: as initiator by the response, as responder by the first packet under it."""
        self._retransmit = self._held = None
        self._attempts = 0

    def reset(self) -> None:
        """The next initiation need not wait: the private key changed, or the session's worker died."""
        self._last_sent = None

    def next_deadline(self) -> Deadline | None:
        """What is due first, and why."""
        if self._held is not None:
            return self._held, "held"
        if self._retransmit is None:
            return None
        return self._retransmit, ("give_up" if self._attempts > c.MAX_HANDSHAKE_ATTEMPTS else "retransmit")

    def take_due(self, now: float) -> str | None:
        """`held`, `retransmit` or `give_up` if that is due now; each is given once."""
        deadline = self.next_deadline()
        if deadline is None or deadline[0] > now:
            return None
        if deadline[1] == "held":
            self._held = None
            return "held"
        self._retransmit = None
        if deadline[1] == "retransmit":
            self._attempts += 1
        else:
            self._attempts = 0
        return deadline[1]
