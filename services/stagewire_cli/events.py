"""Reads a gateway's events from status-service, in order, and writes each as a line."""

import errno
import json
import os
import select
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.config import values
from stagewire.config.peer_names import label
from stagewire.control import query
from stagewire.control.event import Event, as_json
from stagewire.control.status import EventsStatus
from stagewire.environment import Environment
from stagewire.stats import mend_of
from stagewire_cli import flow, layout
from stagewire_cli.failures import Failed, NotUp

POLL: Final = 0.5
"""s between two questions to status-service."""
AT_ONCE: Final = 256
"""Events in one answer."""
_MAX_CURSOR: Final = 64
"""Bytes of a cursor's file."""
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def since(text: str, now: float) -> int:
    """Reads `10min`, `2h`, `1d`, a day or a time in UTC, as the id that events of that time begin after. Raises Failed."""
    number = text.rstrip("dhimns")
    unit = text.removeprefix(number)
    if number.isdecimal() and unit in _UNITS:
        return max(0, int((now - int(number) * _UNITS[unit]) * 1e6) - 1)
    try:
        return max(0, values.expires(text) * 1_000_000 - 1)
    except ValueError as error:
        raise Failed(str(error).replace("must be", "--since must be a span such as 10min, 2h or 1d,", 1)) from None


class Cursor:
    """Keeps the id of the last event that was dealt with, in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        """Reads the file. Raises Failed."""
        self._path = path
        self.id: int | None = None
        if path is None:
            return
        try:
            self.id = int(files.read(path, _MAX_CURSOR))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise Failed(
                f"{path}: no cursor can be read from it ({error}); remove it to begin with new events"
            ) from None

    def advance(self, id_: int) -> None:
        """Notes that an event is dealt with. Raises Failed."""
        self.id = id_
        if self._path is not None:
            try:
                files.write(self._path, b"%d\n" % id_)
            except OSError as error:
                raise Failed(f"{self._path}: {error.strerror}") from None


class Reader:
    """Asks status-service for events. `warn` hears that it is away, and that events came and went unread."""

    def __init__(
        self,
        environment: Environment,
        kinds: tuple[str, ...],
        warn: Callable[[str], None],
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._environment, self._kinds, self._warn, self._pause = environment, kinds, warn, pause

    def newest(self, *, follow: bool) -> int:
        """Returns the newest id. Raises NotUp and Failed."""
        return self._ask(0, 0, follow=follow, begun=False).newest

    def after(self, id_: int, *, follow: bool) -> Iterator[Event]:
        """Yields the events after an id. `follow`: waits for more, and for status-service. Raises NotUp and Failed."""
        begun = False
        while True:
            answer = self._ask(id_, AT_ONCE, follow=follow, begun=begun)
            if begun and answer.lost:
                self._warn("some events are lost: they came faster than they were read")
            begun, before = True, id_
            for event in answer.events:
                if event.id > id_:
                    yield event
                    id_ = event.id
            if len(answer.events) == AT_ONCE and id_ > before:
                continue
            if not follow:
                return
            self._pause(POLL)

    def _ask(self, id_: int, most: int, *, follow: bool, begun: bool) -> EventsStatus:
        said = False
        while (answer := query.events(self._environment, id_, self._kinds, most)) is None:
            if not begun and not self._environment.run.exists():
                raise NotUp(self._environment.interface)
            if not follow:
                raise Failed("status-service does not answer")
            if not said:
                self._warn("status-service does not answer; waits for it")
            said = True
            self._pause(POLL)
        return answer


def pause_while_read(seconds: float) -> None:
    """Pauses, and raises BrokenPipeError once no reader of standard output is left, such as `head -1` after its line."""
    output = select.poll()
    output.register(1, 0)  # an error or a hang-up is told in any case
    if output.poll(seconds * 1000):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def in_json(event: Event, interface: str) -> str:
    """Writes an event as one line of JSON, in ASCII."""
    return json.dumps(as_json(event, interface))


def lines(event: Event, width: int | None) -> str:
    """Writes an event for people, wrapped at `width`; None wraps nothing."""
    return "\n".join(flow.wrapped([line(event)], width))


def line(event: Event) -> str:
    """Writes an event as one line for people."""
    at = datetime.fromtimestamp(event.unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{at}  {event.kind:12}  {_told(event)}"


def _told(event: Event) -> str:
    who = label(event.public_key, event.name)
    place = f" from {event.endpoint}" if event.endpoint else ""
    match event.kind:
        case "connected" | "rekeyed":
            return f"{who}{place}"
        case "disconnected":
            much = f"received {layout.size(event.rx_bytes)}, sent {layout.size(event.tx_bytes)}"
            return f"{who}{place}, after {layout.span(event.seconds)}; {much}"
        case "moved":
            return f"{who} to {event.endpoint} from {event.before or 'nowhere known'}"
        case "refused":
            return f"{who or 'a stranger'}{place}: {event.reason}; {mend_of(event.reason)}"
        case "taken_over":
            return f"{event.stage}-service {event.number} is process {event.pid} now"
        case "scaled":
            return f"{event.workers} workers, before {event.workers_before}"
        case "reloaded":
            changes = "; ".join(line.strip() for line in event.changes)
            return f"{event.what}: {changes or 'nothing differs'}"
    return who
