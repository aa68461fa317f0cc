"""Bounds what other processes report, so that none of them fills this process's memory or ends it by a sum."""

from dataclasses import replace
from typing import Final

from stagewire.control.event import MAX_CHANGE, MAX_CHANGES, Event
from stagewire.control.telemetry import PeerReport
from stagewire.limits import MAX_COUNT

MAX_TEXT: Final = 512
"""Letters of a text."""
MAX_ALLOWED_IPS: Final = 2_050
"""Letters of a peer's allowed-IPs: key-service cuts longer lists, and says so by `,…`."""
_MAX_KEY: Final = 32


def count(value: int) -> int:
    """Returns a count within its bounds."""
    return min(max(value, 0), MAX_COUNT)


def peer(report: PeerReport) -> PeerReport:
    """Returns a report of bounded size."""
    return replace(
        report,
        public_key=report.public_key[:_MAX_KEY],
        name=report.name[:MAX_TEXT],
        allowed_ips=report.allowed_ips[:MAX_ALLOWED_IPS],
        endpoint=report.endpoint[:MAX_TEXT],
        tx_bytes=count(report.tx_bytes),
        rx_bytes=count(report.rx_bytes),
    )


def event(told: Event) -> Event:
    """Returns what key-service may tell of an event, in bounded size."""
    return Event(
        told.kind,
        public_key=told.public_key[:MAX_TEXT],
        name=told.name[:MAX_TEXT],
        workers=told.workers,
        workers_before=told.workers_before,
        what=told.what[:MAX_TEXT],
        changes=tuple(line[: MAX_CHANGE + 1] for line in told.changes[: MAX_CHANGES + 1]),
    )
