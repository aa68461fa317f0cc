"""Merges the look-ups of both families into one answer. Pure.

The answer waits for both, but no longer than GRACE after the first address: some servers never answer for AAAA.
"""

import socket
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Final

from resolver_service.lookup import Outcome
from stagewire.proto.endpoint import unpack_untrusted

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
GRACE: Final = 1.0
"""s."""


@dataclass(slots=True)
class Pending:
    """Collects the outcomes for one host."""

    host: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    until: float | None = None
    """When the outcomes so far make the answer; None before the first address."""

    def take(self, family: int, outcome: Outcome, now: float) -> bool:
        """Takes one look-up's outcome. Returns whether the answer is complete."""
        self.outcomes[family] = outcome
        if outcome.places and self.until is None:
            self.until = now + GRACE
        return len(self.outcomes) == len(FAMILIES)

    def answer(self) -> tuple[tuple[bytes, ...], str]:
        """Returns all packed endpoints, the best first, or the reason why there is none."""
        found = [each for outcome in self.outcomes.values() for each in outcome.places]
        if found:
            return tuple(place for place, _ in sorted(found, key=_rank)), ""
        errors = dict.fromkeys(outcome.error for outcome in self.outcomes.values() if outcome.error)
        return (), "; ".join(errors) or f"{self.host}: has no address"


def _rank(found: tuple[bytes, bool]) -> tuple[bool, int]:
    """Sorts reachable addresses first, then by RFC 6724's default precedence."""
    packed, reachable = found
    address = unpack_untrusted(packed).host
    if not isinstance(address, IPv6Address):
        preference = 1
    elif address.sixtofour or address.teredo:
        preference = 2
    else:
        preference = 0 if address.is_global else 3
    return not reachable, preference
