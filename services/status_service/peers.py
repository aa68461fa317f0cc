"""Keeps what key-service has reported of each peer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from stagewire.control.telemetry import GatewayReport, PeerReport
from stagewire.deadlines import IDLE_INTERVAL
from stagewire.proto.constants import KEY_LENGTH, REJECT_AFTER_TIME
from status_service import bounded

MAX_PEERS: Final = 65_536
"""Peers that are kept, whatever key-service says."""
SILENT_AFTER: Final = IDLE_INTERVAL + 4.0
"""s without a report after which key-service counts as away."""
Bytes = tuple[int, int]
"""Bytes received and sent."""


@dataclass(slots=True)
class Known:
    """Holds a peer's last report, and when the peer was last heard (s, boot-time clock)."""

    report: PeerReport
    heard_at: float


class Peers:
    """Holds all peers by public key."""

    def __init__(self) -> None:
        self.known: dict[bytes, Known] = {}
        self._seen: dict[bytes, Bytes] = {}
        self._ready = False
        self._heard = -SILENT_AFTER

    def resume(self, seen: Mapping[bytes, Bytes]) -> None:
        """Takes each peer's bytes in the last report that an earlier status-service had."""
        self._seen = dict(seen)

    def take(self, report: GatewayReport, now: float) -> list[tuple[PeerReport, Bytes]]:
        """Enters a report. Returns each peer in it, with the bytes since the report before."""
        self._ready, self._heard = report.ready, now
        for key in report.gone:
            self.known.pop(key, None)
            self._seen.pop(key, None)
        taken = []
        for peer in map(bounded.peer, report.peers):
            before = self.known.get(peer.public_key)
            if len(peer.public_key) != KEY_LENGTH or (before is None and len(self.known) >= MAX_PEERS):
                continue
            at = before.heard_at if before is not None else -math.inf
            if peer.heard_s_ago >= 0:
                at = max(at, now - peer.heard_s_ago)
            self.known[peer.public_key] = Known(peer, at)
            taken.append((peer, self._grown(peer)))
        return taken

    def _grown(self, peer: PeerReport) -> Bytes:
        received, sent = self._seen.get(peer.public_key, (0, 0))
        self._seen[peer.public_key] = peer.rx_bytes, peer.tx_bytes
        # A new key-service knows only what the peer's present worker has counted: to count that again would be wrong.
        return max(0, peer.rx_bytes - received), max(0, peer.tx_bytes - sent)

    def is_up(self, peer: Known, now: float) -> bool:
        """Tells whether the peer has sent something authentic within the life of a session."""
        return now - peer.heard_at < REJECT_AFTER_TIME

    def name_of(self, public_key: bytes) -> str:
        """Returns a peer's name, empty for none."""
        known = self.known.get(public_key)
        return known.report.name if known is not None else ""

    def ready(self, now: float) -> bool:
        """Tells whether key-service has said lately that the gateway is ready."""
        return self._ready and self.hears(now)

    def hears(self, now: float) -> bool:
        """Tells whether key-service works."""
        return now - self._heard <= SILENT_AFTER
