"""Counts drops and failures by reason, and tells of each the peer or the place, and an example: address and size.

A stage counts into one Reasons and pushes what has changed each second, which also tells when it happened. What was counted
without `note` is told as well, without an example. No payload and no key but public ones get here.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Protocol

from stagewire.stats import TRAFFIC, kind_of

KEY_LENGTH: Final = 32
OF_STRANGERS: Final = "unknown_peer"
"""The reason that tells of a key which no peer has; every other key is a peer's."""
MAX_STRANGERS: Final = 8
"""Places, or keys that no peer has, of which each reason tells: anyone can make up more."""
MAX_NOTED: Final = 64
"""Strangers of one reason that are told apart between two reports: a flood costs little more than a count."""
MAX_REPORTED: Final = 256
"""Incidents in one report; the next reports have the others."""


class Drops(Protocol):
    """Takes counts by reason: Reasons, or one peer's part of them."""

    def __getitem__(self, reason: str, /) -> int: ...

    def __setitem__(self, reason: str, count: int, /) -> None: ...

    def note(self, reason: str, count: int = 1, *, place: bytes = b"", size: int = 0) -> None:
        """Counts, and remembers an example."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Tells how often something happened in this process, with the newest example.

    `public_key` is the peer's, or a key that a stranger named; empty if unknown. `place` is an address (4 or 16 bytes), with
    or without a port (2 bytes); or a worker's number (1 byte); empty if unknown. `size` is in bytes, 0 if unknown.
    """

    reason: str
    public_key: bytes
    place: bytes
    size: int
    count: int


@dataclass(slots=True)
class _Noted:
    count: int = 0
    place: bytes = b""
    size: int = 0


class OfPeer:
    """Counts for one peer, and for all: `of_peer[reason] += 1` adds to both."""

    __slots__ = ("_all", "_public_key")

    def __init__(self, whole: "Reasons", public_key: bytes) -> None:
        self._all = whole
        self._public_key = public_key

    def __getitem__(self, reason: str) -> int:
        return self._all.count_of(reason, self._public_key)

    def __setitem__(self, reason: str, count: int) -> None:
        if more := count - self[reason]:
            self.note(reason, more)

    def note(self, reason: str, count: int = 1, *, place: bytes = b"", size: int = 0) -> None:
        """Counts, and remembers an example."""
        self._all.note(reason, count, peer=self._public_key, place=place, size=size)


class Reasons(Counter[str]):
    """Counts by reason, as a Counter does. `note` also remembers whose it was and where it came from."""

    def __init__(self) -> None:
        super().__init__()
        self._peers: dict[bytes, dict[str, _Noted]] = {}
        self._strangers: dict[str, OrderedDict[bytes, _Noted]] = {}
        self._changed: dict[tuple[str, bytes, bool], None] = {}
        self._left: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        """Counts that `note` knows of; whatever a reason has beyond them was counted without it."""

    def of(self, public_key: bytes) -> OfPeer:
        """Returns the part of one configured peer."""
        return OfPeer(self, public_key)

    def count_of(self, reason: str, public_key: bytes) -> int:
        """Returns how often something happened to a configured peer."""
        noted = self._peers.get(public_key, {}).get(reason)
        return noted.count if noted is not None else 0

    def note(self, reason: str, count: int = 1, *, peer: bytes = b"", place: bytes = b"", size: int = 0) -> None:
        """Counts, and remembers a configured peer, or the place without one."""
        self[reason] += count
        self._told[reason] += count
        if not peer:
            self._note_stranger(reason, place, count, place, size)
            return
        noted = self._peers.setdefault(peer, {}).setdefault(reason, _Noted())
        noted.count += count
        noted.place, noted.size = place or noted.place, size or noted.size
        self._changed[reason, peer, True] = None

    def note_stranger(self, reason: str, public_key: bytes, place: bytes, size: int) -> None:
        """Counts a message of a sender that names a key which no peer has."""
        self[reason] += 1
        self._told[reason] += 1
        self._note_stranger(reason, public_key, 1, place, size)

    def _note_stranger(self, reason: str, identity: bytes, count: int, place: bytes, size: int) -> None:
        self._left[reason] += 1
        if self._left[reason] > MAX_NOTED:
            return
        strangers = self._strangers.setdefault(reason, OrderedDict())
        noted = strangers.get(identity)
        if noted is None:
            noted = strangers[identity] = _Noted()
            if len(strangers) > MAX_STRANGERS:
                gone, _ = strangers.popitem(last=False)
                self._changed.pop((reason, gone, False), None)
        strangers.move_to_end(identity)
        noted.count += count
        noted.place, noted.size = place, size
        self._changed[reason, identity, False] = None

    def take_changed(self) -> tuple[Incident, ...]:
        """Returns what has changed since it was last taken, the oldest change first; at most MAX_REPORTED."""
        self._left.clear()
        for reason, count in self.items():
            if count > self._told[reason] and kind_of(reason) is not TRAFFIC:
                self._note_stranger(reason, b"", count - self._told[reason], b"", 0)
                self._told[reason] = count
        found = []
        for reason, identity, is_peer in list(self._changed)[:MAX_REPORTED]:
            del self._changed[reason, identity, is_peer]
            noted = self._peers[identity][reason] if is_peer else self._strangers[reason][identity]
            public_key = identity if len(identity) == KEY_LENGTH else b""
            found.append(Incident(reason, public_key, noted.place, noted.size, noted.count))
        return tuple(found)

    def forget(self, public_key: bytes) -> None:
        """Forgets a peer that is removed; the totals stay."""
        for reason in self._peers.pop(public_key, ()):
            self._changed.pop((reason, public_key, True), None)


def shown(place: bytes) -> str:
    """Writes an address, with its port if there is one, or a worker; an empty text for none or for other bytes."""
    if len(place) == 1:
        return f"worker {place[0]}"
    width = {4: 4, 6: 4, 16: 16, 18: 16}.get(len(place))
    if width is None:
        return ""
    address = ip_address(place[:width])
    if len(place) == width:
        return str(address)
    port = int.from_bytes(place[width:])
    return f"{address}:{port}" if width == 4 else f"[{address}]:{port}"
