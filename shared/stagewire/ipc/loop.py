"""The one event loop: readable sources, deadlines, a clean stop. Every program runs it, and nothing else waits.

It takes ZeroMQ sockets and file descriptors alike and is level-triggered, so a handler may leave something behind (bounded
drains) and is called again. `now` is read once per turn and handed down.

It waits with epoll(7). `zmq.Poller` asks every ZeroMQ socket for its state at every turn, with a system call each: 4.3 us
with six of them, where epoll takes 0.4. A ZeroMQ socket's descriptor tells only that its state *may* have changed, and
once (zmq_getsockopt(3), ZMQ_FD), so there is one rule: before the loop waits, it looks at the state of

- each whose descriptor fired, that was just read or written by its handler, or that was just added or resumed;
- each of which it was told (`sent`) that it was sent to: sending takes notice of what has come, and keeps it to itself.
"""

import math
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

import zmq

from stagewire.ipc.gathering import Gathering

Source = zmq.Socket[bytes] | int
Handler = Callable[[float], None]

HEARTBEAT_INTERVAL = 0.05
"""s that a turn may wait at most: whoever watches the heartbeat must be able to tell idle from hung."""
FINISH_WITHIN = 0.2
"""s from being told to stop to stopping, while there is something left to do."""
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
# As plain numbers: ZeroMQ's own are enums, which take 1 us more each time they are used.
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)


