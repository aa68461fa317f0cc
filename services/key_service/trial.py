"""Lets host-service try a change before the commit: port, mark, addresses and MTU; for an edited file also the routes.

1. the sockets: host-service answers once conn-service sends through them
2. the network, after the prefixes: host-service answers once all is set up, or says what it cannot set up
3. after a refusal: host-service restores the earlier settings, and key-service waits for that too; but a change that takes
   anything from a peer holds without the host's rules, and host-service goes on trying to set them

A host-service that does not answer in time gets all settings again after the commit.
"""

import errno
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from key_service.announce import Announcer
from key_service.hub import Hub
from key_service.prepared import Prepared
from stagewire.config import InterfaceConfig, PeerConfig
from stagewire.control import narrower
from stagewire.control.gateway import EVERY_PEER
from stagewire.control.messages import HostSettings, HostState, Listening
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto import prefix

WITHIN: Final = 2.0
"""s for host-service to answer."""
WHOLE_WITHIN: Final = 5.0
"""s for host-service to answer about an edited file."""
PREFIX_WITHIN: Final = 0.0001
"""s more for each prefix of an edited file."""

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""Work in pieces. While `Trial.until` is set, the next piece waits for an answer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Holds host-service's answer. `code` is an errno or 0, `reason` a line; `answered` is false if no answer came."""

    code: int = 0
    reason: str = ""
    answered: bool = True


