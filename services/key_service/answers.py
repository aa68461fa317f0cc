"""Holds the answer to a change back until every stage applies it, and no packet that was judged before is under way.

    key-service ──Confirm──▶ tun, conn, host, every worker ──Confirmed──▶ key-service
                             every worker ──mark, behind its packets──▶ tun, conn ──Cleared──▶ key-service

A stage that is away is not waited for: its successor begins with the new configuration. Beyond a time limit the answer goes
out regardless, with a line in the log. A mark may be lost with its pipe, or by a stage between: MAX_AGE after all workers
have confirmed, it is not waited for any more. By then the packets before it are too old to pass.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from key_service.hub import Hub, Member
from stagewire.control.confirm import Cleared, Confirm, Confirmed
from stagewire.control.messages import HEARTBEAT_INTERVAL
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.pipe.trains import MAX_AGE
from stagewire.stages import WORKER

WITHIN: Final = 2.0
"""s that stages may take for a change."""
PREFIX_WITHIN: Final = 0.0001
"""s more for each of its prefixes."""
MANY_ROUTES: Final = 2048
"""Prefixes of a change whose routes are not waited for: the kernel takes seconds for many."""
_CLEAR: Final = ("tun", "conn")
_ASKED: Final = ("tun", "conn", "host", WORKER)

Awaited = tuple[str, int] | tuple[str, int, int]
"""A stage's Confirmed: (stage, number). A Cleared: (stage, number, worker)."""


@dataclass(slots=True)
class _Answer:
    number: int
    give: Callable[[], None]
    until: float
    awaited: set[Awaited] = field(default_factory=set)
    marks_until: float | None = None
    """When marks are not waited for any more; None before all workers have confirmed."""

    @property
    def deadline(self) -> float:
        return self.until if self.marks_until is None else min(self.until, self.marks_until)


class Answers:
    """Tracks all answers that are held back."""

    def __init__(self, hub: Hub, log: Log) -> None:
        self._hub = hub
        self._log = log
        # Beyond those of an earlier key-service, whose marks may still be under way.
        self._number = secrets.randbits(30)
        self._held: dict[int, _Answer] = {}

    def hold(self, give: Callable[[], None], prefixes: int, *, host: bool) -> None:
        """Calls `give` once a change, which the stages were just told, is applied. `host`: by host-service as well."""
        self._number += 1
        answer = _Answer(self._number, give, boot_time() + WITHIN + PREFIX_WITHIN * prefixes)
        for stage in _ASKED:
            if stage == "host" and (not host or prefixes > MANY_ROUTES):
                continue
            for number in self._hub.numbers(stage):
                if self._hub.tell(stage, number, Confirm(self._number)):
                    answer.awaited.add((stage, number))
                    if stage == WORKER:
                        answer.awaited.update((each, 0, number) for each in _CLEAR)
                elif stage == WORKER and self._died_lately(number):
                    answer.awaited.update((each, 0, number) for each in _CLEAR)
        self._held[self._number] = answer
        self._look(answer, boot_time())

    def _died_lately(self, worker: int) -> bool:
        """Tells whether packets of a worker that can't be told anything may still pass."""
        member = self._hub.member(WORKER, worker)
        return member is not None and boot_time() < member.heard + HEARTBEAT_INTERVAL + 2 * MAX_AGE

    def again(self, stage: str) -> Iterator[Confirm]:
        """Yields what a stage is asked after a new snapshot."""
        if self._held and stage in _ASKED:
            yield Confirm(self._number)

    def take(self, member: Member, message: Confirmed | Cleared, now: float) -> None:
        if isinstance(message, Confirmed):
            self.on_confirmed(member, message, now)
        else:
            self.on_cleared(member, message, now)

    def on_confirmed(self, member: Member, message: Confirmed, now: float) -> None:
        """Takes a stage's word that it applies all that it was told before."""
        if self._hub.member(member.stage, member.number) is member:
            self._arrived((member.stage, member.number), message.number, now)

    def on_cleared(self, member: Member, message: Cleared, now: float) -> None:
        """Takes a stage's word that a worker's packets have left."""
        self._arrived((member.stage, 0, message.worker), message.number, now)

    def on_gone(self, worker: int, now: float) -> None:
        """Waits no more for a dead worker's word. Its last packets count as gone after MAX_AGE."""
        self._arrived((WORKER, worker), self._number, now)

    def _arrived(self, what: Awaited, number: int, now: float) -> None:
        for answer in [each for each in self._held.values() if each.number <= number and what in each.awaited]:
            answer.awaited.discard(what)
            self._look(answer, now)

    def _look(self, answer: _Answer, now: float) -> None:
        if not answer.awaited:
            self._give(answer)
        elif answer.marks_until is None and not any(each[0] == WORKER for each in answer.awaited):
            answer.marks_until = now + MAX_AGE

    def _give(self, answer: _Answer) -> None:
        del self._held[answer.number]
        answer.give()

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns when the next answer is due regardless, or its marks are."""
        return min((answer.deadline for answer in self._held.values()), default=None)

    def act(self, now: float) -> None:
        """Gives the answers that have waited long enough."""
        for answer in list(self._held.values()):
            if answer.marks_until is not None and answer.marks_until <= now:
                answer.awaited = {each for each in answer.awaited if len(each) == 2}
                answer.marks_until = answer.until
            if not answer.awaited:
                self._give(answer)
            elif answer.until <= now:
                names = sorted({" ".join(map(str, each[:2])) for each in answer.awaited})
                self._log.warning(
                    "a change counts as applied, though not every stage has confirmed it", lacking=", ".join(names)
                )
                self._give(answer)
