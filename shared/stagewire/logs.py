"""Writes one line to stdout for each change of state; nothing for a packet, and never a secret.

Lines are `logfmt` (key=value). Bad packets are counted (`stats`), never logged.

A line that finds no reader is lost, and nothing else is. A killed supervisord leaves a pipe without a reader, and a stopped
one a pipe that fills up; a disk may be full.

No logging library: it takes more memory than all else in a process, and memory delays a take-over (`process.fd_release`).
"""

import codecs
import os
import select
import time
import traceback
from contextlib import suppress
from typing import Any, Final

from stagewire import journal

MAX_TEXT: Final = 1000
"""Letters of a text that is shown."""
_MAX_VALUE: Final = 16_000
"""Letters of a field; an exception with all its calls has room."""
_STDOUT: Final = 1
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}

_ESCAPE: Final = codecs.lookup("unicode_escape").encode
"""Found here: a sandboxed stage may be unable to read the module, for want of rights on the interpreter's folder."""

_prioritized = False
"""Standard output leads to the journal, which takes a line's level from a number before it."""


class Log:
    """Writes a program's lines. Each keyword becomes a field after the event."""

    __slots__ = ("_bound", "_least")

    def __init__(self, least: str = "info", **bound: Any) -> None:
        """Takes the least level to be written, and fields for every line."""
        self._least = least
        self._bound = bound

    def bind(self, **bound: Any) -> "Log":
        """Returns a Log with more fields in every line."""
        return Log(self._least, **self._bound, **bound)

    def says(self, level: str) -> bool:
        """Tells whether lines of a level are written; for a line that is costly to make."""
        return _LEVELS[level] >= _LEVELS[self._least]

    def debug(self, event: str, **said: Any) -> None:
        """Reports what only a search for a fault needs."""
        self._say("debug", event, said)

    def info(self, event: str, **said: Any) -> None:
        """Reports a change that is as it should be."""
        self._say("info", event, said)

    def warning(self, event: str, **said: Any) -> None:
        """Reports a trouble that the program deals with."""
        self._say("warning", event, said)

    def error(self, event: str, **said: Any) -> None:
        """Reports a trouble that the operator has to deal with."""
        self._say("error", event, said)

    def exception(self, event: str, **said: Any) -> None:
        """Reports an error with the exception that is being handled."""
        self._say("error", event, {**said, "exception": traceback.format_exc().rstrip("\n")})

    def _say(self, level: str, event: str, said: dict[str, Any]) -> None:
        if self.says(level):
            line = {"timestamp": _now(), "level": level, "program": None, "event": event, **self._bound, **said}
            priority = f"<{journal.PRIORITIES[level]}>" if _prioritized else ""
            _write(priority + " ".join(f"{key}={_value(value)}" for key, value in line.items()) + "\n")


def set_up(program: str, level: str, **bound: Any) -> Log:
    """Returns this process's log, which names the program in every line. `level` is debug, info, warning or error."""
    global _prioritized  # noqa: PLW0603 - there is one standard output
    _prioritized = journal.take_over(program)
    return Log(level, program=program, **bound)


def _now() -> str:
    whole, fraction = divmod(time.time_ns() // 1000, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:06d}Z"


def cleaned(text: str) -> str:
    """Returns a text of another process or of a peer as one short line that moves no cursor, and hides and reorders nothing.

    Every such text passes here before it reaches a log, a terminal or a page.
    """
    text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return text if text.isprintable() else "".join(map(_shown, text))


def cleaned_lines(text: str) -> str:
    """Cleans a text of several lines, each by itself."""
    return "\n".join(map(cleaned, text.split("\n")))


def cleaned_output(data: bytes) -> bytes:
    """Cleans what a process wrote to its standard output, for a log file."""
    text = data.decode(errors="backslashreplace")
    return "".join(letter if letter == "\n" else _shown(letter) for letter in text).encode()


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    text = text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."
    if text.isprintable() and not any(letter in text for letter in ' ="\\'):
        return text
    return '"' + "".join(_ESCAPED.get(letter) or _shown(letter) for letter in text) + '"'


def _shown(letter: str) -> str:
    # Escaped: a control character would move the cursor of the terminal that shows the log.
    return letter if letter.isprintable() else _ESCAPE(letter)[0].decode()


def _write(text: str) -> None:
    # Python's own file would keep what it can't write, and try again at exit.
    with suppress(OSError):
        if select.select([], [_STDOUT], [], 0)[1]:
            os.write(_STDOUT, text.encode(errors="replace"))
