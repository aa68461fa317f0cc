"""Decides which initiations reach key-service though their sources have proved nothing.

To open an initiation costs a DH, so a flood must not buy many. What is spent on initiations without an answer is bounded:

- ALLOWANCE of them a second, of all sources together. An answer gives its share back, so honest peers spend nothing.
- A source, which is an address and a port, has SOURCE_ALLOWANCE. A flood from one source leaves the rest to others.
- Behind an address that has asked ADDRESS_ALLOWANCE times in a second, all sources together have half of the allowance.
- Places that we send to have an allowance of their own, so known peers shake hands whatever strangers do.
- So have networks that a peer has come from: a peer with a new address or port gets in at once beside spoofed sources,
  also while those have filled the queue to key-service.
- While processors are idle, addresses that have asked seldom have up to SPARE more: of sources that a flood spoofs, so many
  more are tried, and most new peers among them get in at their first try. Other work for the processors ends that at once.
- A message that came before, byte for byte, is dropped: no honest source sends one twice.

Nothing is kept for a source that proved nothing. Sources count in a table of fixed size, by a secret hash, for a second.
What was admitted counts in a set of fixed size, and networks of peers in another.
"""

from array import array
from typing import Final

ALLOWANCE: Final = 1000
"""Initiations without an answer in a second; opening them takes key-service less than a tenth of a core."""
SPARE: Final = 15_000
"""As many more in a second while processors are idle."""
_MORE: Final = SPARE / 10
"""What each look at an idle processor adds; a look at a busy one takes half away."""
BUSY: Final = 0.25
"""Part of a visit's time that waits for a processor, from which processors count as busy."""
_BURST: Final = 256
SOURCE_ALLOWANCE: Final = 20
"""As the rate limit of proven sources."""
ADDRESS_ALLOWANCE: Final = 100
_NETWORKS: Final = 4096
"""Networks that are remembered, those that peers came from last."""
_TABLE: Final = 1 << 16
_SEEN: Final = 8192
"""Admitted messages that are remembered, and as many before them."""
_SEEN_FOR: Final = 10.0
"""s that an admitted message is remembered, and at most twice that."""
_MAC: Final = slice(-32, -16)

ADMITTED: Final = 1
REFUSED: Final = 0
SEEN: Final = -1


class Allowance:
    """Counts what may be spent: `rate` a second, and `_BURST` at once."""

    __slots__ = ("_left", "_since", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._left = float(_BURST) if rate else 0.0
        self._since = 0.0

    def change(self, rate: float, now: float) -> None:
        """Allows another `rate` from now on."""
        self._gain(now)
        self.rate = rate

    def _gain(self, now: float) -> None:
        if now > self._since:
            self._left = min(_BURST, self._left + (now - self._since) * self.rate)
            self._since = now

    def spend(self, now: float, keep: float = 0.0) -> bool:
        """Spends one, unless no more than `keep` are left. hot"""
        left = self._left
        if now > self._since:  # as `_gain` does, without a call
            left = min(_BURST, left + (now - self._since) * self.rate)
            self._since = now
        enough = left >= keep + 1
        self._left = left - enough
        return enough

    def give_back(self) -> None:
        self._left = min(_BURST, self._left + 1)


class Admission:
    """Judges initiations by their sources, each an address and a port, packed."""

    def __init__(self, secret: bytes) -> None:
        """Takes random bytes, which no other process knows."""
        self._secret = secret
        self._strangers, self._known, self._neighbours = (Allowance(ALLOWANCE) for _ in range(3))
        self._spare = Allowance(0)
        self._networks: dict[bytes, None] = {}
        """Of peers, the one that was answered longest ago first."""
        self._sources, self._addresses = array("I", bytes(4 * _TABLE)), array("I", bytes(4 * _TABLE))
        self._counted_until = 0.0
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()
        self._seen_until = 0.0

    def admit(self, message: bytes, source: bytes, now: float, *, known: bool, loaded: bool = False) -> int:
        """Returns ADMITTED, REFUSED or, for a message that was admitted before, SEEN. hot

        `loaded`: the queue to key-service is long, so no stranger is admitted.
        """
        mac = message[_MAC]
        if mac in self._seen or mac in self._seen_before:
            return SEEN
        if now >= self._counted_until:
            self._sources, self._addresses = array("I", bytes(4 * _TABLE)), array("I", bytes(4 * _TABLE))
            self._counted_until = now + 1
        place, table = self._place(source), self._sources
        asked = table[place] = table[place] + 1
        if asked > SOURCE_ALLOWANCE:
            return REFUSED
        place, table = self._place(source[:-2] if len(source) == 6 else source[:8]), self._addresses
        asked = table[place] = table[place] + 1
        keep = _BURST / 2 if asked > ADDRESS_ALLOWANCE else 0
        if known:
            admitted = self._known.spend(now)
        else:
            near = _network(source) in self._networks
            admitted = (near and self._neighbours.spend(now, keep)) or (
                not loaded and (self._strangers.spend(now, keep) or (not keep and self._spare.spend(now)))
            )
        if not admitted:
            return REFUSED
        self._remember(mac, now)
        return ADMITTED

    def note_wait(self, part: float, now: float) -> None:
        """Notes which part of its visits' time this process has waited for a processor of late."""
        rate = self._spare.rate
        self._spare.change(rate / 2 if part >= BUSY else min(SPARE, rate + _MORE), now)

    def answered(self, source: bytes) -> None:
        """Notes that key-service has answered an initiation from here: it was worth its work."""
        for allowance in (self._strangers, self._known, self._neighbours):
            allowance.give_back()
        network = _network(source)
        self._networks.pop(network, None)
        self._networks[network] = None
        if len(self._networks) > _NETWORKS:
            del self._networks[next(iter(self._networks))]
        for table, part in (
            (self._sources, source),
            (self._addresses, source[:-2] if len(source) == 6 else source[:8]),
        ):
            place = self._place(part)
            if table[place]:
                table[place] -= 1

    def _place(self, part: bytes) -> int:
        return hash(self._secret + part) % _TABLE

    def _remember(self, mac: bytes, now: float) -> None:
        if now >= self._seen_until or len(self._seen) >= _SEEN:
            self._seen, self._seen_before = set(), self._seen if now < self._seen_until + _SEEN_FOR else set()
            self._seen_until = now + _SEEN_FOR
        self._seen.add(mac)


def _network(source: bytes) -> bytes:
    """Returns the /24 of an IPv4 source, the /48 of an IPv6 source."""
    return source[:3] if len(source) == 6 else source[:6]
