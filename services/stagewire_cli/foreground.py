"""Runs an interface in the foreground from `up` to `down`, for `stagewire run` under systemd or in a container.

This process runs the hooks, tells systemd when traffic can flow, takes the interface down on SIGTERM, and reloads on SIGHUP.
supervisord is its child. If that is killed, its stages work on; this process starts another, which takes them over.
If this process is killed, supervisord dies with it, and the next `stagewire run` takes over in the same way.
"""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stagewire import journal
from stagewire.config import InterfaceConfig
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.stages import STAGES
from stagewire_cli import bring_up, by_filter, notify, processes, readiness, turn
from stagewire_cli.claim import Claim
from stagewire_cli.done import POST_UP, DoneList
from stagewire_cli.failures import Failed
from stagewire_cli.supervision import Supervision

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PAUSE: Final = 1.0
"""s between two starts of a supervisord that is killed again and again."""
_LOOK: Final = 10.0
"""s between two looks at whether traffic can flow."""
_CAN_FLOW: Final = "traffic can flow"

_libc = ctypes.CDLL(None, use_errno=True)


class _Told(Exception):  # noqa: N818 - no error, but the operator's wish
    """Says that SIGTERM or SIGINT came."""


class _Signals:
    """Collects the signals that came."""

    def __init__(self, wakeup: socket.socket) -> None:
        self._wakeup = wakeup
        self._came: set[int] = set()

    def wait(self, timeout: float | None) -> None:
        """Returns when a signal has come."""
        select.select([self._wakeup], [], [], timeout)
        with suppress(BlockingIOError):
            self._came.update(self._wakeup.recv(4096))

    def take(self, number: int) -> bool:
        """Says whether this signal has come since the last call."""
        came = number in self._came
        self._came.discard(number)
        return came

    def came(self) -> bool:
        """Says whether a signal waits to be taken."""
        return bool(self._came)

    def end_if_told(self) -> None:
        """Raises _Told after SIGTERM or SIGINT."""
        self.wait(0)
        if self._came & {signal.SIGTERM, signal.SIGINT}:
            raise _Told


@contextmanager
def _signals() -> Iterator[_Signals]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            yield _Signals(ours)
        finally:
            signal.set_wakeup_fd(-1)


