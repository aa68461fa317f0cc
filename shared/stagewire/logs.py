"""Logging policy: one structured line per change of state, to stdout; nothing per packet, no secret ever.

Lines are `logfmt` (key=value), the event first. Bad packets are counted (`stats`), never logged.

A log that nobody takes costs its lines and nothing else: a supervisord that was killed has left us a pipe without a reader,
one that is stopped a pipe that fills up, and a disk may be full.
"""

import logging
import os
import select
from contextlib import suppress
from typing import Any, Final, TextIO, cast

import structlog

_STDOUT: Final = 1


def set_up(program: str, level: str, **bound: Any) -> structlog.typing.FilteringBoundLogger:
    """Configures logging for this process and returns its logger, which names the program on every line."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "program", "event"], bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lossy())),
        cache_logger_on_first_use=True,
    )
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger().bind(program=program, **bound))


class _Lossy:
    """Standard output, as a file that takes what it can take at once."""

    def write(self, text: str) -> None:
        # Not by Python's own file, which would keep what it can't write, and try again at exit.
        with suppress(OSError):
            if select.select([], [_STDOUT], [], 0)[1]:
                os.write(_STDOUT, text.encode(errors="replace"))

    def flush(self) -> None:
        """Nothing is kept."""
