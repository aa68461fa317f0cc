"""Turns what the services report into rates, for `stagewire top`. Pure: it asks nothing and draws nothing."""

from base64 import b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from stagewire import stats
from stagewire.config.peer_names import label
from stagewire.control.status import CountedStatus, CountersStatus, GatewayStatus, PeerStatus
from stagewire.limits import MAX_WORKERS

WINDOW: Final = 6.0
"""s over which rates are taken: stages report once a second, so a shorter time would count one report more or less."""
KEPT: Final = 240
"""Samples that the course of the traffic shows at most."""
_LOSSES: Final = (stats.DROP,)
_SHOWN: Final = (stats.DROP, stats.FAILURE)
_FRESH: Final = 60.0
"""s after which an incident is no news."""
Place = tuple[str, int]
"""A stage and a number."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds all that was known at `at` (s, monotonic). `unix` is the same in UNIX time; an absent part is None.

    `used` is the CPU time (s) of each process that holds a slot, by its place and pid.
    """

    at: float
    unix: float
    gateway: GatewayStatus | None
    counted: CountersStatus | None
    used: dict[tuple[Place, int], float]


@dataclass(frozen=True, slots=True)
class StageRow:
    """Shows one process at work: its share of a core, its spares, and the bytes in the pipes that it sends to."""

    stage: str
    number: int
    active: bool
    spares: int
    cpu: float | None
    fault: str
    queues: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerRow:
    """Shows one peer. Rates are a second; `shaken` is the age of the last handshake in s, None for never."""

    public_key: str
    name: str
    endpoint: str
    received: float
    sent: float
    shaken: float | None
    lost: float
    reasons: tuple[str, ...]

    @property
    def label(self) -> str:
        """Returns the name with the first letters of the key."""
        return label(self.public_key, self.name)


@dataclass(frozen=True, slots=True)
class View:
    """Holds the operator's choices."""

    sort: str = "rate"
    reverse: bool = False
    filter: str = ""
    first: int = 0
    """Position of the first peer that is shown."""
    paused: bool = False
    typing: bool = False
    """The filter is being typed."""


SORTS: Final[dict[str, Callable[[PeerRow], tuple[object, ...]]]] = {
    "rate": lambda row: (-(row.received + row.sent), row.shaken is None, row.shaken or 0.0),
    "in": lambda row: (-row.received,),
    "out": lambda row: (-row.sent,),
    "handshake": lambda row: (row.shaken is None, row.shaken or 0.0),
    "lost": lambda row: (-row.lost, -len(row.reasons)),
    "name": lambda row: (not row.name, row.name.casefold()),
}
"""Orders of the peers. Peers that are equal in it stand in the order of their keys."""


