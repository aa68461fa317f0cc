"""Takes peers out of force whose time (`# stagewire: Expires = …`) is over, and warns a day before."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from key_service.live import LiveConfiguration
from stagewire.config import PeerConfig, encode_key, peer_names, uapi, values
from stagewire.logs import Log

LOOK_INTERVAL: Final = 0.5
"""s between two looks at the wall clock, which may jump."""
MAX_WAIT: Final = 30.0
"""s between two attempts that are refused; at first LOOK_INTERVAL."""
WARN_BEFORE: Final = 86_400
"""s before a peer's time is over in which the operator hears of it once."""


class Expiry:
    """Looks for peers whose time is over, or nearly so.

    Calls `on_expired` with a line for each that is over, and `tell` with the kind of event and its peers.
    """

    def __init__(
        self,
        live: LiveConfiguration,
        log: Log,
        on_expired: Callable[[list[str]], None],
        tell: Callable[[str, list[PeerConfig]], None],
    ) -> None:
        self._live = live
        self._log = log
        self._on_expired = on_expired
        self._tell = tell
        self._known = -1
        """The registry's count of changes at the last look."""
        self._soonest: int | None = None
        """The next time at which a peer needs a warning, or must go."""
        self._warned: dict[bytes, int] = {}
        """The time of each peer that the operator was warned of."""
        self._said: dict[bytes, int] = {}
        """The time of each peer whose end was told."""
        self._under_way = False
        self._not_before, self._wait = 0.0, LOOK_INTERVAL
        """When to try again after a refusal, and the s that the next refusal adds."""
        self.look_by: Callable[[float], None] = lambda _when: None
        """Has the next look come at a time (s) at the latest; an idle loop looks rarely."""

    def look(self, at: float) -> None:
        """Removes the peers whose time is over, and warns of those whose time is nearly over."""
        registry = self._live.registry
        peers = registry.peers
        if registry.commits != self._known:
            self._known = registry.commits
            self._warned = {key: at for key, at in self._warned.items() if key in peers and peers[key].expires == at}
            self._soonest = min(
                (self._due(key, peer.expires) for key, peer in peers.items() if peer.expires is not None), default=None
            )
        now = time.time()
        if self._soonest is not None:
            self.look_by(at + max(LOOK_INTERVAL, self._soonest - now))
        if self._soonest is None or self._soonest > now or self._under_way or at < self._not_before:
            return
        self._known = -1  # each peer found below has another time to wait for, or goes
        over = [peer for peer in peers.values() if peer.expires is not None and peer.expires <= now]
        self._warn(
            [
                peer
                for key, peer in peers.items()
                if peer.expires is not None and self._due(key, peer.expires) <= now < peer.expires
            ]
        )
        if over:
            self._remove(over, at)

    def _due(self, key: bytes, expires: int) -> int:
        """Returns when a peer needs a warning, or must go."""
        return expires if self._warned.get(key) == expires else expires - WARN_BEFORE

    def _warn(self, soon: list[PeerConfig]) -> None:
        for peer in soon:
            self._warned[peer.public_key] = peer.expires or 0
            label = peer_names.label(encode_key(peer.public_key), peer.name)
            self._log.warning("peer expires within a day", peer=label, at=values.as_time(peer.expires or 0))
        if soon:
            self._tell("expires_soon", soon)

    def _remove(self, over: list[PeerConfig], at: float) -> None:
        news = [peer for peer in over if self._said.get(peer.public_key) != peer.expires]
        labels = [peer_names.label(encode_key(peer.public_key), peer.name) for peer in news]
        for label in labels:
            self._log.info("peer expired", peer=label)
        if news:
            self._on_expired([f"~ peer {label} expired" for label in labels])
            self._tell("expired", news)
        self._said = {peer.public_key: peer.expires or 0 for peer in over}
        self._under_way = True
        gone = tuple(uapi.PeerChange(peer.public_key, 0, remove=True) for peer in over)
        self._live.change(uapi.Change(peers=gone), partial(self._done, at))

    def _done(self, at: float, code: int) -> None:
        self._under_way = False
        self._wait = min(2 * self._wait, MAX_WAIT) if code else LOOK_INTERVAL
        if code:
            self._not_before = at + self._wait
            self._known = -1  # tries again
