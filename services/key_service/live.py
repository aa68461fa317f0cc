"""Changing the configuration in force: whole or not at all, one change after another.

1. work the change out on copies (`registry`)
2. a new port or mark: conn-service tries it, and keeps the old one if it can't be had
3. commit; tell the Handshaker and every stage what it comes to
4. remember it in the run folder, so that a restart of key-service forgets nothing
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import starmap
from pathlib import Path
from typing import Final

import structlog

from key_service.announce import Announcer, batches
from key_service.hub import Hub
from key_service.registry import Delta, Prepared, Registry
from key_service.timestamps import TimestampStore
from stagewire.config import HostPort, PeerConfig
from stagewire.ipc.control import PEER_BATCH, EndpointFound, Listening, SendingExpired, SendStaged
from stagewire.ipc.loop import boot_time
from stagewire.proto import uapi
from stagewire.proto.endpoint import Endpoint, same_place, unpack_untrusted
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer

LISTENING_WITHIN: Final = 2.0
"""s for conn-service to say whether a port can be had."""
Done = Callable[[int], None]
"""Told 0, or the errno for which nothing was changed."""


class LiveConfiguration:
    """The configuration of one interface while it runs."""

    def __init__(
        self,
        announcer: Announcer,
        timestamps: TimestampStore,
        store: Path,
        log: structlog.typing.FilteringBoundLogger,
        *,
        show_private_key: bool = True,
    ) -> None:
        self._announcer = announcer
        self.registry: Registry = announcer.registry
        self._handshaker: Handshaker = announcer.handshaker
        self._timestamps = timestamps
        self._store = store
        self._log = log
        self._show_private_key = show_private_key
        self._waiting: tuple[Prepared, uapi.Change, Done, float] | None = None
        self._request = 0
        """Of conn-service, the last; it answers others too, which a change must not take for its own answer."""
        self._queue: deque[tuple[uapi.Change, Done]] = deque()
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
        if self._waiting is not None:
            self._queue.append((change, done))
            return
        prepared = self.registry.prepare(change)
        if (prepared.delta.listen_port or prepared.delta.fwmark) and self.hub.member("conn") is not None:
            self._waiting = (prepared, change, done, boot_time() + LISTENING_WITHIN)
            self._try_sockets(prepared)
            return
        self._finish(prepared, done)

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
            prepared, _, done, _ = self._waiting
            self._waiting = None
            if message.code:
                self._log.warning("port refused", port=prepared.settings.listen_port, reason=os.strerror(message.code))
                done(message.code)
            else:
                self._finish(prepared, done)
            self._next()

    def next_deadline(self) -> float | None:
        """When to wait no longer for conn-service."""
        return self._waiting[3] if self._waiting else None

    def act(self, _now: float) -> None:
        """conn-service said nothing: it is away, and will be told all when it is back."""
        assert self._waiting is not None  # noqa: S101 - it is what the deadline was for
        prepared, _, done, _ = self._waiting
        self._waiting = None
        self._finish(prepared, done)
        # If it came back meanwhile, what it was told then is old by now.
        self.hub.tell("conn", 0, self._announcer.conn_settings(self.registry.interface))
        self._next()

    def _next(self) -> None:
        while self._queue and self._waiting is None:
            self.change(*self._queue.popleft())

    def _finish(self, prepared: Prepared, done: Done) -> None:
        mark = self._announcer.mark(self.registry.interface)
        delta = self.registry.commit(prepared)
        self._apply_to_handshakes(delta)
        self._tell(delta)
        if mark != self._announcer.mark(self.registry.interface):
            # The first default route came, or the last one went.
            self.hub.tell("conn", 0, self._announcer.conn_settings(self.registry.interface))
            self.hub.tell("tun", 0, self._announcer.tun_settings())
        self._remember()
        self._log.info(
            "configuration changed", peers=len(self.registry.peers), changed=len(delta.peers), gone=len(delta.gone)
        )
        done(0)

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

    def _tell(self, delta: Delta) -> None:
        hub = self.hub
        if delta.private_key:
            hub.tell("conn", 0, self._announcer.conn_settings(self.registry.interface))
        for stage, numbers in (("device", hub.numbers("device")), ("tun", [0])):
            for number in numbers:
                if stage == "device" and delta.private_key:
                    hub.tell(stage, number, SendingExpired())
                for message in self._announcer.changes(stage, number, delta):
                    hub.tell(stage, number, message)
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
        """What is in force, as a set upon the configuration file. A host name stays the file's word."""
        skipped = (b"last_handshake", b"tx_bytes", b"rx_bytes", b"errno")
        named = False
        yield b"set=1\n"
        if self.registry.interface.private_key is None:
            yield b"private_key=%s\n" % (b"0" * 64)
        for line in b"".join(uapi.get_reply(self.state(whole=True))).splitlines():
            key, _, value = line.partition(b"=")
            if key == b"public_key":
                named = bytes.fromhex(value.decode()) in self.names
            if line and not key.startswith(skipped) and not (named and key == b"endpoint"):
                yield line + b"\n"
            if key == b"persistent_keepalive_interval":
                yield b"replace_allowed_ips=true\n"
        for public_key in self.registry.from_file - self.registry.peers.keys():
            yield b"public_key=%s\nremove=true\n" % public_key.hex().encode()
        yield b"\n"

    def _remember(self) -> None:
        """Writes what is in force beside our pipes; the text is an operation of the `wg` socket."""
        fresh = self._store.with_suffix(".new")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.writelines(self._as_operation())
            fresh.replace(self._store)
        except OSError as error:
            self._log.error("change not remembered", reason=str(error))


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
