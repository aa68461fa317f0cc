"""Logs which peers send odd handshake stamps, too old or of the future, and what the operator can do."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from stagewire.logs import Log
from stagewire.proto import tai64n
from stagewire.proto.messages import BadMessage, OldStamp

SAID_AGAIN: Final = 600.0
"""s between two lines of a kind about one peer: an attacker can replay a recorded message without end."""
MEND: Final = "if the peer's clock was wrong before, remove the peer and add it again: its stamp is then forgotten"
MEND_TAKEN: Final = (
    "put the peer's clock right, then remove the peer and add it again: only then is its stamp forgotten"
)
REFUSED: Final = "handshake refused"
TAKEN: Final = "handshake from the future"


class OddStamps:
    """Logs each kind of oddity of each peer at most once in SAID_AGAIN. `label` names a peer for the log."""

    def __init__(self, log: Log, label: Callable[[bytes], str]) -> None:
        self._log, self._label = log, label
        self._said: dict[tuple[str, bytes], float] = {}

    def refused(self, old: OldStamp, now: float) -> None:
        """Logs a message that was refused for its stamp."""
        reason = f"its time stamp says {_date(old.stamp)}, an earlier one said {_date(old.latest)}"
        self._say(REFUSED, old.public_key, reason, MEND, now)

    def taken(self, public_key: bytes, stamp: bytes, now: float, unix_ns: int) -> None:
        """Logs a stamp that was taken as the protocol says, if it is more than a day ahead of our clock."""
        if stamp > tai64n.encode(max(unix_ns, 0) + tai64n.MAX_JUMP_NS):
            self._say(TAKEN, public_key, f"its time stamp says {_date(stamp)}", MEND_TAKEN, now)

    def forget(self, public_key: bytes) -> None:
        """Forgets which lines were logged of a peer: the operator has removed the peer and waits for what happens now."""
        for event in (REFUSED, TAKEN):
            self._said.pop((event, public_key), None)

    def _say(self, event: str, public_key: bytes, reason: str, mend: str, now: float) -> None:
        if now >= self._said.get((event, public_key), -SAID_AGAIN) + SAID_AGAIN:
            self._said[event, public_key] = now
            self._log.warning(event, peer=self._label(public_key), reason=reason, mend=mend)


def _date(stamp: bytes) -> str:
    try:
        return f"{datetime.fromtimestamp(tai64n.decode_untrusted(stamp) / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (BadMessage, ValueError, OverflowError, OSError):  # a peer without a clock may send a count
        return f"0x{stamp.hex()}"
