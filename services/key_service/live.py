"""Changing the configuration in force: whole or not at all, one change after another.

1. work the change out on copies (`registry`)
2. a new port or mark: conn-service tries it, and keeps the old one if it can't be had
3. write it into the journal in the run folder, so that a restart of key-service forgets nothing; a big one in pieces,
   between which handshakes are answered
4. commit; tell the Handshaker and every stage what it comes to
"""

import gc
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import starmap
from pathlib import Path
from typing import Final

from key_service.announce import Announcer, batches
from key_service.hub import Hub
from key_service.journal import Journal, operation
from key_service.registry import Delta, Prepared, Registry
from key_service.timestamps import TimestampStore
from stagewire.config import HostPort, PeerConfig
from stagewire.ipc.control import PEER_BATCH, EndpointFound, Listening, SendingExpired, SendStaged
from stagewire.ipc.loop import boot_time
from stagewire.logs import Log
from stagewire.proto import uapi
from stagewire.proto.endpoint import Endpoint, same_place, unpack_untrusted
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer

LISTENING_WITHIN: Final = 2.0
"""s for conn-service to say whether a port can be had."""
BUDGET: Final = 0.01
"""s of one turn that a change may take, and its piece that is begun; then handshakes get theirs."""
Done = Callable[[int], None]
"""Told 0, or the errno for which nothing was changed."""


