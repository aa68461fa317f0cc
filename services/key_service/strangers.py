"""Forgets the time stamps of unconfigured peers, once all stages are ready.

As in the kernel, removing a peer forgets its stamps. Such a peer left the file while key-service was down.
"""

from typing import Final

from key_service.readiness import Readiness
from key_service.registry import Registry
from key_service.timestamps import TimestampStore
from stagewire.logs import Log
from stagewire.proto.handshaker import Handshaker

OF_BARE: Final = 16_384
"""Peers without configuration whose time stamps a bare interface keeps: it starts without peers, and `wg` adds them."""


class Strangers:
    """Forgets once in a life of key-service. `keep` bounds how many unconfigured peers keep their stamps."""

    def __init__(
        self,
        timestamps: TimestampStore,
        registry: Registry,
        handshaker: Handshaker,
        readiness: Readiness,
        log: Log,
        *,
        keep: int,
    ) -> None:
        self._timestamps, self._registry, self._handshaker = timestamps, registry, handshaker
        self._readiness, self._log, self._keep = readiness, log, keep
        self._forgotten = False

    def look(self, now: float) -> None:
        """Forgets the stamps, if that is still to do and its time has come."""
        if self._forgotten or self._readiness.away(now):
            return
        self._forgotten = True
        known = {*self._registry.peers, self._handshaker.public_key or b""}
        if gone := self._timestamps.forget_strangers(known, self._keep):
            self._log.info("forgot the time stamps of peers that are not configured", peers=gone)
