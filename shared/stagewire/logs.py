"""Logging policy: one structured line per change of state, to stdout; nothing per packet, no secret ever.

Lines are `logfmt` (key=value), the event first. Bad packets are counted (`stats`), never logged.
"""

import logging
import sys
from typing import Any, cast

import structlog


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger().bind(program=program, **bound))
