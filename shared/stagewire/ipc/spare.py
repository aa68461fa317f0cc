"""Waiting for a slot: what a process does until it is at work.

Every program runs one process more than it needs. The one too many, the spare, has imported everything and waits here, as
root still, so that taking over is a start like any other, only without what takes long. Three things can end the wait:

- The holder dies. Its end of the line between the two closes, and the lock is free: within a millisecond.
- The lock is found free at one of the looks, twenty a second: there was no line yet.
- The holder's heartbeat stands still: it is killed, and then it has died. By SIGKILL, so that no copy is left to go on.

Over the line the holder gives copies of descriptors away (`bequest`): the kernel's queues behind them outlive the process
that reads them. A spare reads nothing else, from nobody.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stagewire import privileges
from stagewire.ipc import bequest, endpoints, slots
from stagewire.ipc.loop import boot_time
from stagewire.ipc.slots import Slot
from stagewire.logs import Log

LOOK_INTERVAL: Final = 0.05
"""s between two looks at what is waited for."""
HUNG_AFTER: Final = 0.3
"""s without a heartbeat, of one every 0.05 s, after which a holder that sleeps or is stopped counts as hung."""
HUNG_RUNNING_AFTER: Final = 1.5
"""s after which one that runs does: it may only have got no CPU."""
HUNG_LOOKS: Final = 5
"""Looks in a row that must have found it so: a machine that was suspended makes one long gap, not many."""
_FREE_WITHIN: Final = 0.05
"""s from the end of the line to the lock's being free; the kernel closes one descriptor after another."""
_DELETED_PATIENCE: Final = 1.0
"""s for the holder of a file that was taken away to notice; one that is hung is killed then."""


@dataclass(slots=True)
class _Watched:
    """A slot that somebody else holds."""

    slot: Slot
    line: socket.socket | None = None
    inherited: dict[str, int] = field(default_factory=dict)
    beat: float = -1.0
    since: float = 0.0
    looks: int = 0


