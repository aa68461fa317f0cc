"""Admits to a pipe those that `names` lets connect, by the uid that the kernel vouches for, each stage and worker once.

A uid tells the stage and the worker (`linux.uids`). So what a uid can take of a reader's connections and descriptors is
bounded, however many processes it has. If a second process connects for a place, the holder of the place's slot counts
(`process.slots`): another process of the same uid is refused, or makes way. Root may speak for any place.

Where uids are shared, they bound only the sum.
"""

import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from stagewire.limits import MAX_WORKERS
from stagewire.linux import uids
from stagewire.linux.peer_credentials import Credentials, credentials
from stagewire.linux.uids import ROOT, Place
from stagewire.pipe.names import COMMAND, Pipe
from stagewire.stages import WORKER

MAX_ROOTS: Final = 32
"""Connections of root to one pipe."""

Contest = Callable[[Place, int], bool | None]
"""Tells whether a process, by its pid, holds the slot of a place; None if that is unknown."""
Refused = Callable[[Pipe, Credentials], None]
"""Hears of each connection that is refused, with the other end's credentials."""


@dataclass(slots=True)
class _Line:
    socket: socket.socket
    pid: int
    is_holder: bool | None = None
    """Set once it is known."""


class Admission:
    """Admits connections to one pipe."""

    def __init__(
        self, pipe: Pipe, *, own_stages: Sequence[str] = (), each: int = 1, contest: Contest, refused: Refused
    ) -> None:
        """Lets the pipe's speakers in; `each` may have so many connections."""
        self._pipe, self._contest, self._refused = pipe, contest, refused
        self._most: dict[int, int] = {ROOT: MAX_ROOTS}
        self._place: dict[int, Place] = {}
        for place in (*speakers(pipe), *map(Place, own_stages)):
            uid = uids.uid_of(*place)
            self._most[uid] = self._most.get(uid, 0) + each
            self._place[uid] = place
        if uids.are_shared():
            self._place.clear()
        self._lines: dict[int, dict[int, _Line]] = {}
        """Admitted connections, by uid and descriptor."""

    @property
    def uids(self) -> tuple[int, ...]:
        """Lists the uids that may connect."""
        return tuple(self._most)

    def place(self, uid: int) -> Place | None:
        """Returns the place that a uid speaks for; None for root, and where uids are shared."""
        return self._place.get(uid)

    def admit(self, line: socket.socket) -> bool:
        """Tells whether a new connection may stay. A connection that makes way for it ends once it is read."""
        try:
            theirs = credentials(line)
        except OSError:  # gone again
            return False
        lines = self._lines.setdefault(theirs.uid, {}) if theirs.uid in self._most else None
        if lines is None or not self._has_room(theirs, lines):
            self._refused(self._pipe, theirs)
            return False
        lines[line.fileno()] = _Line(line, theirs.pid)
        return True

    def forget(self, descriptor: int) -> None:
        """Forgets a connection that has ended."""
        for lines in self._lines.values():
            lines.pop(descriptor, None)

    def _has_room(self, theirs: Credentials, lines: dict[int, _Line]) -> bool:
        if len(lines) < self._most[theirs.uid]:
            return True
        # A dead stage's connection is still to be read to its end, and its successor has come already.
        standing = [line for line in lines.values() if not _has_hung_up(line.socket)]
        if len(standing) < self._most[theirs.uid] and len(lines) < 2 * self._most[theirs.uid]:
            return True
        place = self._place.get(theirs.uid)
        if place is None:
            return False
        usurper = next((line for line in standing if not self._is_holder(place, line)), None)
        if usurper is None or not self._contest(place, theirs.pid):
            return False
        with suppress(OSError):  # it has ended
            usurper.socket.shutdown(socket.SHUT_RD)
        return True

    def _is_holder(self, place: Place, line: _Line) -> bool:
        if not line.is_holder:  # asked again while it isn't: that costs a look into /proc
            line.is_holder = self._contest(place, line.pid)
        return line.is_holder is not False


def speakers(pipe: Pipe) -> Iterator[Place]:
    """Yields the places that may connect to a pipe."""
    for party in pipe.connects:
        if party == WORKER:
            yield from (Place(WORKER, number) for number in range(MAX_WORKERS))
        elif party != COMMAND:
            yield Place(party)


def speaks_for(place: Place | None, worker: int) -> bool:
    """Tells whether a speaker may speak for a worker. None stands for root, and for all where all share a uid."""
    return place is None or place.stage != WORKER or place.number == worker


def is_of(line: socket.socket, pipe: Pipe, number: int | None, own_stages: Sequence[str] = ()) -> bool:
    """Tells whether the stage that may bind a pipe listens at the other end, or root. Raises OSError."""
    allowed = {ROOT, uids.uid_of(pipe.binder, number or 0), *map(uids.uid_of, own_stages)}
    return credentials(line).uid in allowed


def _has_hung_up(line: socket.socket) -> bool:
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(line, select.POLLRDHUP)
        return bool(poll.poll(0))
    return True
