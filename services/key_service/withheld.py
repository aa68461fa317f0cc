"""Knows the peers whose packets the workers hold back, because the host could not set narrower rules for them.

host-service names their prefixes (`control/narrower.py`). A worker drops all that such a peer sends or gets until
host-service has set the rules.
"""

from collections.abc import Callable, Iterable, Iterator

from key_service.registry import Registry
from stagewire.control.event import Event
from stagewire.control.gateway import EVERY_PEER
from stagewire.control.messages import HostState
from stagewire.logs import Log
from stagewire.proto import prefix


class Withheld:
    """Follows what host-service says. `tell` sends peers' settings to their home workers again."""

    def __init__(self, registry: Registry, log: Log) -> None:
        self._registry = registry
        self._log = log
        self.keys: frozenset[bytes] = frozenset()
        """Public keys of the peers that are held back."""
        self._unheld: tuple[bytes, ...] = ()
        self._refused = False
        self.tell: Callable[[Iterable[bytes]], None] = lambda _keys: None
        self.happened: Callable[[Event], None] = lambda _event: None

    def take(self, state: HostState) -> None:
        """Takes host-service's word. Tells of a refusal once, and of its end."""
        if state.rules_unset != self._refused:
            self._refused = state.rules_unset
            reason = state.fault if state.rules_unset else ""
            self.happened(Event("rules_refused" if state.rules_unset else "rules_set", reason=reason))
        if state.unheld != self._unheld:
            self._unheld = state.unheld
            self.look()

    def look(self) -> None:
        """Finds the peers anew: host-service or a change of the configuration has said something else."""
        if not self._unheld and not self.keys:
            return
        before, self.keys = self.keys, frozenset(self._owners())
        if changed := [key for key in before ^ self.keys if key in self._registry.peers]:
            for key in changed:
                held = "held back: the host's rules for it are not set" if key in self.keys else "held back no more"
                self._log.warning(f"peer is {held}", peer=self._registry.label(key))
            self.tell(changed)

    def _owners(self) -> Iterator[bytes]:
        registry = self._registry
        if EVERY_PEER in self._unheld:
            common = registry.interface.isolation or any(not each.group for each in registry.interface.access.allow)
            for key, peer in registry.peers.items():
                if common or peer.access.groups or peer.access.allow:
                    yield key
            return
        for packed in self._unheld:
            if (owner := registry.holder_of(prefix.unpack_untrusted(packed))) is not None:
                yield owner
