"""Asks resolver-service for endpoints that are host names.

A question without an answer is repeated after 1, 2, 4 ... 30 s. A known host is asked for again when handshakes with its
peer have no answer, 5, 10 ... 30 s apart: the server may have moved.

All addresses of a host are a peer's candidates. A handshake without an answer is tried at the next candidate
(`Peer.try_elsewhere`). The endpoint of the peer's last packet is tried too, and precedes the candidates while it answers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from stagewire.config import HostPort
from stagewire.control.messages import Resolve, Resolved
from stagewire.logs import Log
from stagewire.proto.agenda import Agenda
from stagewire.proto.endpoint import same_place, unpack_untrusted
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer
from stagewire.reasons import Reasons

LOOK: Final = 1.0
"""s between two looks at the names in force."""
FIRST_PAUSE: Final = 1.0
FIRST_DOUBT: Final = 5.0
LONGEST_PAUSE: Final = 30.0
NO_ANSWER: Final = 4.0
"""s after an unanswered initiation: later initiations are retransmissions."""
LATE: Final = 2.0
"""s without an address, after which packets to a peer have been refused."""
MOST_CANDIDATES: Final = 16
MOST_ASKED: Final = 256
"""Questions without an answer at a time: fewer than the pipe to resolver-service holds."""


@dataclass(slots=True)
class _Host:
    """Keeps what is known of a host name. Times are in s on the boot-time clock."""

    wanted_since: float
    peers: set[bytes] = field(default_factory=set)
    """Peers with this host name."""
    waits: bool = True
    """Whether a question is planned or has no answer."""
    tried: float = -math.inf
    pause: float = FIRST_PAUSE
    doubt: float = FIRST_DOUBT
    places: tuple[bytes, ...] = ()
    error: str = ""


@dataclass(slots=True)
class Found:
    """Lists the peers with a new endpoint. `late`: packets to these peers have been refused."""

    peers: list[bytes] = field(default_factory=list)
    moved: list[bytes] = field(default_factory=list)
    """Peers of this list that had another endpoint before."""
    late: bool = False


class Names:
    """Keeps each peer's candidates up to date.

    `names` are the host names in force by public key, and may change. `avoid` returns the DNS servers in the tunnel.
    `label` names a peer for the log. `failures` counts look-ups without an answer.
    """

    def __init__(
        self,
        log: Log,
        ask: Callable[[Resolve], object],
        handshaker: Handshaker,
        names: dict[bytes, HostPort],
        avoid: Callable[[], tuple[str, ...]],
        label: Callable[[bytes], str],
        failures: Reasons,
    ) -> None:
        self._log = log
        self._ask = ask
        self._handshaker = handshaker
        self._names = names
        self._avoid = avoid
        self._label = label
        self._failures = failures
        self._hosts: dict[str, _Host] = {}
        self._agenda: Agenda[str] = Agenda()
        """When to ask for each host."""
        self._ready: dict[str, None] = {}
        """Hosts that are due, in the order of their questions."""
        self._asked: dict[str, float] = {}
        """Times (s) of questions without an answer, the oldest first."""
        self._seen: dict[bytes, HostPort] | None = None
        """The names at the last look."""
        self._renamed: set[bytes] = set()
        """Peers whose name is newer than their endpoint."""
        self._unanswered: dict[bytes, float] = {}
        """Time (s) of each peer's first initiation without an answer."""

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns the time (s) at which `act` is due."""
        return self._agenda.next_deadline()

    def look(self, now: float) -> None:
        """Takes up new names, repeats lost questions, and acts; to be called every LOOK, or rarely while nothing changes."""
        self._look(now)
        self.act(now)

    def act(self, now: float) -> None:
        """Asks for the hosts that are due."""
        self._ready.update(dict.fromkeys(name for name in self._agenda.due(now) if name in self._hosts))
        while self._ready and len(self._asked) < MOST_ASKED:
            name = next(iter(self._ready))
            del self._ready[name]
            self._hosts[name].tried = self._asked[name] = now
            self._ask(Resolve(name, self._avoid()))

    def _want(self, name: str, when: float) -> None:
        if name not in self._asked and name not in self._ready:
            self._hosts[name].waits = True
            self._agenda.enter(name, when)

    def start_anew(self, now: float) -> None:
        """Asks a new resolver-service for every host without an address or with an open question."""
        self._asked.clear()
        for name, host in self._hosts.items():
            if host.waits or not host.places:
                self._want(name, now)
        self.act(now)

    def _look(self, now: float) -> None:
        if self._names != self._seen:
            self._take_up(now)
        for name, asked in list(self._asked.items()):
            if now < asked + LONGEST_PAUSE:
                break
            del self._asked[name]  # the answer was lost
            self._want(name, now)
        for key, named in self._names.items():
            peer, host = self._handshaker.peers.get(key), self._hosts[named.host]
            if host.places and not host.waits and peer is not None and not peer.candidates:
                # The peer or its name is new: another answer will bring its candidates.
                self._want(named.host, now)

    def _take_up(self, now: float) -> None:
        """Compares the names in force with those of the last look."""
        if self._seen is not None:  # at the start, an endpoint may come from a session and be newer than the name
            fresh = {key for key, name in self._names.items() if self._seen.get(key) != name}
            for key in fresh & self._handshaker.peers.keys():
                self._handshaker.peers[key].candidates = ()
            self._renamed = fresh | (self._renamed & self._names.keys())
        for key in [key for key in self._unanswered if key not in self._names or key in self._renamed]:
            del self._unanswered[key]
        self._seen = dict(self._names)
        for host in self._hosts.values():
            host.peers.clear()
        for key, name in self._names.items():
            if name.host not in self._hosts:
                self._hosts[name.host] = _Host(now)
                self._want(name.host, now)
            self._hosts[name.host].peers.add(key)
        for gone in [name for name, host in self._hosts.items() if not host.peers]:
            del self._hosts[gone]
            self._agenda.forget(gone)
            self._ready.pop(gone, None)
            self._asked.pop(gone, None)

    # --- answers -------------------------------------------------------------------------------------------

    def on_resolved(self, message: Resolved, now: float) -> Found:
        """Takes resolver-service's answer. Returns the peers with a new endpoint."""
        host = self._hosts.get(message.host)
        found = Found()
        if host is None or self._asked.pop(message.host, None) is None:
            return found
        host.waits = False
        if message.error:
            if host.error != message.error:
                self._log.warning("endpoint not resolved", peer=self._listed(host), reason=message.error)
            host.error = message.error
            for public_key in host.peers:
                self._failures.note("name_not_resolved", peer=public_key)
            self._want(message.host, now + host.pause)
            host.pause = min(2 * host.pause, LONGEST_PAUSE)
        else:
            if host.error:
                self._log.info("endpoint resolved", peer=self._listed(host), host=message.host)
            found.late = not host.places and now >= host.wanted_since + LATE
            host.places, host.error, host.pause = message.places[:MOST_CANDIDATES], "", FIRST_PAUSE
            self._place_all(message.host, host, found)
        self.act(now)
        return found

    def _place_all(self, name: str, host: _Host, found: Found) -> None:
        for key in sorted(host.peers):
            peer, named = self._handshaker.peers.get(key), self._names.get(key)
            if peer is None or named is None or named.host != name:
                continue  # the peer's name has changed since the last look
            before = peer.endpoint
            if self._place(peer, named.port, host):
                found.peers.append(key)
                found.moved += [key] if before else []

    def _place(self, peer: Peer, port: int, host: _Host) -> bool:
        """Gives a peer its candidates. Returns whether the peer has a new endpoint."""
        peer.candidates = tuple(unpack_untrusted(each)._replace(port=port).pack() for each in host.places)
        renamed = peer.public_key in self._renamed
        self._renamed.discard(peer.public_key)
        if peer.endpoint is not None:
            if not renamed and peer.public_key not in self._unanswered:
                return False
            if any(same_place(each, peer.endpoint) for each in peer.candidates):
                return False
        peer.endpoint = peer.candidates[0]
        return True

    def unresolved(self, public_key: bytes) -> str:
        """Returns why a peer's host name has no address; empty if there is an address, or no name."""
        name = self._names.get(public_key)
        host = self._hosts.get(name.host) if name is not None else None
        if name is None or (host is not None and host.places):
            return ""
        if host is None or not host.error:
            peer = self._handshaker.peers.get(public_key)
            return "" if peer is not None and peer.endpoint is not None else f"{name.host}: no answer yet"
        return host.error

    # --- handshakes ----------------------------------------------------------------------------------------

    def initiation_sent(self, public_key: bytes, now: float) -> None:
        """Asks for a peer's host again if the peer has not answered the last initiation."""
        if public_key in self._names and now >= self._unanswered.setdefault(public_key, now) + NO_ANSWER:
            self.doubt(public_key, now)

    def doubt(self, public_key: bytes, now: float) -> None:
        """Asks for a peer's host again, unless the last question is recent."""
        name = self._names.get(public_key)
        host = self._hosts.get(name.host) if name is not None else None
        if name is None or host is None or host.waits or now < host.tried + host.doubt:
            return
        host.doubt = min(2 * host.doubt, LONGEST_PAUSE)
        self._want(name.host, now)
        self.act(now)

    def answered(self, public_key: bytes) -> None:
        """Notes that a handshake is complete."""
        if self._unanswered.pop(public_key, None) is not None and (name := self._names.get(public_key)) is not None:
            host = self._hosts.get(name.host)
            if host is not None:
                host.doubt = FIRST_DOUBT

    def _listed(self, host: _Host) -> str:
        """Names the first three peers of a host, for the log."""
        return ", ".join(map(self._label, islice(sorted(host.peers), 3)))
