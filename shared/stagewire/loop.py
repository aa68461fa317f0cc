"""Runs every program's event loop: readable sources, deadlines, a clean stop. Nothing else in a program waits.

The loop takes ZeroMQ sockets and file descriptors alike. It calls a handler again while its source has something to read, so
a handler may bound its work. The loop reads the clock once a turn and hands `now` down.

The loop waits with epoll(7), as asking each ZeroMQ socket at each turn costs more. A ZeroMQ socket's descriptor tells only
that the socket's state *may* have changed, and tells it once (zmq_getsockopt(3), ZMQ_FD). So before it waits, the loop looks
at the state of

- each socket whose descriptor fired, or whose handler has just run;
- each socket that was just added or resumed;
- each socket that a stage sent by (`sent`): a send takes in messages, and the descriptor no longer tells of them.
"""

import math
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import zmq

from stagewire.deadlines import HEARTBEAT_INTERVAL, AllPaced, Paced, Timed

Source = zmq.Socket[bytes] | int
Handler = Callable[[float], None]

MAX_SLEEP = 5.0
"""s that a turn waits at most."""
LOOK_INTERVAL = 0.001
"""s between two looks at the deadlines while there is always something to read: a look costs as much as a short train."""
REST = 0.0001
"""s; a loop that has waited so long will most likely wait again after what it found."""
FINISH_WITHIN = 0.2
"""s that pipes may still have something to read after the order to stop, and as long for the answers to last words."""
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
# As plain numbers: ZeroMQ's own are enums, which are slow.
_EVENTS: Final = int(zmq.EVENTS)
_READABLE: Final = int(zmq.POLLIN)
_WRITABLE: Final = int(zmq.POLLOUT)


