"""Decides which refused handshakes and packets are worth an event: anyone may have refused as many as they like."""

from base64 import b64encode
from collections import OrderedDict
from typing import Final

from stagewire.control.event import REFUSALS, Event
from stagewire.reasons import KEY_LENGTH, Incident, shown

AGAIN: Final = 600.0
"""s between two events of one reason and one peer or stranger."""
MOST_A_MINUTE: Final = 30
"""Events of all of them."""
MOST_KNOWN: Final = 4096
"""Pairs of a reason and a peer or stranger that are remembered."""
_MINUTE: Final = 60.0
_MAX_PLACE: Final = 18


class Refusals:
    """Knows of which refusals an event has told."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._minute, self._events = 0.0, 0

    def take(self, incident: Incident, name: str, now: float) -> Event | None:
        """Returns the event about an incident, unless an earlier one has told of it. `name` is the peer's, or empty."""
        if incident.reason not in REFUSALS:
            return None
        key = incident.reason, (incident.public_key or incident.place)[:KEY_LENGTH]
        if now - self._told.get(key, -AGAIN) < AGAIN or not self._has_room(now):
            return None
        self._told[key] = now
        self._told.move_to_end(key)
        if len(self._told) > MOST_KNOWN:
            self._told.popitem(last=False)
        public_key = b64encode(incident.public_key[:KEY_LENGTH]).decode()
        place = shown(incident.place[:_MAX_PLACE])
        return Event("refused", public_key=public_key, name=name, endpoint=place, reason=incident.reason)

    def _has_room(self, now: float) -> bool:
        if now - self._minute >= _MINUTE:
            self._minute, self._events = now, 0
        self._events += 1
        return self._events <= MOST_A_MINUTE
