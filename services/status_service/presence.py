"""Finds out which peers come, go, move and rekey, from what key-service reports of them.

A peer is connected from its first authentic packet until REJECT_AFTER_TIME has passed without one: no session lives
longer. So a peer that sends now and then does not come and go, with or without a keepalive.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from stagewire.control.event import Event
from stagewire.control.telemetry import PeerReport
from stagewire.proto.constants import REJECT_AFTER_TIME
from status_service import bounded

MOST: Final = 256
"""Peers that one look reports as gone; the next look has the others."""


@dataclass(slots=True)
class Connection:
    """Describes a connected peer. Times without `unix` are on the boot-time clock (s)."""

    public_key: bytes
    name: str
    endpoint: str
    since: float
    since_unix_s: float
    heard: float
    heard_unix_s: float
    shaken: float
    """The time of the last handshake."""
    rx_bytes: int = 0
    tx_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Returns how long the peer has been heard."""
        return max(0.0, self.heard - self.since)

    def event(self, kind: str, **more: object) -> Event:
        key = b64encode(self.public_key).decode()
        return Event(kind, public_key=key, name=self.name, endpoint=self.endpoint, **more)  # type: ignore[arg-type]


class Presence:
    """Knows which peers are connected."""

    def __init__(
        self,
        begun_unix_s: float,
        kept: Iterable[Connection] | None = None,
        on_end: Callable[[Connection], None] = lambda _ended: None,
    ) -> None:
        """Takes the connections that an earlier life has kept, or None if nothing is known of an earlier life.

        Then a peer with a handshake before `begun_unix_s` is no new one. `on_end` hears of each connection that ends.
        """
        self._begun = begun_unix_s
        self._knows_all = kept is not None
        self._on_end = on_end
        self.open = {each.public_key: each for each in kept or ()}

    def take(self, report: PeerReport, grown: tuple[int, int], now: float, unix_s: float) -> list[Event]:
        """Compares a report with what was known. `grown` are the bytes received and sent since the last report."""
        connection = self.open.get(report.public_key)
        heard = now - report.heard_s_ago if report.heard_s_ago >= 0 else None
        if connection is None:
            if heard is None or now - heard >= REJECT_AFTER_TIME:
                return []
            connection = self.open[report.public_key] = Connection(
                report.public_key, report.name, report.endpoint, heard, unix_s - (now - heard), heard,
                unix_s - (now - heard), report.last_handshake, *grown,
            )  # fmt: skip
            is_new = self._knows_all or report.last_handshake_unix_s >= self._begun
            return [connection.event("connected")] if is_new else []
        connection.rx_bytes = bounded.count(connection.rx_bytes + grown[0])
        connection.tx_bytes = bounded.count(connection.tx_bytes + grown[1])
        connection.name = report.name
        if heard is not None and heard > connection.heard:
            connection.heard, connection.heard_unix_s = heard, unix_s - (now - heard)
        return list(self._changes(connection, report))

    def _changes(self, connection: Connection, report: PeerReport) -> Iterable[Event]:
        before, connection.endpoint = connection.endpoint, report.endpoint or connection.endpoint
        if connection.endpoint != before:
            yield connection.event("moved", before=before)
        # A key-service that has just begun has heard of none yet.
        if report.last_handshake and report.last_handshake != connection.shaken:
            connection.shaken = report.last_handshake
            yield connection.event("rekeyed")

    def look(self, now: float) -> list[Event]:
        """Ends the connections of the peers that fell silent."""
        silent = [key for key, each in self.open.items() if now - each.heard >= REJECT_AFTER_TIME]
        return [event for key in silent[:MOST] for event in self.end(key)]

    def end(self, public_key: bytes) -> list[Event]:
        """Ends a connection, if there is one: the peer fell silent, or was removed."""
        ended = self.open.pop(public_key, None)
        if ended is None:
            return []
        self._on_end(ended)
        more = {"seconds": round(ended.seconds, 3), "rx_bytes": ended.rx_bytes, "tx_bytes": ended.tx_bytes}
        return [ended.event("disconnected", **more)]
