"""The one event loop: readable sources, deadlines, a clean stop. Every program runs it, and nothing else waits.

`zmq.Poller` is level-triggered and takes ZeroMQ sockets and file descriptors alike, so a handler may leave something
behind (bounded drains) and is called again. `now` is read once per turn and handed down.
"""

import math
import signal
import socket
import time
from collections.abc import Callable
from typing import Protocol

import zmq

Source = zmq.Socket[bytes] | int
Handler = Callable[[float], None]

HEARTBEAT_INTERVAL = 0.05
"""s that a turn may wait at most: whoever watches the heartbeat must be able to tell idle from hung."""
FINISH_WITHIN = 0.2
"""s from being told to stop to stopping, while there is something left to do."""


def boot_time() -> float:
    """s since boot, suspended time included: what ages are measured with."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timed(Protocol):
    """Something that must be called again at a time of its own."""

    def next_deadline(self) -> float | None:
        """When (s), or None."""

    def act(self, now: float) -> None:
        """Do what is due."""


class Loop:
    """Dispatches readable sources and deadlines until told to stop (SIGTERM, SIGINT or `stop`)."""

    def __init__(self, heart: Callable[[float], None] = lambda _now: None) -> None:
        """`heart` is called once each turn, and at least every HEARTBEAT_INTERVAL."""
        self._heart = heart
        self._poller = zmq.Poller()
        self._handlers: dict[object, Handler] = {}
        self._writers: dict[object, Handler] = {}
        self._pauses: dict[object, int] = {}
        self._timed: list[Timed] = []
        self._stopping = False

    def add(self, source: Source, handler: Handler) -> None:
        """Calls `handler` while `source` has something to read."""
        self._handlers[source] = handler
        self._pauses[source] = 0
        self._watch(source)

    def remove(self, source: Source) -> None:
        """Forgets a source."""
        for table in (self._handlers, self._writers, self._pauses):
            table.pop(source, None)
        self._watch(source)

    def add_timed(self, timed: Timed) -> None:
        """Calls `timed.act` at its deadlines."""
        self._timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        """Forgets it."""
        self._timed.remove(timed)

    def pause(self, source: Source) -> None:
        """Leaves a source unread until `resume` has been called as often."""
        self._pauses[source] += 1
        self._watch(source)

    def resume(self, source: Source) -> None:
        """The other half of `pause`. A source that was removed meanwhile stays removed."""
        if source in self._pauses:
            self._pauses[source] -= 1
            self._watch(source)

    def when_writable(self, source: Source, handler: Handler | None) -> None:
        """Calls `handler` while `source` can be written; None: no longer."""
        if handler is None:
            self._writers.pop(source, None)
        else:
            self._writers[source] = handler
        self._watch(source)

    def stop(self) -> None:
        """Ends `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Turns until stopped."""
        wakeup, alarm = socket.socketpair()
        with wakeup, alarm:
            wakeup.setblocking(False)
            alarm.setblocking(False)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            signal.set_wakeup_fd(alarm.fileno())

            def on_signal(_now: float) -> None:
                wakeup.recv(64)
                self.stop()

            self.add(wakeup.fileno(), on_signal)
            try:
                while not self._stopping:
                    self._turn()
                self._finish()
            finally:
                signal.set_wakeup_fd(-1)
                self.remove(wakeup.fileno())

    def _finish(self) -> None:
        """Takes nothing more from outside (descriptors), and finishes what is on the pipes already."""
        for source in [source for source in self._handlers if isinstance(source, int)]:
            self.remove(source)
        until = boot_time() + FINISH_WITHIN
        while boot_time() < until and (ready := self._poller.poll(0)):
            now = boot_time()
            self._heart(now)
            self._dispatch(ready, now)

    def _turn(self) -> None:
        due = min((when for timed in self._timed if (when := timed.next_deadline()) is not None), default=None)
        # Rounded up: the poller truncates to milliseconds, and would spin through the last one.
        wait = HEARTBEAT_INTERVAL if due is None else min(HEARTBEAT_INTERVAL, max(0.0, due - boot_time()))
        ready = self._poller.poll(math.ceil(wait * 1000))
        now = boot_time()
        self._heart(now)
        self._dispatch(ready, now)
        for timed in self._timed:
            when = timed.next_deadline()
            if when is not None and when <= now:
                timed.act(now)

    def _dispatch(self, ready: list[tuple[Source, int]], now: float) -> None:
        for source, flags in ready:
            if flags & zmq.POLLOUT and (writer := self._writers.get(source)) is not None:
                writer(now)
            if flags & ~zmq.POLLOUT and not self._pauses.get(source, 1):
                self._handlers[source](now)

    def _watch(self, source: Source) -> None:
        flags = zmq.POLLIN if source in self._handlers and not self._pauses[source] else 0
        if source in self._writers:
            flags |= zmq.POLLOUT
        self._poller.register(source, flags)


class Every:
    """A Timed that calls `action` each `interval` s, first at once."""

    def __init__(self, interval: float, action: Handler) -> None:
        self._interval = interval
        self._action = action
        self._next = boot_time()

    def next_deadline(self) -> float:
        """When."""
        return self._next

    def put_off(self, when: float) -> None:
        """Moves the next call to `when`."""
        self._next = when

    def act(self, now: float) -> None:
        """Calls the action; calls that were missed are not made up for."""
        self._next = now + self._interval
        self._action(now)