class Foreground:
    """Runs one interface in this process."""

    def __init__(self, environment: Environment, say: Callable[[str], None], reload: Callable[[], None]) -> None:
        """Takes `reload`, which applies the file or raises Failed and changes nothing."""
        self._environment = environment
        self._say = say
        self._reload = reload
        self._supervisord = 0
        self._status: int | None = None
        self._readiness = _CAN_FLOW

    def run(self, load: Callable[[], InterfaceConfig]) -> bool:
        """Returns when the interface is down again; says whether every step worked. Raises Failed.

        `load` reads the file. It isn't called to take over stages that are at work.
        """
        try:
            claim = self._claim = Claim(self._environment)
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from None
        if not claim.take():
            raise Failed(f"another `stagewire run` has it; `stagewire down {self._environment.interface}` ends that")
        worked = False
        try:
            # A killed supervisord's children become ours; the next supervisord knows them by their parent.
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            with _signals() as self._signals:
                worked = self._from_up_to_down(load)
        finally:
            claim.give_up(failed=not worked)
        return worked

    def _from_up_to_down(self, load: Callable[[], InterfaceConfig]) -> bool:
        try:
            if not self._adopts():
                bring_up.up(
                    self._environment, load(), self._say, start=self._start, meanwhile=self._signals.end_if_told
                )
            notify.ready(_CAN_FLOW)
            self._say("is up")
            self._stay()
        except _Told:
            pass
        if not self._environment.run.exists():  # it never came up, or a command took it down
            return True
        notify.stopping()
        with suppress(OSError):  # a full disk
            self._claim.begin_to_end()
        return bring_up.end(self._environment, self._say)

    def _adopts(self) -> bool:
        """Takes over stages that an earlier life left at work, unless a command ends them; says whether it did."""
        with turn.take(self._environment, unless=self._is_told):
            if not self._is_left_at_work():
                return False
            self._say("takes over the processes that an earlier life left at work")
            self._start_anew()
            return True

    def _is_told(self) -> bool:
        self._signals.end_if_told()
        return False

    def _is_left_at_work(self) -> bool:
        done = DoneList(self._environment.run).read()
        return (
            done is not None
            and POST_UP in done.steps
            and Supervision(self._environment).pid() is None
            and bool(processes.services(self._environment))
        )

    def _stay(self) -> None:
        """Returns when supervisord was told to end; raises _Told when this process is."""
        while True:
            self._signals.end_if_told()
            if self._signals.take(signal.SIGHUP):
                self._apply()
            if self._signals.take(signal.SIGCHLD):
                self._collect()
            if self._status is None:
                self._signals.wait(_LOOK if notify.is_heard() else None)
                if not self._signals.came():
                    self._look()
            elif os.WIFSIGNALED(self._status):
                self._say(f"supervisord was killed by signal {os.WTERMSIG(self._status)}; starting it again")
                self._start_anew()
            elif os.WEXITSTATUS(self._status) == 0:
                return
            else:
                raise Failed(f"supervisord ended with status {os.WEXITSTATUS(self._status)}; its last lines say why")

    def _look(self) -> None:
        """Tells systemd when traffic can no longer flow, and when it can again. The unit goes on: stages mend themselves."""
        if not notify.is_heard():
            return
        try:
            reasons = readiness.why_not(self._environment)
        except (Failed, query.OtherVersion):  # the interface ends, or `restart all` has begun
            return
        text = f"no traffic can flow: {'; '.join(reasons)}" if reasons else _CAN_FLOW
        if text != self._readiness:
            self._readiness = text
            notify.status(text)

    def _apply(self) -> None:
        notify.reloading()
        try:
            self._reload()
            notify.ready(self._readiness)
        except Failed as failed:
            self._say(f"not reloaded: {failed}")
            notify.ready(f"{self._readiness}; not reloaded: {failed}")

    def _collect(self) -> None:
        """Reaps all children that have ended, keeps supervisord's status, and names stages that the filter killed.

        Stages are children of this process from the death of a supervisord until the next one has replaced them.
        """
        with suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                name = _program(ended.si_pid)
                pid, status = os.waitpid(ended.si_pid, 0)
                if pid == self._supervisord:
                    self._status = status
                elif by_filter.was_the_end(status):
                    for warning in by_filter.warnings({name: 1}):
                        self._say(warning)

    def _start_anew(self) -> None:
        supervision = Supervision(self._environment)
        if self._status is not None:
            self._signals.wait(_PAUSE)
        try:
            supervision.write_configuration(foreground=True)
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from None
        bring_up.start_and_wait(self._environment, self._signals.end_if_told, self._start)

    def _start(self, supervision: Supervision) -> None:
        program = str(Path(sys.executable).parent / "supervisord")
        variables = {name: value for name, value in supervision.variables().items() if name != notify.VARIABLE}
        line = journal.connect("supervisord") if journal.is_behind(1, os.environ) else None
        if line is not None:
            variables[journal.VARIABLE] = journal.named(line)
        supervision.socket.unlink(missing_ok=True)  # a killed supervisord leaves it
        # In a session of its own it doesn't hear a terminal's Ctrl-C, and hooks run before anything ends.
        started = subprocess.Popen(
            [program, "-c", str(supervision.configuration)], env=variables, stdin=subprocess.DEVNULL, stdout=line,
            stderr=line, start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread runs here
        )  # fmt: skip
        if line is not None:
            os.close(line)
        self._supervisord, self._status = started.pid, None
        started.returncode = 0  # Popen must not wait for it: `_collect` does
        until = time.monotonic() + bring_up.READY_WITHIN
        while not supervision.socket.exists() and time.monotonic() < until:
            self._signals.end_if_told()
            self._collect()
            if self._status is not None:
                raise Failed("supervisord did not start; its last lines say why")
            self._signals.wait(0.02)


def _program(pid: int) -> str:
    """Returns the name of an ended process, of which the kernel keeps the first 15 bytes."""
    kept = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return next((name for stage in STAGES if (name := f"{stage}-service").startswith(kept)), kept)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
