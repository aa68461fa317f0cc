"""Makes events of what stages report, and keeps them in the ring. Logs which peers come and go."""

from collections.abc import Iterable
from typing import Final

from stagewire.config.peer_names import label
from stagewire.control.event import KINDS, Event
from stagewire.control.telemetry import Counters, GatewayReport
from stagewire.logs import Log
from status_service import bounded
from status_service.history import History
from status_service.peers import Peers
from status_service.presence import Presence
from status_service.refusals import Refusals
from status_service.ring import Ring

LOGGED: Final = {"connected": "peer connected", "disconnected": "peer disconnected"}


class Happenings:
    """Connects everything that makes events. Each step takes the time on the boot-time clock and in UNIX time (s)."""

    def __init__(self, log: Log, peers: Peers, presence: Presence, ring: Ring, history: History) -> None:
        self.ring, self.presence = ring, presence
        self._log, self._peers, self._history = log, peers, history
        self._refusals = Refusals()

    def on_report(self, report: GatewayReport, now: float, unix_s: float) -> bool:
        """Takes key-service's report. Returns whether all its events were of kinds that key-service may tell of."""
        for peer, grown in self._peers.take(report, now):
            self._history.on_peer(peer, grown, unix_s)
            self._add(self.presence.take(peer, grown, now, unix_s), unix_s)
            if (connection := self.presence.open.get(peer.public_key)) is not None:
                self._history.on_connection(connection)
        for key in report.gone:
            self._add(self.presence.end(key), unix_s)
        told = [event for event in report.events if event.kind in KINDS and KINDS[event.kind].by_key_service]
        self._add(map(bounded.event, told), unix_s)
        return len(told) == len(report.events)

    def on_counters(self, counters: Counters, now: float, unix_s: float, *, taken_over: bool) -> None:
        """Takes a stage's report. `taken_over`: it comes from another process than the one before."""
        if taken_over:
            self.on_taken_over(counters.stage, counters.number, counters.pid, unix_s)
        for incident in counters.incidents:
            refused = self._refusals.take(incident, self._peers.name_of(incident.public_key), now)
            self._add([refused] if refused is not None else [], unix_s)

    def on_taken_over(self, stage: str, number: int, pid: int, unix_s: float) -> None:
        self._add([Event("taken_over", stage=stage, number=number, pid=pid)], unix_s)

    def look(self, now: float, unix_s: float) -> None:
        """Tells of the peers that fell silent."""
        self._add(self.presence.look(now), unix_s)

    def end_all(self, unix_s: float) -> None:
        """Ends the connections of an earlier life of the gateway."""
        for key in list(self.presence.open):
            self._add(self.presence.end(key), unix_s)

    def _add(self, events: Iterable[Event], unix_s: float) -> None:
        for event in events:
            stamped = self.ring.add(event, unix_s)
            self._history.on_event(stamped)
            if said := LOGGED.get(event.kind):
                self._log.info(said, peer=label(stamped.public_key, stamped.name), endpoint=stamped.endpoint)
