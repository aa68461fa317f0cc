"""Tells when a peer must act although no packet arrives (WireGuard paper, section 6).

`SessionTimers` live with the sessions in the worker, `HandshakeTimers` with the handshakes in key-service. Their tables
are SESSION and HANDSHAKE: an event sets a timer or ends it. A due timer is told once.

"Packet sent" includes initiations and responses; "data" is a transport message that isn't empty.
"""

from collections.abc import Callable
from math import inf
from typing import Any, ClassVar, Final, NamedTuple

from stagewire.proto import constants as c

Deadline = tuple[float, str]
"""(when in s, why)"""
Jitter = Callable[[], float]
"""Uniformly random seconds from 0 to REKEY_TIMEOUT_JITTER_MAX."""

NO_FLOOD = 1.5 / c.INITIATIONS_PER_SECOND
"""s between two of our initiations. The peer counts from the arrival of the first, which may be late."""


class Timer(NamedTuple):
    """Describes one timer. A due timer is itself an event of the timer's name."""

    why: str
    when: Callable[[Any, float], float]
    """Takes the timers and the event's time; returns the deadline, `inf` for never."""
    set_by: tuple[str, ...] = ()
    """Events that set the timer, unless it is set."""
    set_anew_by: tuple[str, ...] = ()
    """Events that set the timer again even if it is set."""
    ended_by: tuple[str, ...] = ()
    included_in: str = ""
    """Names the timer that does the same when both are due."""
    instead: tuple[Callable[[Any], bool], str] | None = None
    """(condition, the other name that the timer is then told by)"""


SESSION: Final = (
    Timer(
        "keepalive",
        lambda _, now: now + c.KEEPALIVE_TIMEOUT,
        # The kernel's module also arms again for data that came meanwhile. The keepalive sent then disarms that timer,
        # so the outcome is the same.
        set_by=("data_received",),
        ended_by=("any_sent", "gave_up"),
    ),
    Timer(
        "no_answer",
        lambda timers, now: now + c.KEEPALIVE_TIMEOUT + c.REKEY_TIMEOUT + timers.jitter(),
        set_by=("data_sent",),
        ended_by=("any_received",),
    ),
    Timer(
        "persistent",
        lambda timers, now: now + (timers.persistent_interval or inf),
        # Set by itself as well: a peer without a session is asked for one at each interval, not at each turn.
        set_anew_by=("any_sent", "any_received", "interval_set", "persistent"),
        included_in="keepalive",
    ),
    Timer(
        "wipe",
        lambda _, now: now + c.KEY_WIPE_TIME,
        set_by=("gave_up",),
        set_anew_by=("session_derived",),
    ),
)
HANDSHAKE: Final = (
    Timer(
        "held",
        lambda timers, _: timers.flood_until,
        set_by=("held_back",),
        ended_by=("initiation_sent", "complete"),
    ),
    Timer(
        "retransmit",
        lambda timers, now: now + c.REKEY_TIMEOUT + timers.jitter(),
        set_anew_by=("initiation_sent", "deferred"),
        ended_by=("complete",),
        instead=(lambda timers: timers.attempts > c.MAX_HANDSHAKE_ATTEMPTS, "give_up"),
    ),
)

Step = tuple[int, Callable[[Any, float], float] | None, bool]
"""(row, deadline function or None if the event ends the timer, whether a set timer is set again)"""


def _steps(table: tuple[Timer, ...]) -> dict[str, tuple[Step, ...]]:
    """Returns the steps of each event, in the order of the rows."""
    found: dict[str, list[Step]] = {}
    for row, timer in enumerate(table):
        for event in timer.set_by:
            found.setdefault(event, []).append((row, timer.when, False))
        for event in timer.set_anew_by:
            found.setdefault(event, []).append((row, timer.when, True))
        for event in timer.ended_by:
            found.setdefault(event, []).append((row, None, True))
    return {event: tuple(steps) for event, steps in found.items()}


class _Timers:
    """Runs one table. Times are in s on the boot-time clock."""

    __slots__ = ("due", "jitter")
    _table: ClassVar[tuple[Timer, ...]]
    _on: ClassVar[dict[str, tuple[Step, ...]]]

    def __init__(self, jitter: Jitter) -> None:
        self.jitter = jitter
        self.due = [inf] * len(self._table)
        """When each row of the table is due (s); `inf` for a timer that isn't set."""

    def _happens(self, event: str, now: float) -> None:
        self._take_steps(self._on.get(event, ()), now)

    def _take_steps(self, steps: tuple[Step, ...], now: float) -> None:
        due = self.due
        for row, when, anew in steps:
            if when is None:
                due[row] = inf
            elif anew or due[row] == inf:
                due[row] = when(self, now)

    def soonest(self) -> float:
        """Returns the earliest deadline, `inf` for none. Hot, once per peer of a train."""
        return min(self.due)

    def next_deadline(self) -> Deadline | None:
        """Returns the earliest deadline and its reason."""
        when = min(self.due)
        return None if when == inf else (when, self._why(self.due.index(when)))

    def _why(self, row: int) -> str:
        timer = self._table[row]
        return timer.why if timer.instead is None or not timer.instead[0](self) else timer.instead[1]

    def _take(self, row: int, now: float) -> str:
        why = self._why(row)
        self.due[row] = inf
        self._happens(why, now)
        return why