class Spare:
    """A process of `stage` that waits for one of several slots."""

    def __init__(
        self,
        run: Path,
        stage: str,
        numbers: Callable[[], Sequence[int]],
        holder_uid: int,
        log: Log,
        *,
        urgent: bool = False,
    ) -> None:
        """`numbers` are those of the slots there are, and may change. `holder_uid` is what a holder runs as.

        `urgent`: packets wait when the holder dies. The slot's taker has to let others go first again.
        """
        self._run = run
        self._stage = stage
        self._numbers = numbers
        self._holder_uid = holder_uid
        self._log = log
        self._urgent = urgent
        self._watched: dict[int, _Watched] = {}
        self._poll = select.poll()

    def wait(self) -> tuple[Slot, dict[str, int]]:
        """Returns the slot once it is held, with the descriptors that the holder before left. Raises OSError."""
        try:
            taken = self._wait()
            self._set_folders_right()
        except OSError:
            # Nothing may stay open: it may be the last copy of a socket, whose port somebody else wants to open.
            for watched in self._watched.values():
                self._forget(watched)
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
                # All is loaded and looked through. To wait takes next to nothing, and when it ends others wait for us.
                privileges.be_as_nice_as_parent()
                if self._urgent:
                    privileges.go_first()
                self._log.info("waits: another process is at work in this place", pid=os.getpid())
            while taken is None and (events := self._poll.poll(LOOK_INTERVAL * 1000)):
                taken = self._on_lines([descriptor for descriptor, _ in events])
            if taken is not None:
                return taken

    # --- looks ---------------------------------------------------------------------------------------------

    def _look(self) -> _Watched | None:
        numbers = self._numbers()
        for number in [number for number in self._watched if number not in numbers]:
            self._forget(self._watched.pop(number))
        self._open(numbers)
        for number in numbers:
            watched = self._watched[number]
            if watched.slot.take(boot_time()):
                while watched.line is not None and _has_news(watched.line) and self._inherit(watched):
                    pass  # what it left us may have come and not been read yet
                return watched
            self._look_at(watched)
        return None

    def _open(self, numbers: Sequence[int]) -> None:
        """Opens the slots that are new to us, and those whose file is another than it was."""
        fresh = []
        for number in numbers:
            watched = self._watched.get(number)
            if watched is None:
                # The line first: who ends a holder because another process has the file open means one with a line.
                line = self._ask(number)
                try:
                    watched = self._watched[number] = _Watched(self._slot(number), line)
                except OSError:
                    if line is not None:
                        line.close()
                    raise
            elif not watched.slot.in_place():
                # What was left to us is as good as before, and so is the line, whose end tells that the holder has gone.
                deleted, watched.slot = watched.slot, self._slot(number)
                deleted.close()
            else:
                continue
            fresh.append(self._watched[number].slot.path)
        if not fresh:
            return
        # The run folder may have been wiped under a holder, which notices within a quarter of a second. Whoever made
        # the new file, nobody takes it before that.
        until = boot_time() + _DELETED_PATIENCE
        while left := slots.holders_of_deleted(fresh):
            if boot_time() > until:
                for pid in left:
                    _kill(pid, lambda pid=pid: pid in slots.holders_of_deleted(fresh))  # type: ignore[misc]
            time.sleep(0.02)

    def _slot(self, number: int) -> Slot:
        self._set_folders_right()
        return Slot(self._run, self._stage, number)

    def _set_folders_right(self) -> None:
        if not (self._run / self._stage).is_dir():
            endpoints.prepare_folders(self._run, self._stage)

    def _look_at(self, watched: _Watched) -> None:
        if watched.line is None:
            watched.line = self._ask(watched.slot.number)
        now, beat = time.monotonic(), watched.slot.last_beat
        if beat != watched.beat or boot_time() < watched.slot.silent_until:
            watched.beat, watched.since, watched.looks = beat, now, 0
            return
        watched.looks += 1
        silent = now - watched.since
        if silent < HUNG_AFTER or watched.looks < HUNG_LOOKS:
            return
        pid = watched.slot.holder()
        if pid is None or (silent < HUNG_RUNNING_AFTER and _state(pid) == "R"):
            return
        self._log.warning(
            "kills a holder that stands still", number=watched.slot.number, hung=pid, for_s=round(silent, 2)
        )
        _kill(pid, lambda: watched.slot.holder() == pid and watched.slot.last_beat == beat)

    # --- lines ---------------------------------------------------------------------------------------------

    def _on_lines(self, descriptors: Sequence[int]) -> _Watched | None:
        for watched in self._watched.values():
            if watched.line is None or watched.line.fileno() not in descriptors:
                continue
            if self._inherit(watched):
                continue
            if self._urgent:
                privileges.let_go_first(bequest.peer_pid(watched.line))
            self._hang_up(watched)
            until = boot_time() + _FREE_WITHIN
            while (now := boot_time()) < until:
                if watched.slot.take(now):
                    return watched
                time.sleep(0.0003)
        return None

    def _ask(self, number: int) -> socket.socket | None:
        line = bequest.ask(self._run / self._stage, number, self._holder_uid)
        if line is not None:
            self._poll.register(line, select.POLLIN)
        return line

    def _inherit(self, watched: _Watched) -> bool:
        """Takes one packet from the line; False when it has ended."""
        received = None if watched.line is None else bequest.receive(watched.line)
        if received is None:
            return False
        _close_all(watched.inherited)
        watched.inherited = received
        return True

    def _hang_up(self, watched: _Watched) -> None:
        if watched.line is not None:
            self._poll.unregister(watched.line)
            watched.line.close()
            watched.line = None

    def _forget(self, watched: _Watched) -> None:
        self._hang_up(watched)
        _close_all(watched.inherited)
        watched.slot.close()


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def _has_news(line: socket.socket) -> bool:
    return bool(select.select([line], [], [], 0)[0])


def _state(pid: int) -> str:
    """The kernel's letter for what a process does: R runs or wants to, T is stopped."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _kill(pid: int, still: Callable[[], bool]) -> None:
    """Kills the process that is meant and no other that got its number meanwhile."""
    with suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            if still():
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
