"""Reports each peer to status-service when something of it has changed, as many a second as cost no handshake its time.

Tells of the events that key-service brings about, as well.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from key_service.registry import Registry
from key_service.report import place
from stagewire.control.event import FROM_KEY, Event
from stagewire.control.telemetry import GatewayReport, PeerReport
from stagewire.loop import Loop
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer
from stagewire.wall_clock import unix_ns

INTERVAL: Final = 1.0
"""s between two reports."""
LOOKED_AT: Final = 512
"""Peers that are looked at for one report, besides those with traffic; the next ones have the others."""
REPORTED: Final = 256
"""Peers in one report."""
TOUCHED: Final = 192
"""Peers with traffic in one report: the others must have their turn."""
MAX_LETTERS: Final = 10_000
"""Letters of the texts in one report, each of up to four bytes: the pipe takes 64 KB."""
MAX_TEXT: Final = 2_048
"""Letters of a peer's allowed-IPs that are shown: some 100 prefixes. A label of a metric must have an end."""
MAX_EVENTS: Final = 256
"""Events that wait for status-service; the oldest go first."""
_UNTOLD: Final = ()
"""Differs from every state."""


class PeerReports:
    """Knows what status-service has been told.

    `send` takes a report, and returns whether it could send it. A report may be lost: `start_anew` then repeats all peers.
    """

    def __init__(
        self,
        registry: Registry,
        handshaker: Handshaker,
        send: Callable[[GatewayReport], bool] | None,
        before: Iterable[bytes] = (),
    ) -> None:
        """Takes None where nobody wants reports, and the peers that an earlier key-service may have told of as `before`."""
        self._registry, self._handshaker = registry, handshaker
        self._send = send or (lambda _report: True)
        self._silent = send is None
        self._told: dict[bytes, tuple[object, ...]] = dict.fromkeys((*before, *registry.peers), _UNTOLD)
        self._touched: dict[bytes, None] = {}
        """Peers with new traffic."""
        self._next = 0
        self._unseen = 0
        """How many peers may have changed since they were looked at."""
        self._worked = -1
        """The loop's count of work at the last report."""
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def happened(self, event: Event) -> None:
        """Has the next report tell of an event."""
        self._events.append(event)

    def touch(self, public_key: bytes) -> None:
        """Has a peer with new traffic looked at before the others."""
        self._touched[public_key] = None

    def start_anew(self) -> None:
        """Reports all peers again: status-service has a new life."""
        # Its former life has kept on disk who is connected, so it must hear of a removed peer too.
        self._told = dict.fromkeys(self._told, _UNTOLD)

    def report_paced(self, loop: Loop, now: float, *, ready: bool) -> None:
        """Sends the next report. After work any peer may have changed: the loop calls soon until all have been looked at."""
        if self._silent:
            return
        if loop.worked != self._worked:
            self._unseen = len(self._handshaker.peers)
        self.report(now, ready=ready)
        loop.worked += self._has_more
        self._worked = loop.worked

    @property
    def _has_more(self) -> bool:
        return (
            self._unseen > 0
            or bool(self._touched)
            or bool(self._events)
            or len(self._told) > len(self._handshaker.peers)
        )

    def report_rest(self, now: float, *, ready: bool) -> None:
        """Reports all that has changed, before the end."""
        looked = self.report(now, ready=ready)
        while looked < len(self._handshaker.peers):
            looked += self.report(now, ready=ready)

    def report(self, now: float, *, ready: bool) -> int:
        """Sends the next report, also one without news: its coming says that key-service works.

        Returns how many peers it looked at.
        """
        peers = list(self._handshaker.peers.values())
        changed: list[PeerReport] = []
        letters = step = 0
        for key in list(islice(self._touched, TOUCHED)):
            if letters >= MAX_LETTERS:
                break
            del self._touched[key]
            if (peer := self._handshaker.peers.get(key)) is not None:
                letters += self._look(peer, changed, now)
        while step < min(LOOKED_AT, len(peers)) and len(changed) < REPORTED and letters < MAX_LETTERS:
            letters += self._look(peers[(self._next + step) % len(peers)], changed, now)
            step += 1
        self._next = (self._next + step) % len(peers) if peers else 0
        gone: list[bytes] = []
        if len(self._told) > len(peers):
            gone = [key for key in self._told if key not in self._handshaker.peers][:REPORTED]
        for key in gone:
            del self._told[key]
        events = tuple(islice(self._events, FROM_KEY))
        if self._send(GatewayReport(ready, tuple(changed), tuple(gone), events)):
            for _ in events:
                self._events.popleft()
        self._unseen = max(0, self._unseen - step)
        return step

    def _look(self, peer: Peer, changed: list[PeerReport], now: float) -> int:
        """Adds a peer to those that changed, if it has. Returns the letters that it takes."""
        state = self._state(peer)
        if self._told.get(peer.public_key) == state:
            return 0
        self._told[peer.public_key] = state
        shown = self._shown(peer, now)
        changed.append(shown)
        return len(shown.name) + len(shown.allowed_ips) + len(shown.endpoint)

    def _state(self, peer: Peer) -> tuple[object, ...]:
        configured = self._registry.peers.get(peer.public_key)
        allowed = configured.allowed_ips if configured is not None else ()
        name = self._registry.from_file.get(peer.public_key, "")
        return peer.tx_bytes, peer.rx_bytes, unix_ns(peer.last_handshake), peer.endpoint, name, allowed

    def _shown(self, peer: Peer, now: float) -> PeerReport:
        configured = self._registry.peers.get(peer.public_key)
        text, name = "", self._registry.from_file.get(peer.public_key, "")
        for prefix in configured.allowed_ips if configured is not None else ():
            more = f"{text},{prefix}" if text else str(prefix)
            if len(more) > MAX_TEXT:
                text += ",…"
                break
            text = more
        heard = now - peer.heard_at
        shaken = unix_ns(peer.last_handshake) / 1e9 if peer.last_handshake else 0.0
        return PeerReport(
            *(peer.public_key, name, text, peer.tx_bytes, peer.rx_bytes, shaken),
            endpoint=place(peer.endpoint) or "",
            heard_s_ago=round(heard, 3) if 0 <= heard < math.inf else -1.0,
            last_handshake=peer.last_handshake,
        )
