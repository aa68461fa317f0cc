"""Counts each peer's bytes of the month (UTC) towards its quota, and caps its tunnels so that they stop there by themselves.

A cap is a number of bytes of one tunnel: what that tunnel has reported, and what the quota leaves. It stays the same while
the tunnel's traffic flows. A worker hears of it again when a month begins, or when the quota or another tunnel changes it.

What a killed worker had not reported is reckoned from the pace of its last reports. What a killed key-service had not
stored, the workers still know. `down` waits for the workers' last words, and loses nothing.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from key_service.registry import Registry
from stagewire import files
from stagewire.config import encode_key, values
from stagewire.control import usage
from stagewire.control.event import Event
from stagewire.control.usage import Usage, month_of
from stagewire.limits import MAX_COUNT
from stagewire.logs import Log

LOOK_INTERVAL: Final = 0.5
"""s between two looks at the wall clock and at all quotas."""
SAVE_INTERVAL: Final = 0.4
SAVE_INTERVAL_PER_PEER: Final = 0.0002
"""s between two saves, and more for each peer: 10,000 take a tenth of a second."""
WARN_AT: Final = 0.8
NO_CAP: Final = -1
UNREPORTED: Final = 1.0
"""s without a report after which a tunnel has carried nothing: more than REPORTED_WITHIN in `device_service`."""
UNREPORTED_AT_MOST: Final = 0.2
"""s of traffic that a dead worker had not reported: REPORTED_WITHIN. More than that is a report or a death heard of late."""
PACE_OVER: Final = 0.5
"""s over which a pace is taken at least: reports may come late, and then soon after one another."""


class _Pace:
    """Knows how fast a tunnel carries bytes, over PACE_OVER or, at its beginning, over the reports so far."""

    __slots__ = ("_known", "_since", "_total", "_total_then", "at")

    def __init__(self, total: int, now: float) -> None:
        self.at = self._since = now
        """When the tunnel last reported (s)."""
        self._total = self._total_then = total
        self._known: float | None = None

    def take(self, total: int, now: float) -> None:
        """Takes the bytes that the tunnel has carried so far."""
        if total < self._total:  # a new tunnel, which counts from 0
            self._total_then -= self._total
        elif now - self.at > UNREPORTED:  # the tunnel has rested
            self._since, self._total_then = now - UNREPORTED_AT_MOST, self._total
        self.at, self._total = now, total
        if now - self._since >= PACE_OVER:
            self._known = self._bytes_a_second()
            self._since, self._total_then = now, total

    def died(self, now: float) -> int:
        """Returns the bytes that the tunnel has probably carried since its last report. The next goes on at this pace."""
        pace = self._known if self._known is not None else self._bytes_a_second()
        silent = now - self.at
        self._known, self.at = pace, now
        self._since, self._total, self._total_then = now, 0, 0
        return round(pace * min(silent, UNREPORTED_AT_MOST)) if silent <= UNREPORTED else 0

    def _bytes_a_second(self) -> float:
        return (self._total - self._total_then) / max(self.at - self._since, UNREPORTED_AT_MOST)


class Quotas:
    """Knows what the peers with a quota have used. `tell` sends a peer's settings to its home workers again."""

    def __init__(self, folder: Path, registry: Registry, log: Log, wall_clock: Callable[[], float]) -> None:
        self._folder = folder
        self._registry = registry
        self._log = log
        self._wall_clock = wall_clock
        self._usages: dict[bytes, Usage] = {}
        self._paces: dict[tuple[bytes, int], _Pace] = {}
        """By peer and worker."""
        self._told: dict[bytes, int] = {}
        """The bytes that each peer's quota left when its workers were told, with what their tunnels had reported then."""
        self._warned: dict[bytes, tuple[str, int, float]] = {}
        """The month, quota and share of each peer's last warning."""
        self._with_quota: dict[bytes, int] = {}
        self._known = -1
        """The registry's count of changes when `_with_quota` was made."""
        self._changed = False
        self._save_after = 0.0
        self.tell: Callable[[Iterable[bytes]], None] = lambda _keys: None
        self.carried: Callable[[bytes], dict[int, tuple[int, int]]] = lambda _key: {}
        """Returns what the tunnels of a peer have reported: generation and bytes, by worker."""
        self.happened: Callable[[Event], None] = lambda _event: None
        self.look_by: Callable[[float], None] = lambda _when: None
        """Has the next look come at a time (s) at the latest; an idle loop looks rarely."""
        try:
            self._usages = usage.read(folder)
        except (OSError, ValueError) as error:
            file, kept = folder / usage.NAME, files.put_aside(folder / usage.NAME)
            log.warning(
                "cannot read what peers have used; quotas begin anew",
                file=str(file), reason=str(error), kept=str(kept or "nowhere"),
            )  # fmt: skip
        for key, peer in registry.peers.items():
            if peer.limits.quota and key in self._usages:
                self._warned[key] = self._state(key, peer.limits.quota)

    # --- caps ----------------------------------------------------------------------------------------------

    def cap(self, key: bytes, worker: int) -> int:
        """Returns the bytes at which a peer's tunnel in a worker must stop; -1 for none."""
        quota = self._registry.peers[key].limits.quota
        if not quota:
            return NO_CAP
        found = self._of(key)
        _, reported = found.tunnels.get(worker, (0, 0))
        return min(max(0, quota - found.in_month(self._month())) + reported, MAX_COUNT)

    def _of(self, key: bytes) -> Usage:
        """Returns a peer's usage. What its tunnels carried before it had a quota doesn't count."""
        found = self._usages.get(key)
        if found is None:
            found = self._usages[key] = Usage(tunnels=self.carried(key))
        return found

    def _month(self) -> str:
        return month_of(self._wall_clock())

    # --- what workers say ----------------------------------------------------------------------------------

    def on_traffic(self, key: bytes, worker: int, generation: int, total: int, now: float) -> None:
        """Takes the bytes that a peer's tunnel has carried so far."""
        peer = self._registry.peers.get(key)
        if peer is not None and peer.limits.quota:
            found = self._of(key)
            if found.former.get(worker, (None, 0))[0] != generation:
                if (key, worker) not in self._paces:
                    self._paces[key, worker] = _Pace(total, now)
                self._paces[key, worker].take(total, now)
            found.counted(worker, generation, total, self._month())
            self._changed = True

    def worker_died(self, worker: int, generation: int, now: float) -> None:
        """Counts what a worker's process has probably carried since its last reports. The next process begins at once."""
        for (key, number), pace in self._paces.items():
            if number == worker and (found := self._usages.get(key)) is not None and (unreported := pace.died(now)):
                found.ends(worker, generation, unreported, self._month())
                self._changed = True

    def worker_began(self, worker: int, generation: int) -> None:
        """Notes that a worker's earlier process has ended, though its last report may still come."""
        for each in self._usages.values():
            each.begins(worker, generation)

    def tunnel_begins(self, key: bytes, worker: int) -> None:
        """Notes that a peer gets a new tunnel in a worker, which counts from 0."""
        if (found := self._usages.get(key)) is not None:
            found.tunnels.pop(worker, None)

    def peer_gone(self, key: bytes) -> None:
        """Notes that a peer's tunnels are gone; what it has used stays, in case it comes back."""
        if (found := self._usages.get(key)) is not None:
            found.tunnels.clear()
            found.former.clear()
        for place in [place for place in self._paces if place[0] == key]:
            del self._paces[place]
        self._told.pop(key, None)

    # --- time ----------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Tells workers of changed caps, warns, and saves."""
        month, stale = self._month(), []
        if self._registry.commits != self._known:
            self._known = self._registry.commits
            peers = self._registry.peers.values()
            self._with_quota = {peer.public_key: peer.limits.quota for peer in peers if peer.limits.quota}
        for key, quota in self._with_quota.items():
            found = self._of(key)
            self._warn(key, quota)
            # What one tunnel carries changes no other tunnel's cap unless there are several.
            left = max(0, quota - found.in_month(month))
            caps = left + sum(total for _, total in found.tunnels.values()) if len(found.tunnels) < 2 else left
            if self._told.get(key) != caps:
                self._told[key] = caps
                stale.append(key)
        if stale:
            self.tell(stale)
        if self._changed and now >= self._save_after:
            self.save(now)
        if self._changed:
            self.look_by(self._save_after)

    def save(self, now: float) -> None:
        """Stores what peers have used in this month or lately."""
        month = self._month()
        self._usages = {
            key: each for key, each in self._usages.items() if key in self._registry.peers or month in each.months
        }
        try:
            files.write(self._folder / usage.NAME, usage.pack(self._usages))
            self._changed = False
        except OSError as error:
            self._log.error("cannot store what peers have used", reason=str(error))
        self._save_after = now + SAVE_INTERVAL + SAVE_INTERVAL_PER_PEER * len(self._usages)

    def save_rest(self, now: float) -> None:
        """Stores what has changed since the last time, before the end."""
        if self._changed:
            self.save(now)

    def _state(self, key: bytes, quota: int) -> tuple[str, int, float]:
        used = self._of(key).in_month(self._month())
        return self._month(), quota, 1.0 if used >= quota else WARN_AT if used >= WARN_AT * quota else 0.0

    def _warn(self, key: bytes, quota: int) -> None:
        state = self._state(key, quota)
        if self._warned.get(key) == state:
            return
        self._warned[key] = state
        if not state[2]:
            return
        facts = {"peer": self._registry.label(key), "quota": values.as_quota(quota)}
        kind = "quota_reached" if state[2] == 1.0 else "quota_near"
        if kind == "quota_reached":
            self._log.warning("peer has used up its quota; its traffic stops until the month ends", **facts)
        else:
            self._log.warning(f"peer has used {WARN_AT:.0%} of its quota", **facts)
        self.happened(Event(kind, public_key=encode_key(key), name=self._registry.from_file.get(key, "")))
