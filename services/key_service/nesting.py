"""Tells conn-service the chain of peers behind an endpoint that lies in our own tunnel."""

from collections.abc import Callable, Iterator
from typing import Final

from key_service.registry import Registry
from stagewire.control.chains import Chain, ChainJudged, ChainsChanged, Nested
from stagewire.proto.endpoint import unpack_untrusted, without_source
from stagewire.proto.handshaker import Handshaker

LOOK_INTERVAL: Final = 0.1
"""s between two looks at the endpoints of the peers on chains."""
MAX_CHAINS: Final = 4096
Tell = Callable[[Chain | ChainsChanged], object]


class Nesting:
    """Finds chains for conn-service, and withdraws them after a change. `tell` sends to conn-service."""

    def __init__(self, registry: Registry, handshaker: Handshaker, tell: Tell) -> None:
        self._registry = registry
        self._handshaker = handshaker
        self._tell = tell
        self._involved: dict[bytes, bytes | None] = {}
        """Peers on told chains, each with its endpoint at that time."""
        self._told = 0
        self._refused: set[bytes] = set()
        """Endpoints whose chain lies in the tunnel altogether."""

    def on_nested(self, message: Nested, now: float) -> None:
        """Answers with the chain of an endpoint."""
        self.look(now)  # first, because `_chain` overwrites the endpoints of `_involved`
        if self._told >= MAX_CHAINS:
            self.changed()
        self._told += 1
        self._tell(Chain(message.endpoint, tuple(self._chain(message.endpoint))))

    def on_judged(self, message: ChainJudged) -> None:
        """Notes conn-service's verdict on a chain."""
        place = without_source(message.endpoint)
        if message.passes:
            self._refused.discard(place)
        elif len(self._refused) < MAX_CHAINS:
            self._refused.add(place)

    def _chain(self, endpoint: bytes) -> Iterator[bytes]:
        seen = {without_source(endpoint)}
        while True:
            owner = self._registry.owner_of(unpack_untrusted(endpoint).address)
            peer = self._handshaker.peers.get(owner) if owner else None
            if owner is None or peer is None:
                return
            self._involved[owner] = peer.endpoint
            if peer.endpoint is None or without_source(peer.endpoint) in seen:
                return
            endpoint = peer.endpoint
            seen.add(without_source(endpoint))
            yield endpoint

    def look(self, _now: float) -> None:
        """Withdraws all chains if a peer on a chain has moved or is gone."""
        peers = self._handshaker.peers
        for key, endpoint in self._involved.items():
            peer = peers.get(key)
            if peer is None or peer.endpoint != endpoint:
                self.changed()
                return

    def changed(self) -> None:
        """Withdraws all chains, because allowed-IPs or endpoints have changed."""
        if self._told:
            self._told = 0
            self._involved.clear()
            self._tell(ChainsChanged())

    def start_anew(self) -> None:
        """Forgets all chains, because a new conn-service knows none of them."""
        self._told = 0
        self._involved.clear()
        self._refused.clear()

    def fault_of(self, endpoint: bytes | None) -> str:
        """Returns, for the operator, why conn-service refuses an endpoint; empty if it does not."""
        if endpoint is None or without_source(endpoint) not in self._refused:
            return ""
        if (carrier := self._without_endpoint(endpoint)) is not None:
            return f"lies behind {self._registry.label(carrier)}, whose own endpoint is not known yet"
        return "lies behind the peer itself; route it outside the tunnel or through another peer"

    def _without_endpoint(self, endpoint: bytes) -> bytes | None:
        """Returns the peer at the end of a chain if the chain ends because nobody knows where that peer is."""
        seen = set[bytes]()
        while without_source(endpoint) not in seen:
            seen.add(without_source(endpoint))
            owner = self._registry.owner_of(unpack_untrusted(endpoint).address)
            peer = self._handshaker.peers.get(owner) if owner else None
            if owner is None or peer is None:
                return None
            if peer.endpoint is None:
                return owner
            endpoint = peer.endpoint
        return None