class Model:
    """Keeps the samples of some seconds."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self.course: deque[tuple[float, float]] = deque(maxlen=KEPT)
        """Bits a second received and sent, the newest last."""

    def take(self, sample: Sample) -> None:
        """Enters a sample."""
        self._samples.append(sample)
        while len(self._samples) > 2 and sample.at - self._samples[1].at >= WINDOW:
            self._samples.popleft()
        if sample.gateway is not None:
            rows = self.peers(View())
            self.course.append((8 * sum(row.received for row in rows), 8 * sum(row.sent for row in rows)))

    @property
    def last(self) -> Sample:
        return self._samples[-1]

    @property
    def _rated(self) -> bool:
        """Tells whether there are two samples. With one, rates are those that the services tell."""
        return len(self._samples) > 1

    @property
    def gateway(self) -> GatewayStatus | None:
        """Returns the newest answer of key-service, which may be older than the last sample."""
        return next((each.gateway for each in reversed(self._samples) if each.gateway is not None), None)

    def _rate(self, count: Callable[[Sample], float | None]) -> float:
        """Returns by how much a count grows a second; 0 where it has begun anew."""
        counts = [(each.at, found) for each in self._samples if (found := count(each)) is not None]
        if len(counts) < 2:
            return 0.0
        (begun, before), (ended, after) = counts[0], counts[-1]
        return max(0.0, after - before) / (ended - begun)

    def packets(self, counter: str) -> float:
        """Returns the rate of a counter, over all stages."""

        def total(sample: Sample) -> float | None:
            if sample.counted is None:
                return None
            return sum(each.counters.get(counter, 0) for each in sample.counted.services)

        return self._rate(total) if self._rated else self._told(counter)

    def _told(self, counter: str) -> float:
        services = self.last.counted.services if self.last.counted is not None else ()
        named = (pair for each in services for pair in zip(each.names, each.per_s, strict=False))
        return sum(per_s for name, per_s in named if name == counter)

    # --- peers ---------------------------------------------------------------------------------------------

    def peers(self, view: View) -> list[PeerRow]:
        """Returns the peers that the filter leaves, in order."""
        gateway = self.gateway
        if gateway is None:
            return []
        before = self._before()
        lost, reasons = self._incidents()
        rows = [self._peer(peer, before, lost, reasons) for peer in gateway.peers]
        wanted = view.filter.casefold()
        rows = [row for row in rows if not wanted or wanted in _text(row)]
        return sorted(sorted(rows, key=lambda row: row.public_key), key=SORTS[view.sort], reverse=view.reverse)

    def _before(self) -> tuple[float, dict[str, PeerStatus]]:
        """Returns the oldest answer that rates are taken from, and how many s before the newest one it came."""
        answered = [(each.at, each.gateway) for each in self._samples if each.gateway is not None]
        (begun, first), (ended, _) = answered[0], answered[-1]
        return ended - begun, {peer.public_key: peer for peer in first.peers}

    def _peer(
        self,
        peer: PeerStatus,
        before: tuple[float, dict[str, PeerStatus]],
        lost: dict[str, float],
        reasons: dict[str, list[str]],
    ) -> PeerRow:
        passed, former = before[0], before[1].get(peer.public_key)
        received, sent = (0.0, 0.0) if passed else (peer.rx_bytes_per_s, peer.tx_bytes_per_s)
        if former is not None and passed:
            received = max(0, peer.rx_bytes - former.rx_bytes) / passed
            sent = max(0, peer.tx_bytes - former.tx_bytes) / passed
        shaken = peer.last_handshake_unix_s
        return PeerRow(
            peer.public_key,
            peer.name,
            peer.endpoint or "",
            received,
            sent,
            None if shaken is None else max(0.0, self.last.unix - shaken),
            lost.get(peer.public_key, 0.0),
            tuple(reasons.get(peer.public_key, ())),
        )

    def _incidents(self) -> tuple[dict[str, float], dict[str, list[str]]]:
        """Returns each peer's drops a second, and its reasons with their counts, the newest first."""
        counted = [(each.at, each.counted) for each in self._samples if each.counted is not None]
        if not counted:
            return {}, {}
        (begun, first), (ended, newest) = counted[0], counted[-1]
        lost: dict[str, float] = {}
        reasons: dict[str, list[str]] = {}
        before = {(each.stage, each.number, each.reason, each.public_key): each.count for each in first.reasons}
        for each in newest.reasons:
            if not each.public_key or each.s_ago > _FRESH:
                continue
            kind = stats.kind_of(each.reason)
            if kind in _SHOWN:
                reasons.setdefault(each.public_key, []).append(f"{each.reason} {each.count:,}")
            if kind in _LOSSES and ended > begun:
                more = each.count - before.get((each.stage, each.number, each.reason, each.public_key), 0)
                lost[each.public_key] = lost.get(each.public_key, 0.0) + max(0, more) / (ended - begun)
        return lost, reasons

    def captured(self) -> list[str]:
        """Names the peers whose packets are being copied, and who wants that."""
        gateway, counted = self.gateway, self.last.counted
        names = {peer.public_key: peer.name for peer in gateway.peers} if gateway is not None else {}
        found = [each for service in counted.services for each in service.captures] if counted is not None else []
        keys = [(b64encode(each.public_key).decode(), each.by) for each in found]
        return [f"{label(key, names.get(key, ''))} by {by}" for key, by in keys]

    # --- stages --------------------------------------------------------------------------------------------

    def stages(self) -> dict[Place, StageRow]:
        """Returns every stage that is at work or should be, by its place."""
        gateway, sample = self.gateway, self.last
        told = {(each.stage, each.number): each for each in gateway.stages} if gateway is not None else {}
        workers = min(gateway.workers.wanted, MAX_WORKERS) if gateway is not None else 1
        at_work = dict(sample.used.keys())
        wanted = [(stage, 0) for stage in ("tun", "conn", "key", "host", "resolver", "status")]
        wanted += [("device", number) for number in range(workers)]
        return {place: self._stage(place, told.get(place), at_work.get(place)) for place in {*wanted, *at_work}}

    def _stage(self, place: Place, told: object, pid: int | None) -> StageRow:
        cpu, counted = None, self._counted(place)
        if pid is not None and self._rated:
            cpu = self._rate(lambda sample: sample.used.get((place, pid)))
        elif pid is not None and counted is not None:
            cpu = counted.cpu_share
        queues = counted.queues if counted is not None else ()
        return StageRow(
            *place,
            active=pid is not None,
            spares=getattr(told, "spares", 0),
            cpu=cpu,
            fault=getattr(told, "fault", ""),
            queues={queue.pipe: queue.waiting + queue.held for queue in queues},
        )

    def _counted(self, place: Place) -> CountedStatus | None:
        services = self.last.counted.services if self.last.counted is not None else ()
        return next((each for each in services if (each.stage, each.number) == place), None)


def _text(row: PeerRow) -> str:
    return " ".join((row.name, row.public_key, row.endpoint, *row.reasons)).casefold()
