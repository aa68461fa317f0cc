"""Sends snapshots in pieces, one stage after the other. Between two pieces the loop turns, so that handshakes go on.

A snapshot of 130,000 prefixes takes a second of work, and four stages may ask for it at once. The sender rests after each
piece: the stages carry packets on the same processors.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from key_service.announce import Announcer
from key_service.hub import Hub, Member
from stagewire.control.messages import FromKey, SnapshotEnd, Welcome
from stagewire.loop import boot_time

PIECE: Final = 0.01
"""s of work in a piece, and of rest after it. Most snapshots are a single piece."""


class Snapshots:
    """Sends each member that said hello its snapshot. Changes of peers and prefixes must wait while any is under way.

    A move between workers need not wait: each batch takes the homes that are in force when it is made.
    """

    def __init__(
        self,
        hub: Hub,
        announcer: Announcer,
        generation: int,
        version: int,
        after: Callable[[str], Iterable[FromKey]] = lambda _stage: (),
    ) -> None:
        """Takes the `generation` of this process, and the `version` of its snapshots. `after` follows a stage's snapshot."""
        self._hub = hub
        self._announcer = announcer
        self._generation = generation
        self._version = version
        self._after = after
        self._under_way: dict[bytes, Iterator[FromKey]] = {}
        """By the member's identity, the first hello first."""
        self._due = 0.0
        self._held_until = 0.0

    def hold(self, until: float) -> None:
        """Sends nothing before that time (s) or `release`. Stages go on with what an earlier key-service told them."""
        self._held_until = until

    def release(self) -> None:
        """Ends a `hold`, and sends what has waited."""
        if self._held_until:
            self._held_until = 0.0
            self.act(boot_time())

    def begin(self, member: Member) -> None:
        """Sends a snapshot, or a piece of it if it is long or others wait."""
        self._under_way.pop(member.identity, None)
        self._under_way[member.identity] = self._messages(member)
        if len(self._under_way) == 1 and boot_time() >= self._held_until:
            self.act(boot_time())

    def next_deadline(self) -> float | None:
        """Returns the time (s) of the next piece; None while no snapshot is under way."""
        return max(self._due, self._held_until) if self._under_way else None

    def act(self, now: float) -> None:
        """Sends a piece."""
        until = now + PIECE
        while self._under_way:
            identity, messages = next(iter(self._under_way.items()))
            for message in messages:
                self._hub.send(identity, message)
                if (now := boot_time()) >= until:
                    self._due = now + PIECE
                    return
            del self._under_way[identity]

    def _messages(self, member: Member) -> Iterator[FromKey]:
        yield Welcome(self._generation, self._version)
        yield from self._announcer.snapshot(member.stage, member.number)
        yield SnapshotEnd(self._version)
        yield from self._after(member.stage)
