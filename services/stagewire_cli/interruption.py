"""Turns a signal that interrupts a command into a failure, so that the command undoes what it did."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from stagewire_cli.failures import Failed

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupted(BaseException):
    """Carries the signal past every `except Exception`: no step may take it for an error of its own."""


_held: list[bool] = []
_came: list[str] = []


def _heed_no_more(_number: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def held() -> Iterator[None]:
    """Lets a signal interrupt only after the block: a child that starts there must be known before."""
    _held.append(True)
    try:
        yield
    finally:
        _held.pop()
        if _came and not _held:
            raise _Interrupted(_came.pop())


@contextmanager
def undone() -> Iterator[None]:
    """Interrupts the block at the first signal to end, and raises Failed after it. Ignored signals stay ignored."""
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in heeded:
            signal.signal(each, _heed_no_more)  # hooks would inherit SIG_IGN
        name = signal.Signals(number).name
        if _held:
            _came.append(name)
        else:
            raise _Interrupted(name)

    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    except _Interrupted as interrupted:
        raise Failed(f"interrupted by {interrupted}; all that the command did is undone") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