boot_time: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""s since boot, suspended time included: what ages are measured with."""


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
        self.gathering = Gathering()
        """Whoever moves trains adds to it."""
        self._epoll = select.epoll()
        self._handlers: dict[Source, Handler] = {}
        self._writers: dict[Source, Handler] = {}
        self._pauses: dict[Source, int] = {}
        self._watched: dict[Source, tuple[int, int]] = {}
        """(descriptor, events) as epoll knows them."""
        self._sources: dict[int, Source] = {}
        """By descriptor."""
        self._unsure: dict[zmq.Socket[bytes], None] = {}
        """Whose state has to be looked at before the next wait."""
        self._pipes: dict[Source, set[Source]] = {}
        """Descriptors that lead to other stages of ours, and those that are paused for each."""
        self._pipe_pauses: dict[Source, int] = {}
        self._timed: list[Timed] = []
        self._stopping = False

    def add(self, source: Source, handler: Handler, *, pipe: bool = False, along: int | None = None) -> None:
        """Calls `handler` while `source` has something to read.

        `pipe`: a descriptor that leads to another stage of ours, which is served to its end before the loop stops. To
        pause it is to pause those that were added `along` it; itself it is served all the same.
        """
        self._handlers[source] = handler
        self._pauses[source] = 0 if along is None else self._pipe_pauses[along]
        if along is not None:
            self._pipes[along].add(source)
        elif pipe:
            self._pipes[source], self._pipe_pauses[source] = set(), 0
        self._watch(source)

    def remove(self, source: Source) -> None:
        """Forgets a source."""
        for table in (self._handlers, self._writers, self._pauses, self._pipes, self._pipe_pauses):
            table.pop(source, None)
        for along in self._pipes.values():
            along.discard(source)
        self._watch(source)

    def add_timed(self, timed: Timed) -> None:
        """Calls `timed.act` at its deadlines."""
        self._timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        """Forgets it."""
        self._timed.remove(timed)

    def pause(self, source: Source) -> None:
        """Leaves a source unread until `resume` has been called as often."""
        self._count_pause(source, 1)

    def resume(self, source: Source) -> None:
        """The other half of `pause`. A source that was removed meanwhile stays removed."""
        if source in self._pauses:
            self._count_pause(source, -1)

    def _count_pause(self, source: Source, more: int) -> None:
        along = self._pipes.get(source)
        if along is not None:
            self._pipe_pauses[source] += more
        for each in (source,) if along is None else along:
            self._pauses[each] += more
            self._watch(each)

    def when_writable(self, source: Source, handler: Handler | None) -> None:
        """Calls `handler` while `source` can be written; None: no longer."""
        if handler is None:
            self._writers.pop(source, None)
        else:
            self._writers[source] = handler
        self._watch(source)

    def sent(self, source: "zmq.Socket[bytes]") -> None:
        """Whoever sends by a ZeroMQ socket that is also read says so, unless it does in the socket's own handler."""
        if source in self._watched:
            self._unsure[source] = None

    def stop(self) -> None:
        """Ends `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Turns until stopped."""
        wakeup, alarm = socket.socketpair()
        with wakeup, alarm:
            wakeup.setblocking(False)
            alarm.setblocking(False)
            signal.set_wakeup_fd(alarm.fileno())  # first: a signal that meets only the handlers would be lost
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)

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
        """Takes nothing more from outside (other descriptors than pipes), and finishes what is on the pipes already."""
        inside = {source for pipe, along in self._pipes.items() for source in (pipe, *along)}
        for source in [source for source in self._handlers if isinstance(source, int) and source not in inside]:
            self.remove(source)
        until = boot_time() + FINISH_WITHIN
        while boot_time() < until and self._serve(0.0):
            pass

    def _turn(self) -> None:
        # Rounded up: epoll counts in milliseconds, and would spin through the last one.
        now = boot_time()
        due = now + HEARTBEAT_INTERVAL
        for timed in self._timed:
            when = timed.next_deadline()
            if when is not None and when < due:
                due = when
        self._serve(math.ceil((due - now) * 1000) / 1000 if due > now else 0.0)
        now = boot_time()
        for timed in self._timed:
            when = timed.next_deadline()
            if when is not None and when <= now:
                timed.act(now)
        if now >= self.gathering.due:
            self.gathering.look(now)

    def _serve(self, wait: float) -> bool:
        """Waits so long (s) at most, and calls the handlers of what is ready; whether there was anything."""
        unsure, self._unsure = self._unsure, {}
        ready = self._look(unsure)
        fired: list[zmq.Socket[bytes]] = []
        for descriptor, events in self._epoll.poll(0.0 if ready else wait):
            source = self._sources.get(descriptor)
            if isinstance(source, int):
                ready.append((source, events))
            elif source is not None and source not in unsure:
                fired.append(source)
            elif source is not None:
                self._unsure[source] = None  # it came just after the look
        if fired:
            ready += self._look(fired)
        now = boot_time()
        self._heart(now)
        for source, events in ready:
            if events & _OUT and (writer := self._writers.get(source)) is not None:
                writer(now)
            if events & ~_OUT and not self._pauses.get(source, 1):
                self._handlers[source](now)
        return bool(ready)

    def _look(self, sockets: "Iterable[zmq.Socket[bytes]]") -> list[tuple[Source, int]]:
        """What of these is ready for somebody who waits for it, with epoll's flags. Hot: 1.5 us each, all ZeroMQ's."""
        ready: list[tuple[Source, int]] = []
        for each in sockets:
            if each not in self._watched:
                continue
            state = int(each.get(_EVENTS))
            readable = state & _READABLE and not self._pauses.get(each, 1)
            writable = state & _WRITABLE and each in self._writers
            if readable or writable:
                ready.append((each, (_IN if readable else 0) | (_OUT if writable else 0)))
                self._unsure[each] = None  # its handler may leave something
        return ready

    def _watch(self, source: Source) -> None:
        """Makes what epoll waits for what is wanted of a source now."""
        events = _IN if source in self._handlers and (not self._pauses[source] or not isinstance(source, int)) else 0
        if source in self._writers:
            events |= _OUT
        if not isinstance(source, int):
            events = _IN if events else 0  # its descriptor is readable when anything has changed
            if events:
                self._unsure[source] = None
        standing = self._watched.get(source)
        if standing is None:
            if events:
                self._begin(source, events)
        elif not events:
            self._end(source, standing[0])
        elif events != standing[1]:
            self._epoll.modify(standing[0], events)
            self._watched[source] = standing[0], events

    def _begin(self, source: Source, events: int) -> None:
        descriptor = source if isinstance(source, int) else int(source.get(zmq.FD))
        self._epoll.register(descriptor, events)
        self._watched[source] = descriptor, events
        self._sources[descriptor] = source

    def _end(self, source: Source, descriptor: int) -> None:
        del self._watched[source], self._sources[descriptor]
        if not isinstance(source, int):
            self._unsure.pop(source, None)
        with suppress(OSError):  # closed already
            self._epoll.unregister(descriptor)


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


class Once:
    """A Timed that calls `action` at one time (s)."""

    def __init__(self, when: float, action: Handler) -> None:
        self._when: float | None = when
        self._action = action

    def next_deadline(self) -> float | None:
        """When; None once it has been."""
        return self._when

    def act(self, now: float) -> None:
        """Calls the action."""
        self._when = None
        self._action(now)