class LiveConfiguration:
    """The configuration of one interface while it runs."""

    def __init__(
        self,
        announcer: Announcer,
        timestamps: TimestampStore,
        store: Path,
        log: Log,
        *,
        show_private_key: bool = True,
    ) -> None:
        self._announcer = announcer
        self.registry: Registry = announcer.registry
        self._handshaker: Handshaker = announcer.handshaker
        self._timestamps = timestamps
        self._journal = Journal(store)
        self._log = log
        self._show_private_key = show_private_key
        self._waiting: tuple[Prepared, uapi.Change, Done, float] | None = None
        self._request = 0
        """Of conn-service, the last; it answers others too, which a change must not take for its own answer."""
        self._queue: deque[tuple[uapi.Change, Done]] = deque()
        self._work: Iterator[None] | None = None
        """The change that is being made, when no answer is waited for."""
        self._tidying: Iterator[None] | None = None
        """The journal's rewrite, when there is nothing better to do."""
        self.names: dict[bytes, HostPort] = {}
        """Endpoints that are host names, to be looked up."""
        self.port = 0
        """The UDP port that is open; 0 while none is."""
        self.hub: Hub

    # --- at start ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Makes known to the Handshaker what the registry holds."""
        for peer in self.registry.peers.values():
            self._add(peer)

    # --- changes -------------------------------------------------------------------------------------------

    def change(self, change: uapi.Change, done: Done) -> None:
        """Makes a change, now or when the one before it is made."""
        if self._waiting is not None or self._work is not None:
            self._queue.append((change, done))
            return
        self._begin(self._steps(change, done))

    def _steps(self, change: uapi.Change, done: Done) -> Iterator[None]:
        prepared = Prepared(self.registry)
        yield from prepared.work_out(change)
        if (prepared.delta.listen_port or prepared.delta.fwmark) and self.hub.member("conn") is not None:
            self._waiting = (prepared, change, done, boot_time() + LISTENING_WITHIN)
            self._try_sockets(prepared)
            return
        yield from self._make(prepared, change, done)

    def _try_sockets(self, prepared: Prepared) -> None:
        self._request += 1
        wanted = self._announcer.conn_settings(prepared.settings)
        self.hub.tell("conn", 0, replace(wanted, request=self._request))

    def tell_conn(self) -> None:
        """conn-service needs its settings again; those that it is just trying aren't taken back by it."""
        settings = self._waiting[0].settings if self._waiting is not None else self.registry.interface
        self.hub.tell("conn", 0, self._announcer.conn_settings(settings))

    def on_listening(self, message: Listening) -> None:
        """conn-service has opened its sockets, or couldn't."""
        if message.port:
            self.port = message.port
        if self._waiting is not None and message.request == self._request:
            prepared, change, done, _ = self._waiting
            self._waiting = None
            if message.code:
                self._log.warning("port refused", port=prepared.settings.listen_port, reason=os.strerror(message.code))
                done(message.code)
                self._next()
            else:
                self._begin(self._make(prepared, change, done))

    def next_deadline(self) -> float | None:
        """When to wait no longer for conn-service; at once while there is something to write."""
        if self._work is not None or self._tidying is not None:
            return 0.0
        return self._waiting[3] if self._waiting else None

    def act(self, now: float) -> None:
        """Goes on with what is being made. If conn-service said nothing: it is away, and is told all when it is back."""
        if self._waiting is not None and self._waiting[3] <= now:
            prepared, change, done, _ = self._waiting
            self._waiting = None
            # If it came back meanwhile, what it was told then is old by now.
            self._begin(self._make(prepared, change, done, tell_conn=True))
        elif self._work is not None:
            self._go_on()
        elif self._tidying is not None:
            self._tidying = self._some_of(self._tidying)

    def _next(self) -> None:
        while self._queue and self._waiting is None and self._work is None:
            self.change(*self._queue.popleft())

    def _begin(self, work: Iterator[None]) -> None:
        self._work = work
        self._go_on()

    def _go_on(self) -> None:
        assert self._work is not None  # noqa: S101 - whoever calls has seen it
        self._work = self._some_of(self._work)
        if self._work is None:
            if self._journal.overgrown and self._tidying is None:
                self._tidying = self._rewrite()
            self._next()

    @staticmethod
    def _some_of(work: Iterator[None]) -> Iterator[None] | None:
        """A turn's worth of it; what is left."""
        until = boot_time() + BUDGET
        for _ in work:
            if boot_time() >= until:
                return work
        return None

    def _make(self, prepared: Prepared, change: uapi.Change, done: Done, *, tell_conn: bool = False) -> Iterator[None]:
        """First it is written, so that what holds is remembered; whoever reads meanwhile sees what holds still."""
        try:
            yield from self._journal.append(operation(change))
        except OSError as error:
            self._log.error("change not remembered", reason=str(error))
        mark = self._announcer.mark(self.registry.interface)
        delta = self.registry.commit(prepared)
        self._apply_to_handshakes(delta)
        # A stage that says hello meanwhile is sent all of it; what it hears again then changes nothing.
        for _ in self._tell(delta):
            yield
        if tell_conn or mark != self._announcer.mark(self.registry.interface):
            # The first default route came, or the last one went.
            self.hub.tell("conn", 0, self._announcer.conn_settings(self.registry.interface))
        if mark != self._announcer.mark(self.registry.interface):
            self.hub.tell("tun", 0, self._announcer.tun_settings())
        self._log.info(
            "configuration changed", peers=len(self.registry.peers), changed=len(delta.peers), gone=len(delta.gone)
        )
        # What a change leaves has no cycles; to look for some among 130,000 prefixes would take 100 ms each time.
        gc.freeze()
        done(0)

    def _rewrite(self) -> Iterator[None]:
        try:
            yield from self._journal.rewrite(self._as_operation())
        except OSError as error:
            self._log.error("changes not rewritten", reason=str(error))

    def _apply_to_handshakes(self, delta: Delta) -> None:
        for key in delta.gone:
            self._handshaker.remove_peer(key)
            self._announcer.moves.forget(key)
            self.names.pop(key, None)
        if delta.private_key:
            private_key = self.registry.interface.private_key
            identity = Identity.from_private_bytes(private_key) if private_key else None
            own = self._timestamps.latest(identity.public_key, "own") if identity else bytes(12)
            self._handshaker.set_identity(identity, own)
        for key, changed in delta.peers.items():
            peer = self.registry.peers[key]
            if changed.added:
                self._add(peer)
            self._handshaker.peers[key].preshared_key = peer.preshared_key
            if changed.endpoint is not None:
                self.names.pop(key, None)
                known, packed = self._handshaker.peers[key], changed.endpoint.pack()
                if known.endpoint is not None and same_place(known.endpoint, packed):
                    changed.endpoint = None  # said again by a syncconf: nothing to tell, and our source stays
                else:
                    known.endpoint = packed

    def _add(self, peer: PeerConfig) -> None:
        home = self._announcer.moves.home(peer.public_key)
        known = self._handshaker.add_peer(peer.public_key, peer.preshared_key, home, stamped=peer.response_timestamp)
        known.latest_initiation = self._timestamps.latest(peer.public_key, "initiation")
        known.latest_response = self._timestamps.latest(peer.public_key, "response")
        if peer.endpoint is not None:
            try:
                host, _, scope = peer.endpoint.host.partition("%")
                known.endpoint = Endpoint(ip_address(host).packed, peer.endpoint.port, int(scope or 0)).pack()
            except ValueError:
                self.names[peer.public_key] = peer.endpoint

    def _tell(self, delta: Delta) -> Iterator[None]:
        hub = self.hub
        if delta.private_key:
            hub.tell("conn", 0, self._announcer.conn_settings(self.registry.interface))
        for stage, numbers in (("device", hub.numbers("device")), ("tun", [0])):
            for number in numbers:
                if stage == "device" and delta.private_key:
                    hub.tell(stage, number, SendingExpired())
                for message in self._announcer.changes(stage, number, delta):
                    hub.tell(stage, number, message)
                    yield
        mentioned: dict[int, list[bytes]] = {}
        for key, changed in delta.peers.items():
            if changed.added:
                continue  # its worker has been told all of it just now, and nothing waits for it yet
            for home in self._announcer.moves.homes(key):
                if changed.endpoint is not None:
                    hub.tell("device", home, EndpointFound(key, changed.endpoint.pack()))
                if changed.mentioned:
                    mentioned.setdefault(home, []).append(key)
        for home, keys in mentioned.items():
            for batch in batches(keys, PEER_BATCH):
                hub.tell("device", home, SendStaged(batch))

    # --- what is in force ----------------------------------------------------------------------------------

    def state(self, *, whole: bool = False) -> uapi.InterfaceState:
        """As `wg show` sees it; `whole` with the private key whatever the setting."""
        interface = self.registry.interface
        # Whoever reads slowly gets it as it is now, also of peers that go meanwhile.
        peers = [(peer, self._handshaker.peers[key]) for key, peer in self.registry.peers.items()]
        return uapi.InterfaceState(
            private_key=interface.private_key if whole or self._show_private_key else None,
            listen_port=self.port or interface.listen_port or 0,
            fwmark=interface.fwmark,
            peers=starmap(_peer_state, peers),
        )

    def _as_operation(self) -> Iterator[bytes]:
        """What is in force when this begins, as a set upon the configuration file. A host name stays the file's word."""
        skipped = (b"last_handshake", b"tx_bytes", b"rx_bytes", b"errno")
        answer, names = uapi.get_reply(self.state(whole=True)), set(self.names)
        gone = self.registry.from_file - self.registry.peers.keys()
        no_key = self.registry.interface.private_key is None
        return _without(answer, skipped, names, b"private_key=%s\n" % (b"0" * 64) if no_key else b"", gone)


