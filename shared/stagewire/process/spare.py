"""Waits for a slot, until the process becomes its holder.

Spares wait beside the active processes. A spare has imported everything, and is still root. So a take-over is a start like
any other, without the slow part. Three things can end the wait:

- The holder dies. Its end of the line to the spare closes, and its lock is free at once.
- A look finds the lock free, when there was no line yet.
- The holder's heartbeat stops. The spare kills the holder by SIGKILL, which ends a stopped process too.

While the holder sleeps, its spare rests: it looks rarely, but at once when work comes for the holder. So an idle gateway
needs next to no CPU, and a holder that was stopped in its sleep is found when packets wait for it.

Over the line the holder hands down copies of its descriptors (`hand_down`). The kernel's queues behind the descriptors
outlive the holder. A spare reads nothing else.

A spare is root, so it believes nothing that a holder says. The kernel tells it which process has the lock. A holder can
only hurt itself: it ends, hangs, or leaves nothing worth having.
"""

import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stagewire.linux import own_pages, privileges
from stagewire.linux.peer_credentials import peer_process, pid_of
from stagewire.logs import Log
from stagewire.loop import MAX_SLEEP, boot_time
from stagewire.pipe.pipes import prepare_folders
from stagewire.process import giving_back, hand_down, handed, holders, signals, slots
from stagewire.process.holders import Presence
from stagewire.process.slots import Slot

LOOK_INTERVAL: Final = 0.05
"""s between two looks at the slots."""
REST_INTERVAL: Final = 5.0
"""s between two looks while every holder sleeps."""
AWAKE_FOR: Final = 1.0
"""s without a rest after work has come: under traffic a spare must not wake for each packet."""
PREPARE_AFTER: Final = 0.5
"""s between the first two looks at a holder's pages. Each later time is twice as long."""
HUNG_AFTER: Final = 0.3
"""s without a heartbeat after which a holder that sleeps or is stopped counts as hung; `loop` beats more often."""
HUNG_RUNNING_AFTER: Final = 1.5
"""s without a heartbeat after which a running holder counts as hung: it may only lack a processor."""
HUNG_LOOKS: Final = 5
"""Looks in a row without a new heartbeat: a suspended machine makes one long gap, but not many looks."""
_FREE_WITHIN: Final = 0.05
"""s from the end of the line to a free lock; the kernel closes one descriptor after another."""
MAX_NEWS: Final = 8
"""Packets of one line between two looks; more wait. A holder that sends without end must not keep the processor."""
MAX_LAST_NEWS: Final = 256
"""Packets that are read at a take-over; no more fit into a line."""
_DELETED_PATIENCE: Final = MAX_SLEEP + 1.0
"""s for the holder of a removed file to wake and notice; a holder that has not ended by then counts as hung."""

_KILLED_PATIENCE: Final = 3.0
"""s for killed processes to go. They work no more, and a hostile one could fork without end."""


@dataclass(slots=True)
class _Watched:
    """Tracks a slot that another process holds."""

    slot: Slot
    line: socket.socket | None = None
    process: int | None = None
    """Descriptor of the process at the line's other end."""
    inherited: dict[str, int] = field(default_factory=dict)
    work: frozenset[int] = frozenset()
    """Of `inherited`, what is readable while work waits for the holder."""
    beat: float = -1.0
    since: float = 0.0
    looks: int = 0
    news: int = 0
    """Packets read since the last look; the line rests from MAX_NEWS on."""


