"""Logging policy: one structured line per change of state, to stdout; nothing per packet, no secret ever.

Lines are `logfmt` (key=value), the event first. Bad packets are counted (`stats`), never logged.

A log that nobody takes costs its lines and nothing else: a supervisord that was killed has left us a pipe without a reader,
one that is stopped a pipe that fills up, and a disk may be full.

By hand, as it is little: a logging library brings with it, in every process, more memory than all of ours, which the kernel
takes apart page by page before it lets a killed process's place go.
"""

import os
import select
import time
import traceback
from contextlib import suppress
from typing import Any, Final

_STDOUT: Final = 1
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Log:
    """One program's, or with more bound to it, one part's. Keywords are what a line says beside its event."""

    __slots__ = ("_bound", "_least")

    def __init__(self, least: str = "info", **bound: Any) -> None:
        """`least` is the level from which lines are written; `bound` is in each of them."""
        self._least = least
        self._bound = bound

    def bind(self, **bound: Any) -> "Log":
        """The same with more in each line."""
        return Log(self._least, **self._bound, **bound)

    def says(self, level: str) -> bool:
        """Whether lines of a level are written; for where to make one takes longer than it may."""
        return _LEVELS[level] >= _LEVELS[self._least]

    def debug(self, event: str, **said: Any) -> None:
        """What only somebody who looks for a mistake wants to know."""
        self._say("debug", event, said)

    def info(self, event: str, **said: Any) -> None:
        """Something that is as it should be."""
        self._say("info", event, said)

    def warning(self, event: str, **said: Any) -> None:
        """Something that isn't, and that is being dealt with."""
        self._say("warning", event, said)

    def error(self, event: str, **said: Any) -> None:
        """Something that the operator has to see to."""
        self._say("error", event, said)

    def exception(self, event: str, **said: Any) -> None:
        """An error, with the exception that is being handled."""
        self._say("error", event, {**said, "exception": traceback.format_exc().rstrip("\n")})

    def _say(self, level: str, event: str, said: dict[str, Any]) -> None:
        if self.says(level):
            line = {"timestamp": _now(), "level": level, "program": None, "event": event, **self._bound, **said}
            _write(" ".join(f"{key}={_value(value)}" for key, value in line.items()) + "\n")


def set_up(program: str, level: str, **bound: Any) -> Log:
    """This process's log, which names the program on every line. `level` is debug, info, warning or error."""
    return Log(level, program=program, **bound)


def _now() -> str:
    whole, fraction = divmod(time.time_ns() // 1000, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:06d}Z"


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if text.isprintable() and not any(letter in text for letter in ' ="\\'):
        return text
    return '"' + "".join(_ESCAPED.get(letter) or _shown(letter) for letter in text) + '"'


def _shown(letter: str) -> str:
    # What would move the cursor of whoever reads the log is written as its number.
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def _write(text: str) -> None:
    # Not by Python's own file, which would keep what it can't write, and try again at exit.
    with suppress(OSError):
        if select.select([], [_STDOUT], [], 0)[1]:
            os.write(_STDOUT, text.encode(errors="replace"))
