"""Calls a function in a process of its own, so that the keys it reads stay in no memory of a command that runs on."""

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from stagewire.linux import privileges
from stagewire_cli.failures import Failed

_T = TypeVar("_T")


def call(function: Callable[[], _T]) -> _T:
    """Returns what the function returns, which must hold no key. Raises Failed or SystemExit as the function does."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _answer(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        data = answers.read()
    os.waitpid(pid, 0)
    try:
        failure, result = pickle.loads(data)  # noqa: S301 - our own process wrote it
    except (EOFError, pickle.UnpicklingError):
        raise Failed("a process of this command ended without an answer") from None
    if failure is not None:
        raise failure
    made: _T = result
    return made


def _answer(function: Callable[[], object], writer: int) -> None:
    """Calls the function, answers, and ends this process."""
    failure: BaseException | None = None
    result = None
    try:
        privileges.hide_memory()
        result = function()
    except Failed as failed:
        failure = Failed(str(failed))
    except SystemExit as end:
        failure = SystemExit(end.code)
    except BaseException as error:  # noqa: BLE001 - the other process tells it
        failure = Failed(f"{type(error).__name__}: {error}")
    with suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(writer, "wb") as answers:
            pickle.dump((failure, result), answers)
    os._exit(0)
