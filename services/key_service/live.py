"""Changes the configuration in force, one change after another, each completely or not at all.

1. work the change out on copies (`registry`)
2. let host-service try its part (`trial`): a refusal ends the change
3. store the change in the run folder, for the next key-service: a big change in pieces, with handshakes in between
4. commit; tell the Handshaker and every stage the difference
5. take keys that are no longer in force out of the run folder: only then the change is answered
6. answer once every stage applies it (`answers`); the next change may begin before
"""

import errno
import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from key_service import uapi_state
from key_service.announce import Announcer, batches
from key_service.answers import Answers
from key_service.delta import Delta
from key_service.hub import Hub
from key_service.journal import Journal, operation
from key_service.known_peers import KnownPeers
from key_service.prepared import Prepared
from key_service.registry import Concerned, Registry
from key_service.snapshots import Snapshots
from key_service.timestamps import TimestampStore
from key_service.trial import Trial, Verdict
from key_service.withheld import Withheld
from stagewire.config import uapi
from stagewire.control.messages import (
    PEER_BATCH,
    ConnSettings,
    EndpointFound,
    HostSettings,
    HostState,
    LinkState,
    Listening,
    SendingExpired,
    SendStaged,
    SocketSettings,
)
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto.handshaker import Handshaker

BUDGET: Final = 0.01
"""s of a turn that a change may take, beside its last piece: then handshakes have their turn."""
Done = Callable[[int], None]
"""Gets 0, or the errno of a refused change."""


@dataclass(frozen=True, slots=True)
class Task:
    """Describes a wanted change. `remember` stores the change in pieces before the commit, and may raise OSError.

    `whole`: the change is refused if it cannot be stored, or if host-service cannot set one of its routes. `said` gets
    host-service's refusal or silence in a line, before `done` is called. `made` is called with the commit, `done` once all
    stages apply the change: other changes may lie between.
    """

    work_out: Callable[[Prepared], Iterator[None]]
    remember: Callable[[], Iterator[None]]
    done: Done
    whole: bool = False
    said: Callable[[str], None] = lambda _line: None
    made: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Settings:
    """Holds what conn-service, host-service (its sockets, its network) and workers are told besides peers."""

    conn: ConnSettings
    sockets: SocketSettings
    network: HostSettings
    rekey: float
    """s"""