boot_time: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""s since boot, suspended time included; ages are measured by this clock."""


class Loop:
    """Dispatches readable sources and deadlines until told to stop (SIGTERM, SIGINT or `stop`)."""

    def __init__(
        self,
        heart: Callable[[float], None] = lambda _now: None,
        sleep: Callable[[float], None] | None = None,
        phase: float = 0.0,
    ) -> None:
        """Takes `heart`, which is called once each turn, and at least every HEARTBEAT_INTERVAL.

        Idle loops of one `phase` (s) act together, so that those that get their messages wake once for all.

        With `sleep`, a turn may wait MAX_SLEEP where nothing readable is left unread. Before it waits longer than
        HEARTBEAT_INTERVAL, it calls `sleep` with the time (s) of its end.
        """
        self._heart = heart
        self._sleep = sleep
        self._phase = phase
        self.gathering = Gathering()
        """Each pipe adds the bytes of its trains."""
        self._epoll = select.epoll()
        self._handlers: dict[Source, Handler] = {}
        self._writers: dict[Source, Handler] = {}
        self._pauses: dict[Source, int] = {}
        self._watched: dict[Source, tuple[int, int]] = {}
        """(descriptor, events) as registered with epoll."""
        self._sources: dict[int, Source] = {}
        """Sources by descriptor."""
        self._unsure: dict[zmq.Socket[bytes], None] = {}
        """Sockets whose state the loop must look at before the next wait."""
        self._pipes: dict[Source, set[Source]] = {}
        """Descriptors that lead to other stages; with each, the sources added `along` it."""
        self._pipe_pauses: dict[Source, int] = {}
        self._paced = AllPaced(self)
        self._timed: Sequence[Timed] = (self._paced,)
        """Replaced by each change, since an action may make one while the loop passes over all."""
        self._looked = -math.inf
        """Time (s) of the last look at the deadlines."""
        self._due: float | None = None
        """The next deadline (s), if nothing has been done since the last look; None: the loop must look."""
        self._woke = 0.0
        """When the last wait ended (s)."""
        self._last: list[tuple[Handler, Callable[[], bool]]] = []
        self._routine: set[Source] = set()
        self.worked = 0
        """Counts handlers and deadlines that were called: what has not grown had no work. `Paced` reads it."""
        self._stopping = False

    def add(
        self, source: Source, handler: Handler, *, pipe: bool = False, along: int | None = None, routine: bool = False
    ) -> None:
        """Calls `handler` while `source` has something to read.

        `routine`: most of what comes is no work, such as others' heartbeats. The handler counts work in `worked` itself.

        `pipe`: a descriptor that leads to another stage. The loop reads it to its end before it stops. Pausing it pauses
        the sources that were added `along` it, not the descriptor itself.
        """
        self._handlers[source] = handler
        if routine:
            self._routine.add(source)
        self._pauses[source] = 0 if along is None else self._pipe_pauses[along]
        if along is not None:
            self._pipes[along].add(source)
        elif pipe:
            self._pipes[source], self._pipe_pauses[source] = set(), 0
        self._watch(source)

    def remove(self, source: Source) -> None:
        for table in (self._handlers, self._writers, self._pauses, self._pipes, self._pipe_pauses):
            table.pop(source, None)
        self._routine.discard(source)
        for along in self._pipes.values():
            along.discard(source)
        self._watch(source)

    def add_timed(self, timed: Timed) -> None:
        """Calls `timed.act` at its deadlines."""
        self._timed = (*self._timed, timed)
        self._due = None

    def add_paced(self, interval: float, action: Handler) -> Paced:
        """Calls `action` every `interval` s while this loop has work, and rarely otherwise."""
        paced = Paced(self, interval, action, self._phase)
        self._paced.add(paced)
        self._due = None
        return paced

    def remove_timed(self, timed: Timed) -> None:
        self._timed = tuple(each for each in self._timed if each is not timed)

    def pause(self, source: Source) -> None:
        """Leaves a source unread until `resume` has been called as often."""
        self._count_pause(source, 1)

    def resume(self, source: Source) -> None:
        """Takes one `pause` back. A source that was removed meanwhile stays removed."""
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
        """Calls `handler` while `source` can be written; None ends that."""
        if handler is None:
            self._writers.pop(source, None)
        else:
            self._writers[source] = handler
        self._watch(source)

    def sent(self, source: "zmq.Socket[bytes]") -> None:
        """Looks at a ZeroMQ socket again, since a send by it may hide incoming messages.

        To be called after each send by a socket that is also read, except in the socket's own handler.
        """
        if source in self._watched:
            self._unsure[source] = None

    def at_stop(self, say: Handler, heard: Callable[[], bool] = lambda: True) -> None:
        """Calls `say` once the loop was told to stop and the pipes are read. Turns on until `heard`, within limits."""
        self._last.append((say, heard))

    def stop(self) -> None:
        """Ends `run` after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Turns until `stop` or a signal."""
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
        """Reads nothing more from outside, and reads the pipes to their end."""
        inside = {source for pipe, along in self._pipes.items() for source in (pipe, *along)}
        for source in [source for source in self._handlers if isinstance(source, int) and source not in inside]:
            self.remove(source)
        until = boot_time() + FINISH_WITHIN
        while boot_time() < until and self._serve(0.0):
            pass
        for say, _ in self._last:
            say(boot_time())
        until = boot_time() + FINISH_WITHIN
        while (left := until - boot_time()) > 0 and not all(heard() for _, heard in self._last):
            self._serve(min(left, HEARTBEAT_INTERVAL))

    def _turn(self) -> None:
        """Serves what is ready. Looks at the deadlines if nothing is, or if LOOK_INTERVAL has passed. hot: bench traffic"""
        now = boot_time()
        due, self._due = self._due, None
        if due is None:
            if now < self._looked + LOOK_INTERVAL and self._serve(0.0):
                return
            due = now + MAX_SLEEP
            for timed in self._timed:
                when = timed.next_deadline()
                if when is not None and when < due:
                    due = when
        if self._sleep is None or self.gathering.restless or any(self._pauses.values()):
            due = min(due, now + HEARTBEAT_INTERVAL)
        elif due > now + HEARTBEAT_INTERVAL:
            self._sleep(due)
        # Rounded up: epoll counts in milliseconds, and would spin through the last one.
        self._serve(math.ceil((due - now) * 1000) / 1000 if due > now else 0.0)
        self._act(rested=self._woke > now + REST)

    def _act(self, *, rested: bool) -> None:
        """Does all that is due. A loop that has `rested` most likely waits next, so it keeps the deadline that was found."""
        self._looked = now = boot_time()
        due, acted = now + MAX_SLEEP, False
        for timed in self._timed:
            when = timed.next_deadline()
            if when is None or when > due:
                continue
            if when > now:
                due = when
                continue
            acted = True
            self.worked += timed is not self._paced
            timed.act(now)
        if rested and not acted:
            self._due = due
        if now >= self.gathering.due:
            self.gathering.look(now)

    def _serve(self, wait: float) -> bool:
        """Waits at most so long (s), and calls the handlers of ready sources. Returns False if none was ready."""
        ready: list[tuple[Source, int]] = []
        unsure = self._unsure
        if unsure:
            self._unsure = {}
            ready = self._look(unsure)
        fired: list[zmq.Socket[bytes]] = []
        for descriptor, events in self._epoll.poll(0.0 if ready else wait):
            source = self._sources.get(descriptor)
            if isinstance(source, int):
                ready.append((source, events))
            elif source is not None and source not in unsure:
                fired.append(source)
            elif source is not None:
                self._unsure[source] = None  # its event came just after the look
        if fired:
            ready += self._look(fired)
        self._woke = now = boot_time()
        self._heart(now)
        for source, events in ready:
            if source not in self._routine:
                self.worked += 1
            if events & _OUT and (writer := self._writers.get(source)) is not None:
                writer(now)
            if events & ~_OUT and not self._pauses.get(source, 1):
                self._handlers[source](now)
        return bool(ready)

    def _look(self, sockets: "Iterable[zmq.Socket[bytes]]") -> list[tuple[Source, int]]:
        """Returns the sockets that are ready for a handler, with epoll's flags. Hot."""
        ready: list[tuple[Source, int]] = []
        for each in sockets:
            if each not in self._watched:
                continue
            state = int(each.get(_EVENTS))
            readable = state & _READABLE and not self._pauses.get(each, 1)
            writable = state & _WRITABLE and each in self._writers
            if readable or writable:
                ready.append((each, (_IN if readable else 0) | (_OUT if writable else 0)))
                self._unsure[each] = None  # its handler may leave something unread
        return ready

    def _watch(self, source: Source) -> None:
        """Makes epoll wait for those events of a source that a handler wants now."""
        events = _IN if source in self._handlers and (not self._pauses[source] or not isinstance(source, int)) else 0
        if source in self._writers:
            events |= _OUT
        if not isinstance(source, int):
            events = _IN if events else 0  # ZeroMQ's descriptor is readable when anything has changed
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


MUCH: Final = 8_000_000
"""Bytes of trains in a second, sent and received. Below it all stages together need little of a core, so gathering gains
nothing (docs/decisions/011)."""
INTERVAL: Final = 0.02
"""s between two looks, at least."""


class Gathering:
    """Decides by the load of a loop's pipes whether trains shall gather. Pipes add their bytes to `carried`."""

    def __init__(self) -> None:
        self.carried = 0
        self.due = math.inf
        """Time (s) of the next look."""
        self._looked = 0.0
        self._much = False
        self._gather: Callable[[bool], None] | None = None

    @property
    def restless(self) -> bool:
        """Tells whether the next look must come soon after `due`. Hot."""
        return self.due < math.inf and (self._much or self.carried > 0)

    def begin(self, gather: Callable[[bool], None], now: float) -> None:
        """Calls `gather` with the decision at each look, since another program may have changed the priority."""
        self._gather = gather
        self.carried, self._looked, self.due = 0, now, now + INTERVAL

    def look(self, now: float) -> None:
        """Decides anew; to be called soon after `due`, even without load."""
        self._much = self.carried > MUCH * (now - self._looked)
        self.carried, self._looked, self.due = 0, now, now + INTERVAL
        if self._gather is not None:
            self._gather(self._much)