class Spare:
    """Waits for one of several slots of a stage."""

    def __init__(
        self,
        run: Path,
        stage: str,
        numbers: Callable[[], Sequence[int]],
        holder_uid: Callable[[int], int],
        log: Log,
        *,
        urgent: bool = False,
        prepared: bool = False,
    ) -> None:
        """Calls `numbers` at each look for the slots' numbers. `holder_uid` tells the uid of a slot's holder.

        `urgent`: packets wait when the holder dies, so the spare goes first. After a take-over the caller ends that.
        `prepared`: the spare also gets the memory pages beforehand that its holder has, for as much memory.
        """
        self._run = run
        self._stage = stage
        self._numbers = numbers
        self._holder_uid = holder_uid
        self._log = log
        self._urgent, self._prepared = urgent, prepared
        self._watched: dict[int, _Watched] = {}
        self._poll = select.poll()
        self._woken = -math.inf
        self._prepares_at, self._prepares_after = -math.inf, PREPARE_AFTER
        """When work ended a rest (s)."""
        self.presence: Presence | None = None

    def wait(self) -> tuple[Slot, dict[str, int]]:
        """Returns the slot once this process holds it, with the last holder's descriptors. Raises OSError."""
        try:
            taken = self._wait()
            self._be_present()
        except OSError:
            # The last copy of a socket would keep its port from other programs, so nothing may stay open.
            for watched in self._watched.values():
                self._forget(watched)
            if self.presence is not None:
                self.presence.close()
            raise
        self._hang_up(taken)
        for watched in self._watched.values():
            if watched is not taken:
                self._forget(watched)
        return taken.slot, taken.inherited

    def _wait(self) -> _Watched:
        said = False
        while True:
            taken = self._look()
            if taken is None and not said:
                said = True
                giving_back.give_back()  # with the low priority of a start: it takes as long as some packets
                # The costly part is done: waiting takes next to no CPU, and a take-over must not be slow.
                privileges.be_as_nice_as_parent()
                if self._urgent:
                    privileges.go_first()
                # Last: a rolling restart ends a holder once a spare is present, and counts on its line and its priority.
                self._be_present()
                self._log.info("waits: another process is at work in each slot", pid=os.getpid())
            if taken is None:
                resting = self._may_rest()
                taken = self._rest() if resting else self._listen(LOOK_INTERVAL)
                if taken is None and self._prepared:
                    self._prepare(time.monotonic(), resting=resting)
            if taken is not None:
                return taken

    def _listen(self, seconds: float) -> _Watched | None:
        """Waits for the end of a holder, until the next look."""
        taken, until = None, time.monotonic() + seconds
        while taken is None and (rest := until - time.monotonic()) > 0:
            taken = self._on_lines([descriptor for descriptor, _ in self._poll.poll(rest * 1000)])
        return taken

    def _prepare(self, now: float, *, resting: bool) -> None:
        """Gets the pages that a holder at work has, ever more rarely: a look takes time."""
        if now < self._prepares_at:
            return
        self._prepares_at, self._prepares_after = now + self._prepares_after, 2 * self._prepares_after
        if resting:  # the holder may have given back, too; under traffic a look must be short
            giving_back.give_back()
        for watched in self._watched.values():
            if (pid := watched.slot.holder(self._holder_uid(watched.slot.number))) is not None:
                own_pages.make_own(pid)

    def _may_rest(self) -> bool:
        """Tells whether every holder sleeps, and no work waits for it."""
        now, all_watched = boot_time(), self._watched.values()
        return time.monotonic() > self._woken + AWAKE_FOR and all(
            each.line is not None and each.slot.sleeps(now) and not _readable(each.work) for each in all_watched
        )

    def _rest(self) -> _Watched | None:
        """Waits long, but no longer than until work comes for a holder, or a holder says something or ends."""
        work = {descriptor for watched in self._watched.values() for descriptor in watched.work}
        for descriptor in work:
            self._poll.register(descriptor, select.POLLIN)
        try:
            ready = {descriptor for descriptor, _ in self._poll.poll(REST_INTERVAL * 1000)}
        finally:
            for descriptor in work:
                self._poll.unregister(descriptor)
        if ready & work:
            self._woken = time.monotonic()
        return self._on_lines(ready - work)

    # --- looks ---------------------------------------------------------------------------------------------

    def _look(self) -> _Watched | None:
        numbers = self._numbers()
        for number in [number for number in self._watched if number not in numbers]:
            self._forget(self._watched.pop(number))
        self._open(numbers)
        for number in numbers:
            watched = self._watched[number]
            if watched.slot.take(boot_time()):
                for _ in range(MAX_LAST_NEWS):  # the last hand-down may have come, but not been read yet
                    if watched.line is None or not _has_news(watched.line) or not self._inherit(watched):
                        break
                return watched
            self._look_at(watched)
        return None

    def _open(self, numbers: Sequence[int]) -> None:
        """Opens new slots, and slots whose file was replaced."""
        fresh, lost = [], []
        for number in numbers:
            watched = self._watched.get(number)
            if watched is None:
                watched = self._watched[number] = _Watched(self._slot(number))
                self._connect(watched, self._ask(number))
            elif not watched.slot.in_place():
                # The descriptors stay good, and so does the line: its end still tells that the holder is gone.
                lost.append(watched.slot)
                watched.slot = self._slot(number)
            else:
                continue
            fresh.append(self._watched[number].slot.path)
        if fresh:
            self._wait_for_lost(lost, fresh)
        for slot in lost:
            slot.close()

    def _wait_for_lost(self, lost: Sequence[Slot], fresh: Sequence[Path]) -> None:
        """Waits until no process holds a removed file: a file that we had open, or another of the `fresh` names.

        After a wipe of the run folder a holder goes on until it notices. No spare may take a new file before that.
        """

        def left() -> set[int]:
            known = {pid for pid in slots.holders_of_deleted(fresh) if self._is_of_stage(pid)}
            return known | {pid for slot in lost if (pid := slot.holder(self._holder_uid(slot.number)))}

        until = boot_time() + _DELETED_PATIENCE
        while (found := left()) and boot_time() < until + _KILLED_PATIENCE:
            if boot_time() > until:
                for pid in found:
                    _kill(pid, lambda pid=pid: pid in left())  # type: ignore[misc]
            time.sleep(0.02)

    def _is_of_stage(self, pid: int) -> bool:
        return any(holders.runs_as(pid, self._holder_uid(number)) for number in self._watched)

    def _slot(self, number: int) -> Slot:
        self._set_folders_right()
        return Slot(self._run, self._stage, number)

    def _set_folders_right(self) -> None:
        if not (self._run / self._stage).is_dir():
            prepare_folders(self._run, self._stage)
        if self.presence is not None and not self.presence.in_place():
            self.presence.renew()

    def _be_present(self) -> None:
        self._set_folders_right()
        if self.presence is None:
            self.presence = Presence(self._run, self._stage)

    def _look_at(self, watched: _Watched) -> None:
        if watched.line is None:
            self._connect(watched, self._ask(watched.slot.number))
        elif watched.news >= MAX_NEWS:
            self._poll.register(watched.line, select.POLLIN)
        watched.news = 0
        now, clock = time.monotonic(), boot_time()
        beat = watched.slot.last_beat(clock)
        # No number (NaN) is greater than none.
        if (
            beat > watched.beat
            or watched.slot.may_be_silent(clock)
            or (watched.slot.sleeps(clock) and not self._is_held_up(watched))
        ):
            watched.beat, watched.since, watched.looks = max(beat, watched.beat), now, 0
            return
        watched.looks += 1
        silent = now - watched.since
        if silent < HUNG_AFTER or watched.looks < HUNG_LOOKS:
            return
        uid = self._holder_uid(watched.slot.number)
        pid = watched.slot.holder(uid)
        if silent < HUNG_RUNNING_AFTER and (pid is None or _runs(pid)):
            return
        if pid is None:
            # A holder that has ended can have left its lock to a process that we don't know.
            self._log.warning("gives a slot up whose lock no process of ours has", number=watched.slot.number)
            watched.slot.give_up(uid)
            return
        self._log.warning("kills a hung holder", number=watched.slot.number, hung=pid, for_s=round(silent, 2))
        _kill(pid, lambda: watched.slot.holder(uid) == pid and watched.slot.last_beat(boot_time()) <= beat)
        watched.since, watched.looks = now, 0  # a frozen process keeps its lock; its slot is given up later

    def _is_held_up(self, watched: _Watched) -> bool:
        """Tells whether work waits for a sleeping holder that is stopped, and so can't wake."""
        if not _readable(watched.work):
            return False
        # host-service's sockets are often readable, so the search for a lock's owner waits until there is a reason.
        pid = pid_of(watched.process) if watched.process is not None else None
        if pid is not None and _state(pid) not in {"T", "t"}:
            return False
        pid = watched.slot.holder(self._holder_uid(watched.slot.number))
        return pid is not None and _state(pid) in {"T", "t"}

    # --- lines ---------------------------------------------------------------------------------------------

    def _on_lines(self, descriptors: Collection[int]) -> _Watched | None:
        for watched in self._watched.values():
            if watched.line is None or watched.line.fileno() not in descriptors:
                continue
            if self._inherit(watched):
                watched.news += 1
                if watched.news == MAX_NEWS:
                    self._poll.unregister(watched.line)
                continue
            if self._urgent and watched.process is not None and (pid := pid_of(watched.process)) is not None:
                privileges.let_go_first(pid)
            self._hang_up(watched)
            until = boot_time() + _FREE_WITHIN
            while (now := boot_time()) < until:
                if watched.slot.take(now):
                    return watched
                time.sleep(0.0003)
        return None

    def _ask(self, number: int) -> socket.socket | None:
        line = hand_down.ask(self._run / self._stage, number, self._holder_uid(number))
        if line is not None:
            self._poll.register(line, select.POLLIN)
        return line

    def _connect(self, watched: _Watched, line: socket.socket | None) -> None:
        watched.line = line
        if line is not None:
            with suppress(OSError):
                watched.process = peer_process(line)

    def _inherit(self, watched: _Watched) -> bool:
        """Takes one packet from the line. Returns False when the line has ended."""
        try:
            received = None if watched.line is None else hand_down.receive(watched.line)
        except BlockingIOError:
            return True
        if received is None:
            return False
        hand_down.close_all(watched.inherited.values())
        uid = self._holder_uid(watched.slot.number)
        watched.inherited = hand_down.sound(received, self._run, self._stage, uid)
        watched.work = frozenset(each for name, each in watched.inherited.items() if handed.brings_work(name))
        return True

    def _hang_up(self, watched: _Watched) -> None:
        if watched.line is not None:
            with suppress(KeyError):  # it rests
                self._poll.unregister(watched.line)
            watched.line.close()
            watched.line, watched.news = None, 0
        if watched.process is not None:
            os.close(watched.process)
            watched.process = None

    def _forget(self, watched: _Watched) -> None:
        self._hang_up(watched)
        hand_down.close_all(watched.inherited.values())
        watched.slot.close()


def _has_news(line: socket.socket) -> bool:
    return bool(select.select([line], [], [], 0)[0])


def _readable(descriptors: Iterable[int]) -> bool:
    """Tells whether any of these descriptors has something to read, or has ended."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _runs(pid: int) -> bool:
    """Tells whether a process is on a processor or waits for one."""
    return _state(pid) == "R"


def _state(pid: int) -> str:
    """Returns the letter of a process's state (proc(5)), or nothing."""
    return holders.status(pid).get("State", "")[:1]


def _kill(pid: int, still: Callable[[], bool]) -> None:
    """Kills a process, but not another process that has got its pid."""
    with suppress(OSError):
        signals.send(pid, signal.SIGKILL, lambda _pid: still())