class LiveConfiguration:
    """Holds and changes the configuration of a running interface."""

    def __init__(
        self,
        announcer: Announcer,
        hub: Hub,
        snapshots: Snapshots,
        answers: Answers,
        timestamps: TimestampStore,
        store: Path,
        log: Log,
        *,
        on_prefixes: Callable[[], None] = lambda: None,
        on_key_dropped: Callable[[float], None] = lambda _now: None,
        show_private_key: bool = True,
    ) -> None:
        """Opens the journal at `store`.

        Calls `on_prefixes` after allowed-IPs change, before any stage is told, and `on_key_dropped` after keys are no longer
        in force: once they are stored nowhere, and again with the answer.
        """
        self._announcer = announcer
        self._hub = hub
        self._snapshots = snapshots
        self._answers = answers
        self._on_prefixes = on_prefixes
        self._on_key_dropped = on_key_dropped
        self.registry: Registry = announcer.registry
        self._handshaker: Handshaker = announcer.handshaker
        self.known_peers = KnownPeers(announcer, timestamps)
        self._journal = Journal(store)
        self._log = log
        self._show_private_key = show_private_key
        self.trial = Trial(announcer, hub, log)
        self.withheld = announcer.withheld = Withheld(self.registry, log)
        self._queue: deque[Task] = deque()
        self._work: Iterator[None] | None = None
        """The change under way."""
        self._ready = False
        """Whether that change is ready for its commit."""
        self._tidying: Iterator[None] | None = None
        """The journal's rewrite, which waits for changes."""
        self.link_up: bool | None = None
        """Whether the link is up; None while unknown."""
        self.port = 0
        """The open UDP port; 0 for none."""
        self.forget: Callable[[set[bytes]], None] = lambda _secrets: None
        """Takes keys that are no longer in force out of the accepted text."""

    # --- at start ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Adds the registry's peers to the Handshaker."""
        for peer in self.registry.peers.values():
            self.known_peers.add(peer)
        self._tidy()

    # --- changes -------------------------------------------------------------------------------------------

    def change(self, change: uapi.Change, done: Done, told: Callable[[list[str]], None] = lambda _lines: None) -> None:
        """Makes a change of the `wg` socket, now or after earlier changes. `told` gets a line for each difference."""
        before: list[Concerned] = []

        def work_out(prepared: Prepared) -> Iterator[None]:
            before.append(self.registry.concerned(change))
            return prepared.work_out(change)

        def made() -> None:
            told(self.registry.differs_from(before.pop()))  # it holds keys, which must not outlive the change

        self.make(Task(work_out, lambda: self._journal.append(operation(change)), done, made=made))

    def make(self, task: Task) -> None:
        """Makes a change of any kind, now or after earlier changes."""
        if self._work is not None:
            self._queue.append(task)
            return
        self._begin(self._steps(task))

    def begin_journal(self, store: Path, *, with_all: bool = False) -> None:
        """Stores later changes in another file. `with_all`: also stores the whole configuration in force there."""
        self._tidying = None
        self._journal.close()
        self._journal = Journal(store)
        if with_all:
            self._tidying = self._rewrite()

    def _steps(self, task: Task) -> Iterator[None]:
        prepared = self.registry.begin()
        yield from task.work_out(prepared)
        verdict = None
        if self.trial.concerns(prepared, whole=task.whole):
            verdict = yield from self.trial.make(prepared, whole=task.whole)
            if verdict.reason:
                task.said(verdict.reason)
            if verdict.code:
                self._hold_back()
                task.done(verdict.code)
                return
        yield from self._make(prepared, task, verdict)

    def tell_conn(self) -> None:
        """Sends conn-service its settings again."""
        self._hub.tell("conn", 0, self._announcer.conn_settings())

    def tell_workers(self) -> None:
        """Sends every worker its settings again."""
        for worker in self._hub.numbers("device"):
            self._hub.tell("device", worker, self._announcer.worker_settings())

    def on_listening(self, message: Listening) -> None:
        """Takes host-service's answer about the UDP port."""
        if message.port:
            self.port = message.port
        self._on_answer(message)

    def on_host_state(self, message: HostState) -> None:
        """Takes host-service's answer about the network, or its news of the host."""
        self._announcer.host_mark = message.mark
        if not self.trial.waits:
            self.withheld.take(message)
        self._on_answer(message)

    def on_link_state(self, message: LinkState) -> None:
        """Takes the link's state, which other programs may set. The MTU bounds the padding."""
        self.link_up = message.up
        if message.mtu != self._announcer.mtu:
            self._announcer.mtu = message.mtu
            self.tell_workers()

    def _on_answer(self, message: Listening | HostState) -> None:
        if self.trial.on_answer(message):
            self._go_on()

    def next_deadline(self) -> float | None:
        """Returns the deadline of host-service's answer, or of a snapshot's next piece; 0 while there is work to do."""
        if self._tidying is not None or (self._work is not None and not self._waits):
            return 0.0
        return self._snapshots.next_deadline() if self._ready else self.trial.until

    def act(self, now: float) -> None:
        """Continues a change or the journal's rewrite. Stops waiting for a silent host-service."""
        until = self.trial.until
        if until is not None and until <= now:
            self.trial.give_up()
            self._go_on()
        elif self._work is not None and not self._waits:
            self._go_on()
        elif self._tidying is not None:
            self._tidying = self._some_of(self._tidying)

    @property
    def _waits(self) -> bool:
        """Tells whether the change under way waits: for host-service, or before its commit for the end of all snapshots."""
        return self.trial.waits or (self._ready and self._snapshots.next_deadline() is not None)

    def _next(self) -> None:
        while self._queue and self._work is None:
            self.make(self._queue.popleft())

    def _begin(self, work: Iterator[None]) -> None:
        self._work = work
        self._go_on()

    def _go_on(self) -> None:
        assert self._work is not None  # noqa: S101 - every caller checks it
        self._work = self._some_of(self._work)
        if self._work is None:
            self._tidy()
            self._next()

    def _tidy(self) -> None:
        if self._journal.overgrown and self._tidying is None:
            self._tidying = self._rewrite()

    def _some_of(self, work: Iterator[None]) -> Iterator[None] | None:
        """Works for about BUDGET. Returns the rest of the work; None if all is done."""
        until = boot_time() + BUDGET
        for _ in work:
            if self._waits or boot_time() >= until:
                return work
        return None

    def _make(self, prepared: Prepared, task: Task, verdict: Verdict | None) -> Iterator[None]:
        """Stores a change, then commits it and tells the stages. Until the commit, readers see the old configuration."""
        try:
            yield from task.remember()
        except OSError as error:
            self._log.error("cannot store a change", reason=str(error))
            if task.whole:
                if verdict is not None:
                    yield from self.trial.take_back(prepared, whole=True)
                    self._hold_back()
                task.done(error.errno or errno.EIO)
                return
        self._ready = True
        while self._waits:
            yield
        self._ready = False
        before = self._settings()
        # A new host-service has got a snapshot without this change.
        tried = verdict is not None and verdict.answered and self.trial.knows()
        lost = self.registry.lost_by(prepared)
        delta = self.registry.commit(prepared)
        if delta.gone or any(peer.prefixes_added or peer.prefixes_removed for peer in delta.peers.values()):
            self._on_prefixes()
        self.known_peers.apply(delta)
        self._hold_back()
        # A stage that says hello in between gets a whole snapshot; repeated messages change nothing.
        for _ in self._tell(delta, host=not (tried and task.whole)):
            yield
        self._tell_settings(before, host=not tried, again=verdict is not None)
        self._log.info(
            "configuration changed", peers=len(self.registry.peers), changed=len(delta.peers), gone=len(delta.gone)
        )
        # A change leaves no cycles, and a search of all prefixes for cycles would delay handshakes.
        gc.freeze()
        task.made()
        if lost:
            yield from self._forget(lost, journal=not task.whole)
            self._on_key_dropped(boot_time())
        self._answers.hold(
            partial(self._answer, task.done, bool(lost)),
            sum(_prefixes(delta)),
            host=not tried and self._announcer.managed,
        )

    def _hold_back(self) -> None:
        """Holds the peers back whose narrower rules host-service could not set in the last trial."""
        if self.trial.state is not None:
            self.withheld.take(self.trial.state)
        self.withheld.look()

    def _answer(self, done: Done, key_dropped: bool) -> None:
        done(0)
        if key_dropped:  # the change itself may have held it until now
            self._on_key_dropped(boot_time())

    def _settings(self) -> _Settings:
        announcer, interface = self._announcer, self.registry.interface
        return _Settings(
            announcer.conn_settings(),
            announcer.socket_settings(interface),
            announcer.host_settings(interface, self.registry.peers),
            interface.rekey_after_time,
        )

    def _tell_settings(self, before: _Settings, *, host: bool, again: bool) -> None:
        """Tells each stage its settings that have changed, but host-service only if `host`. `again`: all of its own."""
        now = self._settings()
        if host and (again or now.sockets != before.sockets):
            self._hub.tell("host", 0, now.sockets)
        if host and (again or now.network != before.network):
            self._hub.tell("host", 0, now.network)
        if now.conn != before.conn:
            self._hub.tell("conn", 0, now.conn)
        if now.rekey != before.rekey:
            self.tell_workers()

    def _rewrite(self) -> Iterator[None]:
        try:
            yield from self._journal.rewrite(self.as_operation())
        except OSError as error:
            self._log.error("cannot rewrite the journal", reason=str(error))

    def _forget(self, secrets: set[bytes], *, journal: bool) -> Iterator[None]:
        """Takes keys that are no longer in force out of what is stored. `journal`: also out of the journal's records."""
        if journal:
            self._journal.has_dead_keys = True
            self._tidying = None  # a rewrite that began before may have written them
            yield from self._rewrite()
        self.registry.forget(secrets)
        self.forget(secrets)

    def _tell(self, delta: Delta, *, host: bool) -> Iterator[None]:
        hub = self._hub
        if delta.private_key:
            hub.tell("conn", 0, self._announcer.conn_settings())
        for stage, numbers in (("device", hub.numbers("device")), ("tun", [0]), ("host", [0] if host else [])):
            for number in numbers:
                if stage == "device" and delta.private_key:
                    hub.tell(stage, number, SendingExpired())
                for message in self._announcer.changes(stage, number, delta):
                    hub.tell(stage, number, message)
                    yield
        mentioned: dict[int, list[bytes]] = {}
        for key, changed in delta.peers.items():
            if changed.added:
                continue  # the worker has just got this peer, and holds no packets for it
            for home in self._announcer.moves.homes(key):
                if changed.endpoint is not None:
                    at = self._handshaker.peers[key].endpoint_set_at
                    hub.tell("device", home, EndpointFound(key, changed.endpoint.pack(), at))
                if changed.mentioned:
                    mentioned.setdefault(home, []).append(key)
        for home, keys in mentioned.items():
            for batch in batches(keys, PEER_BATCH):
                hub.tell("device", home, SendStaged(batch))

    # --- what is in force ----------------------------------------------------------------------------------

    def state(self, *, whole: bool = False) -> uapi.InterfaceState:
        """Returns the state that `wg show` prints. `whole`: always with the private key."""
        return uapi_state.state(
            self.registry, self._handshaker, self.port, with_private_key=whole or self._show_private_key
        )

    def as_operation(self) -> Iterator[bytes]:
        """Yields the configuration in force as one operation upon the accepted text. Omits host names."""
        return uapi_state.as_operation(self.state(whole=True), self.registry, self.known_peers.names)


def _prefixes(delta: Delta) -> Iterator[int]:
    """Yields numbers of changed prefixes."""
    yield len(delta.prefixes_gone)
    for peer in delta.peers.values():
        yield len(peer.prefixes_added) + len(peer.prefixes_removed)
