"""Endpoints that are host names: asked of conn-service, as key-service touches no network.

A name is looked up when its peer is nowhere yet, each RESOLVE_AGAIN, and again when a handshake with it gives up. Where a
peer has been seen since counts for more than where its name said it would be.
"""

from typing import Final

from key_service import report
from key_service.hub import Hub
from stagewire.config import HostPort
from stagewire.ipc.control import Resolve, Resolved
from stagewire.ipc.loop import Every
from stagewire.ipc.stage import Stage
from stagewire.proto.handshaker import Handshaker

RESOLVE_AGAIN: Final = 5.0
"""s between questions for a host name that nobody knew, perhaps because we were up before the resolver."""


class Names:
    """`names` are the host names in force, by public key; they may change."""

    def __init__(self, stage: Stage, hub: Hub, handshaker: Handshaker, names: dict[bytes, HostPort]) -> None:
        self._log = stage.log
        self._hub = hub
        self._handshaker = handshaker
        self._names = names
        self._asked: set[bytes] = set()
        self._unresolved: dict[bytes, str] = {}
        stage.loop.add_timed(Every(RESOLVE_AGAIN, self._resolve_unknown))

    def start_anew(self) -> None:
        """There is a new conn-service: what was asked of its forerunner will have no answer."""
        self._asked.clear()
        self._resolve_unknown(0.0)

    def _resolve_unknown(self, _now: float) -> None:
        for public_key in self._names:
            peer = self._handshaker.peers.get(public_key)
            if peer is not None and peer.endpoint is None:
                self.resolve(public_key)

    def resolve(self, public_key: bytes) -> None:
        """Asks where a peer is, if it has a name."""
        name = self._names.get(public_key)
        # A resolver may take longer to answer than we to ask again.
        if name is not None and public_key not in self._asked:
            self._asked.add(public_key)
            self._hub.tell("conn", 0, Resolve(public_key, name.host, name.port))

    def on_resolved(self, message: Resolved) -> bool:
        """The answer; returns whether the peer is in a new place."""
        key = message.public_key
        self._asked.discard(key)
        peer = self._handshaker.peers.get(key)
        if peer is None or key not in self._names:
            return False
        if message.error:
            if self._unresolved.get(key) != message.error:
                self._unresolved[key] = message.error
                self._log.warning("endpoint unresolved", peer=report.short(key), reason=message.error)
            return False
        self._unresolved.pop(key, None)
        if peer.endpoint == message.endpoint:
            return False
        peer.endpoint = message.endpoint
        return True
