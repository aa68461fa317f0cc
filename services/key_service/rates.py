"""Works out how fast each peer's bytes come and go, from the reports of its worker."""

from typing import Final

from stagewire.deadlines import IDLE_INTERVAL
from stagewire.limits import MAX_COUNT
from stagewire.proto.constants import TRANSPORT_OVERHEAD
from stagewire.proto.peer import Peer

LEAST: Final = 0.5
"""s over which a rate is taken at least, and..."""
MOST: Final = IDLE_INTERVAL
"""... at most: a worker without work reports no later."""
FRESH: Final = 2.5
"""s after which a peer without another report has rested."""


def take(peer: Peer, rx_bytes: int, tx_bytes: int, now: float) -> None:
    """Enters the bytes since the report before. Reports that come soon after one another count together."""
    if tx_bytes > TRANSPORT_OVERHEAD:  # more than a keepalive
        peer.rx_alone = 0
    elif rx_bytes > TRANSPORT_OVERHEAD:
        peer.rx_alone = min(peer.rx_alone + rx_bytes, MAX_COUNT)
    peer.rx_unrated += max(rx_bytes, 0)
    peer.tx_unrated += max(tx_bytes, 0)
    span = min(now - peer.rated_at, MOST)
    if span >= LEAST:
        peer.rated_at, peer.rx_rate, peer.tx_rate = now, peer.rx_unrated / span, peer.tx_unrated / span
        peer.rx_unrated = peer.tx_unrated = 0


def of(peer: Peer, now: float) -> tuple[float, float]:
    """Returns the bytes a second that a peer receives and sends now."""
    return (round(peer.rx_rate, 1), round(peer.tx_rate, 1)) if now - peer.rated_at <= FRESH else (0.0, 0.0)
