"""Counts handshake messages that conn-service doesn't take."""

import math

from stagewire.pipe import trains
from stagewire.proto import endpoint as places
from stagewire.reasons import Reasons


def note(counters: Reasons, reason: str, frame: bytes, packets: int) -> None:
    """Counts a frame of ours with where its message was to go."""
    endpoint, message = trains.unpack_handshake_untrusted(frame, -math.inf)
    counters.note(reason, packets, place=places.place_of(endpoint), size=len(message))
