"""Adds up the counters of many processes over their lives, in whole and by reason and peer.

A process counts from zero. The tally keeps the last counters of ended processes, so that a total never falls.
"""

from base64 import b64encode
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from stagewire.control.status import CountedStatus, CountersStatus, ReasonStatus
from stagewire.control.telemetry import CaptureReport, Counters, QueueReport, WaitReport
from stagewire.deadlines import IDLE_INTERVAL
from stagewire.limits import MAX_COUNT, MAX_WORKERS
from stagewire.pipe.names import PIPES
from stagewire.pipe.waits import BOUNDS
from stagewire.reasons import KEY_LENGTH, OF_STRANGERS, Incident, shown
from stagewire.stages import STAGES
from stagewire.stats import COUNTERS
from status_service import bounded

MAX_OF_PEERS: Final = 65_536
"""Pairs of a reason and a peer that are kept; those that happened longest ago go first."""
MAX_OF_STRANGERS: Final = 4096
"""Such pairs of strangers, who have a room of their own: anyone can make up more of them."""
MAX_PEERS_SHOWN: Final = 3072
"""Pairs of peers in one answer, the newest ones."""
MAX_STRANGERS_SHOWN: Final = 1024
RATED_OVER: Final = 0.5
"""s between two reports that tell a rate."""
TAKEN_OVER_WITHIN: Final = 30.0
"""s without a report after which the next process of a stage is a new start, and no take-over."""
MAX_CAPTURES: Final = 16
"""Captures of a worker that are shown."""
CAPTURE_HEARD: Final = IDLE_INTERVAL + 4.0
"""s without a report after which a worker's captures are over."""
_MAX_IDENTITY: Final = 32
_MAX_PLACE: Final = 18
_PIPES: Final = frozenset(
    name for pipe in PIPES for name in [pipe.name, *(f"{pipe.name}.{number}" for number in range(MAX_WORKERS))]
)
"""Names that a report may use: each makes a series of its own in Prometheus."""


@dataclass(slots=True)
class Service:
    """Counts for one stage, or one worker number. `lives` counts its processes since status-service began."""

    pid: int = 0
    generation: int = 0
    heard: float = 0.0
    lives: int = 0
    past: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    """s of the present process, as is all below."""
    queues: tuple[QueueReport, ...] = ()
    waits: tuple[WaitReport, ...] = ()
    captures: tuple[CaptureReport, ...] = ()
    share: float = 0.0
    """CPU time by time, between its last two reports."""
    per_s: dict[str, float] = field(default_factory=dict)
    """By how much each counter grew a second between them."""

    def rates(self, names: Iterable[str]) -> tuple[float, ...]:
        """Returns by how much each of these counters grows a second."""
        return tuple(round(self.per_s.get(name, 0.0), 1) for name in names)

    def total(self) -> dict[str, int]:
        """Returns the counters by name, without zeros."""
        return {name: bounded.count(value) for name, value in sorted((self.past + self.present).items())}


@dataclass(slots=True)
class Reason:
    """Counts one reason for one peer, or one stranger, in one stage."""

    past: int = 0
    present: int = 0
    generation: int = 0
    place: bytes = b""
    size: int = 0
    at: float = 0.0


_Pairs = OrderedDict[tuple[str, int, str, bytes], Reason]
"""By stage, number, reason, and key or place; the pair that happened last is the last."""


class Tally:
    """Holds the counters of all stages of an interface, by stage and number."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, int], Service] = {}
        self._of_peers: _Pairs = OrderedDict()
        self._of_strangers: _Pairs = OrderedDict()

    def take(self, counters: Counters, now: float) -> bool:
        """Enters a process's counters. Ignores unknown stages, numbers and names.

        Returns whether the process has taken the place of one that was heard a moment before.
        """
        if counters.stage not in STAGES or not 0 <= counters.number < MAX_WORKERS:
            return False
        service = self.services.setdefault((counters.stage, counters.number), Service())
        taken_over = False
        if counters.generation != service.generation:
            taken_over = service.lives > 0 and now - service.heard < TAKEN_OVER_WITHIN
            service.past = Counter(
                {name: bounded.count(value) for name, value in (service.past + service.present).items()}
            )
            service.present, service.cpu = Counter(), 0.0
            service.generation = counters.generation
            service.lives += 1
        named = zip(counters.names, counters.values, strict=False)
        present = Counter({name: value for name, value in named if name in COUNTERS})
        span = now - service.heard
        if service.pid and span >= RATED_OVER:
            service.share = max(0.0, counters.cpu - service.cpu) / span
            grown = {name: value - service.present[name] for name, value in present.items()}
            service.per_s = {name: more / span for name, more in grown.items() if 0 < more <= MAX_COUNT}
        service.pid = counters.pid
        service.heard, service.present = now, present
        service.cpu = counters.cpu
        service.queues = tuple(each for each in counters.queues if each.pipe in _PIPES)
        service.captures = counters.captures[:MAX_CAPTURES]
        service.waits = tuple(
            each for each in counters.waits if each.pipe in _PIPES and len(each.counts) == len(BOUNDS) + 1
        )
        for incident in counters.incidents:
            if incident.reason in COUNTERS:
                self._take_incident(counters, incident, now)
        return taken_over

    def _take_incident(self, counters: Counters, incident: Incident, now: float) -> None:
        identity = incident.public_key or incident.place
        key = counters.stage, counters.number, incident.reason, identity[:_MAX_IDENTITY]
        of_peer = incident.public_key and incident.reason != OF_STRANGERS
        pairs, most = (self._of_peers, MAX_OF_PEERS) if of_peer else (self._of_strangers, MAX_OF_STRANGERS)
        reason = pairs.setdefault(key, Reason(generation=counters.generation))
        if reason.generation != counters.generation or incident.count < reason.present:
            reason.past, reason.generation = bounded.count(reason.past + reason.present), counters.generation
        reason.present, reason.at = bounded.count(incident.count), now
        reason.place, reason.size = incident.place[:_MAX_PLACE], incident.size
        pairs.move_to_end(key)
        if len(pairs) > most:
            pairs.popitem(last=False)

    def status(self, now: float) -> CountersStatus:
        """Returns the answer to a StatusQuery."""
        newest = [
            *islice(reversed(self._of_peers.items()), MAX_PEERS_SHOWN),
            *islice(reversed(self._of_strangers.items()), MAX_STRANGERS_SHOWN),
        ]
        newest.sort(key=lambda pair: -pair[1].at)  # as a stable sort, it keeps the order of one moment
        return CountersStatus(
            tuple(
                CountedStatus(
                    stage,
                    number,
                    service.pid,
                    round(now - service.heard, 3),
                    service.lives,
                    tuple(total := service.total()),
                    tuple(total.values()),
                    round(service.cpu, 3),
                    service.queues,
                    service.captures if now - service.heard < CAPTURE_HEARD else (),
                    round(service.share, 4) if now - service.heard < CAPTURE_HEARD else 0.0,
                    service.rates(total) if now - service.heard < CAPTURE_HEARD else (),
                )
                for (stage, number), service in sorted(self.services.items())
            ),
            tuple(
                ReasonStatus(
                    *(stage, number, name, b64encode(key).decode() if len(key) == KEY_LENGTH else ""),
                    *(shown(reason.place), reason.size, reason.past + reason.present, round(now - reason.at, 3)),
                )
                for (stage, number, name, key), reason in newest
            ),
        )
