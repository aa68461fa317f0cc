"""The driver's own processes: forked before any thread, ended when asked and when the driver is gone."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, Self

PR_SET_PDEATHSIG: Final = 1
ANSWER_WITHIN: Final = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A process that runs `work(line)` until the line is closed. Its failure is told to who asks next."""

    def __init__(self, name: str, work: Callable[[Connection], None], nice: int = 0) -> None:
        """`nice` is below 0 for who measures time: what it waits for the processor looks like the gateway's fault."""
        self._name, self._work, self._nice = name, work, nice

    def __enter__(self) -> Self:
        self._line, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=self._run, args=(theirs, self._line), name=f"chaos-{self._name}")
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._process.join(3)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def ask(self, question: Any) -> Any:
        """Sends a question and returns the answer. Raises RuntimeError when the process failed."""
        self.tell(question)
        return self.answer()

    def tell(self, question: Any) -> None:
        """Sends a question; `answer` waits for what comes back."""
        with contextlib.suppress(OSError):  # `answer` says that it is gone
            self._line.send(question)

    def answer(self) -> Any:
        """What the process says to the question before. Raises RuntimeError when it failed."""
        try:
            if not self._line.poll(ANSWER_WITHIN):
                raise RuntimeError(f"{self._name} does not answer")
            answer = self._line.recv()
        except (OSError, EOFError) as error:
            raise RuntimeError(f"{self._name} is gone: {error!r}") from error
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self._name} failed: {answer!r}") from answer  # noqa: TRY004 - it is what it raised
        return answer

    def check(self) -> None:
        """Raises RuntimeError when the process is no more."""
        if self._process.exitcode is not None:
            raise RuntimeError(f"{self._name} ended: {self._process.exitcode}")

    def _run(self, line: Connection, other_end: Connection) -> None:
        parent = os.getppid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        other_end.close()  # else we would never see it closed
        # ^C goes to the whole terminal; the driver says when to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.nice(self._nice)
        try:
            self._work(line)
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - told to who asks next
            with contextlib.suppress(OSError):
                line.send(error)
                line.poll(None)