def _without(
    answer: Iterator[bytes], skipped: tuple[bytes, ...], names: Container[bytes], first: bytes, gone: Iterable[bytes]
) -> Iterator[bytes]:
    named, rest = False, b""
    yield b"set=1\n" + first
    for chunk in answer:
        *lines, rest = (rest + chunk).split(b"\n")
        kept: list[bytes] = []
        for line in lines:
            key, _, value = line.partition(b"=")
            if key == b"public_key":
                named = bytes.fromhex(value.decode()) in names
            if line and not key.startswith(skipped) and not (named and key == b"endpoint"):
                kept.append(line)
            if key == b"persistent_keepalive_interval":
                kept.append(b"replace_allowed_ips=true")
        yield b"".join(line + b"\n" for line in kept)
    yield b"".join(b"public_key=%s\nremove=true\n" % key.hex().encode() for key in gone) + b"\n"


def _peer_state(peer: PeerConfig, known: Peer) -> uapi.PeerState:
    return uapi.PeerState(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key,
        endpoint=unpack_untrusted(known.endpoint) if known.endpoint else None,
        last_handshake_unix_ns=known.last_handshake_unix_ns,
        tx_bytes=known.tx_bytes,
        rx_bytes=known.rx_bytes,
        persistent_keepalive=peer.persistent_keepalive,
        allowed_ips=peer.allowed_ips,
    )
