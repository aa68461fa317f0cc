"""Makes supervisord hear a signal at once, start a program anew at once, and end as fast as its programs do."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

LIVED: Final = 1.0
"""s; a program that ends sooner starts anew after supervisord's wait, or it could end and start all the time."""


class Wakeup:
    """Wakes supervisord's loop at a signal, which it would hear only after its wait of a second."""

    def __init__(self, supervisord: Any, while_ending: Callable[[], None]) -> None:
        self._supervisord = supervisord
        self._while_ending = while_ending
        # No socket objects, because a supervisord that starts anew closes all descriptors by their numbers.
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = os.fstat(self._writer)

    def watch(self) -> None:
        """Joins supervisord's loop, and takes over its signals."""
        sources = self._supervisord.options.get_socket_map()
        for stale in [number for number, source in sources.items() if isinstance(source, Wakeup)]:
            del sources[stale]  # left from before a SIGHUP, after which supervisord starts anew
        sources[self._reader] = self
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, partial(self._on_signal, signal.getsignal(number)))
        self.turn()  # the loop waits once before it starts any program

    def turn(self) -> None:
        """Ends the loop's present wait."""
        with suppress(OSError):  # the pipe is full, or a supervisord that starts anew has closed it
            if os.path.samestat(os.fstat(self._writer), self._pipe):  # its number may be another file's by now
                os.write(self._writer, b"\0")

    def on_exit(self, event: Any) -> None:
        """Has supervisord start a program anew at once, if that has lived for some time."""
        if event.process.laststop - event.process.laststart >= LIVED:
            self.turn()

    def _on_signal(self, receive: Any, number: int, frame: Any) -> None:
        receive(number, frame)
        self.turn()

    # supervisord calls these methods of each source in its loop.

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        """Reads the wake-up; wakes the loop again and again while supervisord ends."""
        os.read(self._reader, 64)
        if self._supervisord.options.mood <= 0:
            self._while_ending()
            time.sleep(0.002)
            self.turn()

    def handle_error(self) -> None:
        """Does nothing: a pipe of our own has no errors."""