class SessionTimers(_Timers):
    """Runs the session timers of one peer, in its home worker."""

    __slots__ = ("at_packet_received", "at_packet_sent", "persistent_interval")
    _table = SESSION
    _on = _steps(SESSION)
    _at_packet_sent = _on["any_sent"] + _on["data_sent"]
    _at_packet_received = _on["any_received"] + _on["data_received"]
    # Without an interval, `persistent` stays as it is: never due.
    _at_packet_sent_alone, _at_packet_received_alone = (
        tuple(step for step in steps if SESSION[step[0]].why != "persistent")
        for steps in (_at_packet_sent, _at_packet_received)
    )

    def __init__(self, jitter: Jitter) -> None:
        super().__init__(jitter)
        self.persistent_interval = 0
        """s; 0 is off."""
        self.at_packet_sent: tuple[Step, ...] = self._at_packet_sent_alone
        """Steps of `packet_sent`."""
        self.at_packet_received: tuple[Step, ...] = self._at_packet_received_alone
        """Steps of `packet_received`."""

    def data_sent(self, now: float) -> None:
        """Notes a sent transport message with a packet in it."""
        self._happens("data_sent", now)

    def data_received(self, now: float) -> None:
        """Notes a received, authenticated transport message with a packet in it."""
        self._happens("data_received", now)

    def packet_sent(self, now: float) -> None:
        """Does what `any_sent` and `data_sent` do. Hot, once per peer of a train."""
        self._take_steps(self.at_packet_sent, now)

    def packet_received(self, now: float) -> None:
        """Does what `any_received` and `data_received` do. Hot, once per peer of a train."""
        self._take_steps(self.at_packet_received, now)

    def any_sent(self, now: float) -> None:
        """Notes any sent authenticated packet."""
        self._happens("any_sent", now)

    def any_received(self, now: float) -> None:
        """Notes any received authenticated packet."""
        self._happens("any_received", now)

    def session_derived(self, now: float) -> None:
        """Notes a session from a complete handshake."""
        self._happens("session_derived", now)

    def handshake_gave_up(self, now: float) -> None:
        """Notes REKEY_ATTEMPT_TIME without an answer."""
        self._happens("gave_up", now)

    def set_persistent_interval(self, interval: int, now: float) -> bool:
        """Changes the persistent keepalive (s, 0 is off); returns whether one is to be sent at once (0 to n)."""
        switched_on = interval > 0 and self.persistent_interval == 0
        self.persistent_interval = interval
        self.at_packet_sent = self._at_packet_sent if interval else self._at_packet_sent_alone
        self.at_packet_received = self._at_packet_received if interval else self._at_packet_received_alone
        self._happens("interval_set", now)
        return switched_on

    def take_due(self, now: float) -> list[str]:
        """Returns the reasons to act now, each once."""
        taken = [(self._table[row].included_in, self._take(row, now)) for row, due in enumerate(self.due) if due <= now]
        reasons = [why for _, why in taken]
        return [why for included_in, why in taken if included_in not in reasons]


class HandshakeTimers(_Timers):
    """Runs the handshake timers of one peer, in key-service."""

    __slots__ = ("_last_sent", "attempts", "flood_until")
    _table = HANDSHAKE
    _on = _steps(HANDSHAKE)

    def __init__(self, jitter: Jitter) -> None:
        super().__init__(jitter)
        self.attempts = 0
        self.flood_until = 0.0
        """s; the peer drops an earlier initiation, and the next would leave REKEY_TIMEOUT later."""
        self._last_sent: float | None = None

    def may_initiate(self, now: float) -> bool:
        """Tells whether REKEY_TIMEOUT has passed since our last initiation or response.

        After a reset an initiation that the peer would drop is held: `held` is due when the initiation may leave.
        """
        if self._last_sent is None and now < self.flood_until:
            self._happens("held_back", now)
            return False
        # A sum, as in the deadline: a difference may round to less than REKEY_TIMEOUT at the deadline itself.
        return self._last_sent is None or now >= self._last_sent + c.REKEY_TIMEOUT

    def wanted(self) -> None:
        """Starts REKEY_ATTEMPT_TIME again: a packet, not a timer, asks for a handshake."""
        self.attempts = 0

    def initiation_sent(self, now: float) -> None:
        """Notes a sent initiation."""
        self._last_sent = now
        self.flood_until = now + NO_FLOOD
        self._happens("initiation_sent", now)

    def response_sent(self, now: float) -> None:
        """Notes a sent response, which an initiation of ours would now cross."""
        self._last_sent = now

    def defer(self, now: float) -> None:
        """Puts a due retransmission off, as a response has just left."""
        self._happens("deferred", now)

    def complete(self) -> None:
        """Notes a confirmed session: by the response, or as responder by its first packet."""
        self.attempts = 0
        self._happens("complete", inf)  # it sets nothing

    def reset(self) -> None:
        """Lets the next initiation leave at once: the private key changed, or the session's worker died."""
        self._last_sent = None

    def take_due(self, now: float) -> str | None:
        """Returns the earliest due reason of `held`, `retransmit` and `give_up`, once."""
        when = min(self.due)
        if when > now or when == inf:
            return None
        why = self._take(self.due.index(when), now)
        if why != "held":
            self.attempts = 0 if why == "give_up" else self.attempts + 1
        return why
