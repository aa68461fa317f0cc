"""Runs the driver's own processes: forked before any thread, they end on request and with the driver."""

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
    """Runs `work(line)` in a process until the line is closed. Its failure is the answer to the next question."""

    def __init__(self, name: str, work: Callable[[Connection], None], nice: int = 0) -> None:
        """Takes `nice`, below 0 for a process that measures time: its waits for a processor would look like outages."""
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
        """Sends a question and returns the answer. Raises RuntimeError if the process failed."""
        self.tell(question)
        return self.answer()

    def tell(self, question: Any) -> None:
        """Sends a question; `answer` waits for the reply."""
        with contextlib.suppress(OSError):  # `answer` will report that the process is gone
            self._line.send(question)

    def answer(self) -> Any:
        """Returns the answer to the last question. Raises RuntimeError if the process failed."""
        try:
            if not self._line.poll(ANSWER_WITHIN):
                raise RuntimeError(f"chaos's {self._name} process did not answer within {ANSWER_WITHIN:.0f} s")
            answer = self._line.recv()
        except (OSError, EOFError) as error:
            raise RuntimeError(f"chaos's {self._name} process is gone: {error!r}") from error
        if isinstance(answer, Exception):
            raise RuntimeError(f"chaos's {self._name} process failed: {answer!r}") from answer  # noqa: TRY004 - it raised that error
        return answer

    def check(self) -> None:
        """Raises RuntimeError if the process has ended."""
        if self._process.exitcode is not None:
            raise RuntimeError(f"chaos's {self._name} process ended with exit status {self._process.exitcode}")

    def _run(self, line: Connection, other_end: Connection) -> None:
        parent = os.getppid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        other_end.close()  # else the line would never end here
        # ^C reaches all processes of the terminal, but the driver says when to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.nice(self._nice)
        try:
            self._work(line)
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - it becomes the answer to the next question
            with contextlib.suppress(OSError):
                line.send(error)
                line.poll(None)