class Trial:
    """Asks host-service to try changes, one question at a time."""

    def __init__(self, announcer: Announcer, hub: Hub, log: Log) -> None:
        self._announcer = announcer
        self._hub = hub
        self._log = log
        self.state: HostState | None = None
        """host-service's last HostState."""
        self.until: float | None = None
        """Deadline (s) of an awaited answer; None if no answer is awaited."""
        self._request = 0
        """Number of the last request, by which its answer is known."""
        self._answer: Listening | HostState | None = None
        self._asked: object = None
        """The host-service that was asked. A new host-service knows nothing of the request."""

    # --- what host-service says ------------------------------------------------------------------------------

    def on_answer(self, message: Listening | HostState) -> bool:
        """Takes a message of host-service. Returns whether it is the awaited answer."""
        if isinstance(message, HostState):
            self.state = message
        if not self.waits or message.request != self._request:
            return False
        self._answer, self.until = message, None
        return True

    @property
    def waits(self) -> bool:
        """Tells whether an answer is awaited."""
        return self.until is not None

    def give_up(self) -> None:
        """Stops waiting for an answer."""
        self.until = None

    # --- what host-service is asked --------------------------------------------------------------------------

    def concerns(self, prepared: Prepared, *, whole: bool) -> bool:
        """Tells whether host-service has a part in a change, and is up."""
        delta = prepared.delta
        asked = delta.listen_port or delta.fwmark or self._changes_network(prepared, whole=whole)
        return asked and self._hub.member("host") is not None

    def knows(self) -> bool:
        """Tells whether the host-service that was asked is still in place."""
        return self._hub.member("host") is self._asked

    def make(self, prepared: Prepared, *, whole: bool) -> Steps[Verdict]:
        """Lets host-service try a change. After a refusal, lets it restore the earlier settings."""
        announcer, delta, settings = self._announcer, prepared.delta, prepared.settings
        self._asked = self._hub.member("host")
        if delta.listen_port or delta.fwmark:
            self._request += 1
            self._hub.tell("host", 0, announcer.socket_settings(settings, self._request))
            said = yield from self._answer_within(WITHIN)
            if not isinstance(said, Listening):
                return self._unanswered()
            if said.code:
                reason = os.strerror(said.code)
                self._log.warning("port refused", port=settings.listen_port, reason=reason)
                return Verdict(said.code, f"port {settings.listen_port}: {reason}" if settings.listen_port else reason)
        if not self._changes_network(prepared, whole=whole):
            return Verdict()
        return (yield from self._try_network(prepared, whole=whole))

    def take_back(self, prepared: Prepared, *, whole: bool) -> Steps[bool]:
        """Lets host-service restore the settings in force. Returns whether it says that it did."""
        interface = self._announcer.registry.interface
        if prepared.delta.listen_port or prepared.delta.fwmark:
            self._hub.tell("host", 0, self._announcer.socket_settings(interface))
        if not self._changes_network(prepared, whole=whole):
            return True
        if whole:
            for message in self._announcer.prefixes_back(prepared):
                self._hub.tell("host", 0, message)
                yield
        said = yield from self._have(interface, self._announcer.registry.peers, WITHIN)
        return isinstance(said, HostState)

    def _try_network(self, prepared: Prepared, *, whole: bool) -> Steps[Verdict]:
        before = self.state
        if whole:
            for message in self._announcer.prefixes_tried(prepared):
                self._hub.tell("host", 0, message)
                yield
        within = WHOLE_WITHIN + PREFIX_WITHIN * len(prepared.owners) if whole else WITHIN
        said = yield from self._have(prepared.settings, prepared.peers, within)
        if not isinstance(said, HostState):
            return self._unanswered()
        reason = _refusal(said, before, whole=whole)
        rules_alone = self._rules_alone(prepared)
        if rules_alone and said.rules_unset:
            reason = reason or said.fault  # a change that widens the rules waits for them, however old the fault is
        if not reason:
            return Verdict()
        self._log.warning("host-service refuses a change", reason=reason)
        if rules_alone and said.fault and self._narrows(prepared):
            return Verdict(reason=f"in force, but not all of it on this host: {said.fault}")
        if not (yield from self.take_back(prepared, whole=whole)):
            reason += "; host-service does not confirm the earlier settings, see `stagewire status`"
        return Verdict(errno.EBUSY, reason)

    def _rules_alone(self, prepared: Prepared) -> bool:
        """Tells whether a change concerns the host's rules for packets of peers, or routes, and nothing else of the host."""
        now, wanted = self._host_settings(prepared)
        return replace(wanted, gateway=now.gateway) == now and not (prepared.delta.listen_port or prepared.delta.fwmark)

    def _host_settings(self, prepared: Prepared) -> tuple[HostSettings, HostSettings]:
        """Returns host-service's settings in force, and those of a change."""
        announcer, registry = self._announcer, self._announcer.registry
        return (
            announcer.host_settings(registry.interface, registry.peers),
            announcer.host_settings(prepared.settings, prepared.peers),
        )

    def _narrows(self, prepared: Prepared) -> bool:
        """Tells whether a change takes anything from a peer: then it must hold, whatever host-service can't set."""
        delta, registry = prepared.delta, self._announcer.registry
        now, wanted = (each.gateway for each in self._host_settings(prepared))
        if delta.gone or any(each.prefixes_removed for each in delta.peers.values()):
            return True
        if {*now.ports} - {*wanted.ports} or {*now.forwards} - {*wanted.forwards}:
            return True
        less = narrower.sources(now, wanted)
        return any(each == EVERY_PEER or registry.is_allowed(prefix.unpack_untrusted(each)) for each in less)

    def _unanswered(self) -> Verdict:
        reason = "host-service does not answer: it will make the change later, see `stagewire status`"
        self._log.warning("change made without host-service", reason=reason)
        return Verdict(reason=reason, answered=False)

    def _changes_network(self, prepared: Prepared, *, whole: bool) -> bool:
        announcer, delta = self._announcer, prepared.delta
        now, wanted = self._host_settings(prepared)
        if wanted != now:
            return True
        changes = (each.prefixes_added or each.prefixes_removed for each in delta.peers.values())
        return whole and announcer.managed and (bool(delta.prefixes_gone) or any(changes))

    def _have(
        self, settings: InterfaceConfig, peers: Mapping[bytes, PeerConfig], within: float
    ) -> Steps[Listening | HostState | None]:
        self._request += 1
        self._hub.tell("host", 0, self._announcer.host_settings(settings, peers, self._request))
        return (yield from self._answer_within(within))

    def _answer_within(self, within: float) -> Steps[Listening | HostState | None]:
        self._answer, self.until = None, boot_time() + within
        while self.waits:
            yield
        return self._answer


def _refusal(said: HostState, before: HostState | None, *, whole: bool) -> str:
    """Describes host-service's new faults; for an edited file, also the routes that other programs hold."""
    new = [said.fault] if said.fault and (before is None or said.fault != before.fault) else []
    if whole:
        known = before.warnings if before is not None else ()
        routes = [each for each in said.warnings if each.startswith("route ") and each not in known]
        new += [f"{each.partition(';')[0]}; remove that route, or the prefix from AllowedIPs" for each in routes]
    return "; ".join(new)
