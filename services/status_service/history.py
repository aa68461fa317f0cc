"""Collects what history keeps, until it is written: bytes of each peer, work of each stage, events, connections.

Each count goes into the minute of the wall clock. All of it is pure: the file (`history_file.py`) takes a Batch, and gives
it back where it can't be written.
"""

import time
from calendar import timegm
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from stagewire.control.event import Event
from stagewire.control.telemetry import PeerReport
from stagewire.stats import DROP, FAILURE, TRAFFIC, kind_of
from status_service import bounded
from status_service.peers import Bytes
from status_service.presence import Connection
from status_service.tally import Service

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86_400
MAX_WAITING: Final = 200_000
"""Minutes of peers that wait for a file that can't be written; the oldest go first. Sums of a month stay."""
MAX_EVENTS: Final = 4096
"""Events that wait for it."""
WRITE_EVERY: Final = 60.0
"""s between two writes without an event."""
JUMP: Final = 60.0
"""s by which the wall clock must leave the boot-time clock to have jumped."""
STEADY_FOR: Final = 86_400.0
"""s without a jump after which the wall clock may say which rows are old."""
Work = tuple[int, int, int]
"""Counts of what a stage has handled, dropped, and failed in."""


@dataclass(slots=True)
class PeerRow:
    """Holds what is known of a peer at the last report."""

    name: str
    rx_seen: int
    tx_seen: int


@dataclass(slots=True)
class Batch:
    """Holds what one transaction writes. Times are UNIX times (s) at the beginning of a minute."""

    peers: dict[bytes, PeerRow] = field(default_factory=dict)
    minutes: dict[tuple[int, bytes], Bytes] = field(default_factory=dict)
    sums: dict[tuple[int, bytes], Bytes] = field(default_factory=dict)
    """By the beginning of the month, in UTC."""
    stages: dict[tuple[int, str, int], Work] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    open: dict[bytes, Connection] = field(default_factory=dict)
    """Connections that changed."""
    ended: list[Connection] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.peers, self.minutes, self.stages, self.events, self.open, self.ended))


class Clock:
    """Tells when the wall clock may be believed: a jump ahead must not make the whole history old."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._steady_since = 0.0

    def look(self, now: float, unix_s: float) -> float:
        """Compares the wall clock with the boot-time clock. Returns by how much (s) it jumped, mostly 0."""
        offset = unix_s - now
        jump = 0.0 if self._offset is None else offset - self._offset
        if self._offset is None or abs(jump) >= JUMP:
            self._steady_since = now
        self._offset = offset  # follows a clock that is put right step by step
        return jump if abs(jump) >= JUMP else 0.0

    def is_steady(self, now: float) -> bool:
        return self._offset is not None and now - self._steady_since >= STEADY_FOR


class History:
    """Holds the next batch."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._batch = Batch()
        self._work: dict[tuple[str, int], Work] = {}
        self._written = 0.0
        self._urgent = False

    def on_peer(self, report: PeerReport, grown: Bytes, unix_s: float) -> None:
        """Enters a report, with the bytes since the report before."""
        key, batch = report.public_key, self._batch
        batch.peers[key] = PeerRow(report.name, report.rx_bytes, report.tx_bytes)
        if grown == (0, 0):
            return
        _add(batch.minutes, (_floor(unix_s, MINUTE), key), grown)
        _add(batch.sums, (month_of(unix_s), key), grown)
        if len(batch.minutes) > MAX_WAITING:
            del batch.minutes[next(iter(batch.minutes))]

    def on_connection(self, connection: Connection) -> None:
        """Enters what has become of an open connection."""
        self._batch.open[connection.public_key] = replace(connection)

    def on_ended(self, connection: Connection) -> None:
        """Enters the end of a connection."""
        self._batch.open.pop(connection.public_key, None)
        self._batch.ended.append(connection)

    def on_event(self, event: Event) -> None:
        self._batch.events.append(event)
        del self._batch.events[:-MAX_EVENTS]
        self._urgent |= event.kind != "rekeyed"

    def on_services(self, services: Iterable[tuple[tuple[str, int], Service]], unix_s: float) -> None:
        """Compares the counters of all stages with those of the last call."""
        for place, service in services:
            now = _work(service.total())
            before = self._work.get(place)
            self._work[place] = now
            if before is None or before == now:  # the first counts are older than this process
                continue
            key = _floor(unix_s, MINUTE), *place
            handled, dropped, failed = self._batch.stages.get(key, (0, 0, 0))
            grown = (max(0, new - old) for new, old in zip(now, before, strict=True))
            sums = handled + next(grown), dropped + next(grown), failed + next(grown)
            self._batch.stages[key] = bounded.count(sums[0]), bounded.count(sums[1]), bounded.count(sums[2])

    def is_due(self, now: float) -> bool:
        """Tells whether the batch should be written: soon after an event, otherwise each minute."""
        return bool(self._batch) and (self._urgent or now - self._written >= WRITE_EVERY)

    def take(self, now: float) -> Batch:
        """Hands the batch out, and begins the next."""
        taken, self._batch = self._batch, Batch()
        self._written, self._urgent = now, False
        return taken

    def give_back(self, batch: Batch) -> None:
        """Takes a batch back that could not be written. What came since counts as newer."""
        newer, self._batch = self._batch, batch
        self._urgent = True
        for minute, grown in newer.minutes.items():
            _add(batch.minutes, minute, grown)
        for minute in list(batch.minutes)[: max(0, len(batch.minutes) - MAX_WAITING)]:
            del batch.minutes[minute]
        for month, grown in newer.sums.items():
            _add(batch.sums, month, grown)
        for place, work in newer.stages.items():
            before = batch.stages.get(place, (0, 0, 0))
            batch.stages[place] = before[0] + work[0], before[1] + work[1], before[2] + work[2]
        batch.peers |= newer.peers
        batch.events = [*batch.events, *newer.events][-MAX_EVENTS:]
        for ended in newer.ended:
            batch.open.pop(ended.public_key, None)
        batch.open |= newer.open
        batch.ended = [*batch.ended, *newer.ended][-MAX_EVENTS:]


def month_of(unix_s: float) -> int:
    """Returns the UNIX time (s) at which a time's month begins, in UTC."""
    at = time.gmtime(unix_s)
    return timegm((at.tm_year, at.tm_mon, 1, 0, 0, 0))


def _floor(unix_s: float, span: int) -> int:
    return int(unix_s) // span * span


def _add(counts: dict[tuple[int, bytes], Bytes], key: tuple[int, bytes], grown: Bytes) -> None:
    before = counts.get(key, (0, 0))
    counts[key] = bounded.count(before[0] + grown[0]), bounded.count(before[1] + grown[1])


def _work(total: dict[str, int]) -> Work:
    sums = dict.fromkeys((TRAFFIC, DROP, FAILURE), 0)
    for name, count in total.items():
        if (kind := kind_of(name)) in sums:
            sums[kind] += count
    return sums[TRAFFIC], sums[DROP], sums[FAILURE]
