"""Ends all processes of an interface at once.

It sends SIGKILL, first to supervisord and its children: ten interpreters that end in good order take seconds on busy
processors. No stage loses anything by that but the history, which has some bytes to come. So key- and status-service get a
moment to report and to write them, once no stage carries packets any more.

The next program may want the UDP port at once. So killed processes get the processor first. We wait for each of them by
its descriptor: a half-dead process has no command line, perhaps no lock any more, and may still hold the port.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from stagewire.environment import Environment
from stagewire.linux import privileges
from stagewire.process import holders, signals, slots
from stagewire.stages import WORKER
from stagewire_cli import processes
from stagewire_cli.processes import Found

GONE_WITHIN: Final = 10.0
"""s from the signal to the end; a process that waits for a disk can't be killed meanwhile."""
_ROUNDS: Final = 10
"""Each ends processes that a supervisord started before it was stopped."""
FOLLOWS_WITHIN: Final = 2.0
"""s that a keeper gets to notice the end of the others."""
_STOPPED_WITHIN: Final = 0.2
"""s that a supervisord gets to stop."""
_WRITTEN_WITHIN: Final = 1.0
"""s that status-service gets to write the history."""
_LOOK: Final = 0.005
"""s between two looks."""
_ASKED: Final = (("key", 0), ("status", 0))


def end_all(environment: Environment) -> frozenset[int]:
    """Kills all processes but keepers; returns those that have not ended in time, and can do nothing more."""
    left: frozenset[int] = frozenset()
    let_write(environment)
    for _ in range(_ROUNDS):
        found = processes.find(environment)
        left = found.supervisords | found.services
        if not left or not _kill(found, environment):
            break
    return left


def let_write(environment: Environment) -> None:
    """Kills all that could carry packets or begin anew, and waits until those have ended and the history is written."""
    run = environment.run
    at_work = slots.held(run)
    if not all(place in at_work for place in _ASKED):
        return
    with ExitStack() as stack:
        supervisords = holders.present(run, holders.SUPERVISORD)
        stopped = {pid: process for pid in supervisords if (process := _open(stack, pid))}
        for pid in stopped.keys() & {*holders.present(run, holders.SUPERVISORD)}:
            _send(stopped[pid], signal.SIGSTOP)
        opened = {pid: process for pid in slots.contenders(run) if (process := _open(stack, pid))}
        still, at_work = {*slots.contenders(run)}, slots.held(run)
        asked = [at_work.get(place) for place in _ASKED]
        needed = {pid for (stage, _), pid in at_work.items() if stage == WORKER} | {*asked}
        killed = {pid: opened[pid] for pid in opened.keys() & still - needed}
        _kill_first(killed)
        for pid in stopped:  # it may only now get the processor
            _wait_until_stopped(pid)
        for pid in [pid for pid in asked if pid in opened]:
            privileges.let_idle_threads_run(pid)
            _send(opened[pid], signal.SIGTERM)
        # status-service frees its slot as soon as all is written; its interpreter takes longer to end.
        until = time.monotonic() + _WRITTEN_WITHIN
        writing = opened.get(at_work.get(_ASKED[1], 0))
        while writing is not None and _ASKED[1] in slots.held(run) and time.monotonic() < until:
            signals.wait([writing], _LOOK)
        signals.wait(killed.values(), GONE_WITHIN)


def complaint(left: Iterable[int]) -> str:
    """Names processes that don't end."""
    return f"processes do not end though they were killed: pids {', '.join(map(str, sorted(left)))}"


def _kill(found: Found, environment: Environment) -> bool:
    """Says whether all have ended."""
    with ExitStack() as stack:
        opened = {pid: process for pid in found.supervisords | found.services if (process := _open(stack, pid))}
        # A pid may have gone to another process before it was opened.
        still = processes.find(environment)
        for pid in opened.keys() & still.supervisords:
            kill_with_children(pid, opened[pid])
        _kill_first({pid: opened[pid] for pid in opened.keys() & still.services})
        killed = opened.keys() & (still.supervisords | still.services)
        return signals.wait([opened[pid] for pid in killed], GONE_WITHIN)


def kill_with_children(pid: int, process: int) -> None:
    """Kills a supervisord, by its descriptor, and all its children; waits for their end."""
    _stop(pid, process)
    with ExitStack() as stack:
        opened = {each: child for each in processes.children(pid) if (child := _open(stack, each))}
        ours = [each for each in opened if holders.parent(each) == pid]
        doomed = {pid: process} | {each: opened[each] for each in ours}
        _kill_first(doomed)
        signals.wait(doomed.values(), GONE_WITHIN)


def _kill_first(doomed: Mapping[int, int]) -> None:
    """Kills processes, by pid and descriptor, and has them end before other programs get the processor."""
    for process in doomed.values():
        _send(process, signal.SIGKILL)
    for pid in doomed:
        privileges.let_go_first(pid)
        privileges.let_idle_threads_run(pid)


def _stop(pid: int, process: int) -> None:
    """Stops a supervisord, by its descriptor: it starts nothing more."""
    _send(process, signal.SIGSTOP)
    _wait_until_stopped(pid)


def _wait_until_stopped(pid: int) -> None:
    stopped = time.monotonic() + _STOPPED_WITHIN
    while processes.state(pid) not in "TZ" and time.monotonic() < stopped:
        time.sleep(0.001)


@contextmanager
def followed_by(pids: Iterable[int]) -> Iterator[None]:
    """Waits after the block until these processes have ended by themselves; kills them if they don't."""
    with ExitStack() as stack:
        opened = [process for pid in pids if pid != os.getpid() and (process := _open(stack, pid))]
        yield
        if opened and not signals.wait(opened, FOLLOWS_WITHIN):
            for process in opened:
                _send(process, signal.SIGKILL)
            signals.wait(opened, GONE_WITHIN)


def _open(stack: ExitStack, pid: int) -> int | None:
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    stack.callback(os.close, process)
    return process


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)
