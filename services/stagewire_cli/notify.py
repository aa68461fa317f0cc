"""Tells our state to systemd or another program that started us with a NOTIFY_SOCKET (sd_notify(3))."""

import os
import socket
import time
from contextlib import suppress
from typing import Final

from stagewire import logs

VARIABLE: Final = "NOTIFY_SOCKET"


def is_heard() -> bool:
    """Says whether a program wants to be told."""
    return os.environ.get(VARIABLE, "").startswith(("/", "@"))


def ready(status: str) -> None:
    """Reports that traffic can flow, also after a reload."""
    _tell("READY=1", f"STATUS={status}")


def reloading() -> None:
    """Reports that a reload has begun; `ready` ends it."""
    _tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    _tell("STOPPING=1", "STATUS=going down")


def status(text: str) -> None:
    _tell(f"STATUS={text}")


def _tell(*lines: str) -> None:
    if not is_heard():
        return
    address = os.environ[VARIABLE]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        # A line more could name another process as the service's.
        line.sendall("\n".join(map(logs.cleaned, lines)).encode())
