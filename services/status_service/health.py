"""Judges whether the gateway works, and whether traffic can flow."""

from collections import deque
from typing import Final

from status_service.beats import Beats
from status_service.peers import Peers
from status_service.tally import Tally

WINDOW: Final = 10.0
"""s over which traffic is judged."""
ENOUGH: Final = 10
"""Packets in a window that must not all come to nothing."""
_EXPLAINED: Final = (
    "no_peer", "for_many_unrouted", "no_endpoint", "outbound_malformed", "outbound_too_large", "staging_full",
    "staging_room_full", "handshake_gave_up", "key_wiped_staged", "nested_too_deep",
)  # fmt: skip
"""Packets from the host that the gateway rightly sends nowhere."""
_OURS: Final = ("train_too_old", "datagram_too_old", "tun_full", "tun_write_failed", "worker_full", "conn_full")
"""Drops that are the gateway's own fault."""


class Health:
    """Looks at the counters each second. Without peers or traffic a gateway is as ready as with them."""

    def __init__(self, tally: Tally, peers: Peers, beats: Beats | None = None) -> None:
        """Takes None where there are no slots to look at."""
        self._tally, self._peers, self._beats = tally, peers, beats
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def look(self, now: float) -> None:
        """Notes the counters, to compare later ones with."""
        self._seen.append((now, self._totals()))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    def _totals(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for service in self._tally.services.values():
            for name, count in service.total().items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def unwell(self, now: float) -> list[str]:
        """Returns why the gateway doesn't work, a line for each reason."""
        if not self._peers.hears(now):
            return ["key-service does not report"]
        fault = self._beats.fault_of("key", now) if self._beats is not None else ""
        return [fault] if fault else []

    def unready(self, now: float) -> list[str]:
        """Returns why no traffic can flow, a line for each reason."""
        if found := self.unwell(now):
            return found
        if self._beats is not None and (found := self._beats.at_fault(now)):
            return found
        if not self._peers.ready(now):
            return ["not every process is at work, or the link is down"]
        return self._stuck()

    def _stuck(self) -> list[str]:
        if not self._seen:
            return []
        before, after = self._seen[0][1], self._totals()
        grown = {name: count - before.get(name, 0) for name, count in after.items()}
        taken, sent = grown.get("tun_packets_in", 0), grown.get("datagrams_out", 0)
        explained = sum(grown.get(name, 0) for name in _EXPLAINED)
        lost = sum(grown.get(name, 0) for name in _OURS)
        stuck = []
        if taken - explained >= ENOUGH and not sent:
            stuck.append(f"{taken} packets came from this host in {WINDOW:.0f} s, and no datagram left")
        if lost >= ENOUGH and not sent and not grown.get("tun_packets_out", 0):
            stuck.append(f"{lost} packets were dropped in {WINDOW:.0f} s, and none got through")
        return stuck
