"""The configuration socket, with Debian's `wg` as the judge."""

import os
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.config.uapi.keys import ONE, SECRET, TWO, base64

from stagewire.config import uapi
from stagewire.config.uapi import (
    BadOperation,
    Change,
    Get,
    InterfaceState,
    Operation,
    OperationReader,
    PeerChange,
    PeerState,
    get_error,
    get_reply,
    set_reply,
)
from stagewire.proto.noise import clamp, public_key_of

NEEDS_WG = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("wg") is None, reason="needs root, and Debian's wg")
CONFIGURATION = f"""\
[Interface]
ListenPort = 51820
FwMark = 0xca6c
PrivateKey = {base64(clamp(SECRET))}

[Peer]
PublicKey = {base64(ONE)}
PresharedKey = {base64(TWO)}
AllowedIPs = 10.0.0.0/24, 10.9.0.1/32, fd00::/64
Endpoint = 192.0.2.1:51820
PersistentKeepalive = 25

[Peer]
PublicKey = {base64(TWO)}
AllowedIPs = ::/0
Endpoint = [2001:db8::1]:7
"""


@dataclass
class Interface:
    """A gateway that is all configuration. `refuses` is the errno it answers everything with, if it isn't 0."""

    name: str
    refuses: int = 0
    state: InterfaceState = field(default_factory=InterfaceState)
    peers: dict[bytes, PeerState] = field(default_factory=dict)
    mistakes: list[BadOperation] = field(default_factory=list)

    def answer(self, operation: Operation | BadOperation) -> bytes:
        match operation:
            case BadOperation():
                self.mistakes.append(operation)
                return operation.reply()
            case Get() if self.refuses:
                return get_error(self.refuses)
            case Get():
                return b"".join(get_reply(replace(self.state, peers=tuple(self.peers.values()))))
            case Change() if self.refuses:
                return set_reply(self.refuses)
        self.apply(operation)
        return set_reply(0)

    def apply(self, change: Change) -> None:
        device = {name: getattr(change, name) for name in ("private_key", "listen_port", "fwmark")}
        self.state = replace(self.state, **{name: value for name, value in device.items() if value is not None})
        if change.replace_peers:
            self.peers.clear()
        for peer in change.peers:
            if peer.remove:
                self.peers.pop(peer.public_key, None)
            elif peer.public_key in self.peers or not peer.update_only:
                self.apply_peer(self.peers.get(peer.public_key, PeerState(peer.public_key)), peer)

    def apply_peer(self, state: PeerState, peer: PeerChange) -> None:
        has = [] if peer.replace_allowed_ips else list(state.allowed_ips)
        for entry in peer.allowed_ips:
            has = [prefix for prefix in has if prefix != entry.prefix] + [entry.prefix] * entry.add
        fields = {name: getattr(peer, name) for name in ("preshared_key", "endpoint", "persistent_keepalive")}
        given = {name: value for name, value in fields.items() if value is not None}
        self.peers[peer.public_key] = replace(state, allowed_ips=tuple(has), **given)

    def wg(self, command: str, *arguments: str | Path) -> str:
        """What `wg COMMAND NAME ARGUMENTS` prints, errors included."""
        words = ["wg", command, self.name, *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode == 0) is not bool(done.stderr)
        return done.stdout + done.stderr


@pytest.fixture
def interface() -> Iterator[Interface]:
    """An interface that `wg` finds where it looks for them."""
    path = Path(f"/var/run/wireguard/sw-{os.getpid()}.sock")
    path.parent.mkdir(mode=0o755, exist_ok=True)
    served = Interface(path.stem)

    class Client(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            reader = OperationReader()
            # The connection stays open for a further operation, as wireguard-go's does: wg is the one to close it.
            while data := self.request.recv(65536):
                for operation in reader.feed_untrusted(data):
                    self.request.sendall(served.answer(operation))

    with socketserver.ThreadingUnixStreamServer(str(path), Client) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


@pytest.mark.system
@NEEDS_WG
def test_wg_sets_and_shows_a_configuration(interface: Interface, tmp_path: Path) -> None:
    file = tmp_path / "wg.conf"
    file.write_text(CONFIGURATION)
    assert interface.wg("setconf", file) == ""
    assert interface.wg("showconf").strip() == CONFIGURATION.strip()
    assert interface.wg("syncconf", file) == ""
    assert interface.wg("showconf").strip() == CONFIGURATION.strip()
    seen = 1_700_000_000
    interface.peers[ONE] = replace(
        interface.peers[ONE], last_handshake_unix_ns=seen * 10**9 + 5, rx_bytes=2**64 - 1, tx_bytes=9
    )
    own = base64(public_key_of(X25519PrivateKey.from_private_bytes(clamp(SECRET))))
    assert [line.split("\t") for line in interface.wg("show", "dump").splitlines()] == [
        [base64(clamp(SECRET)), own, "51820", "0xca6c"],
        [
            *(base64(ONE), base64(TWO), "192.0.2.1:51820", "10.0.0.0/24,10.9.0.1/32,fd00::/64"),
            *(str(seen), str(2**64 - 1), "9", "25"),
        ],
        [base64(TWO), "(none)", "[2001:db8::1]:7", "::/0", "0", "0", "0", "off"],
    ]


@pytest.mark.system
@NEEDS_WG
def test_wg_changes_one_thing_at_a_time(interface: Interface, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(base64(SECRET))
    one = ("peer", base64(ONE))
    assert interface.wg("set", "private-key", key, "fwmark", "0xffffffff") == ""
    assert interface.state == InterfaceState(clamp(SECRET), fwmark=2**32 - 1)
    assert interface.wg("set", *one, "preshared-key", key, "allowed-ips", "10.0.0.0/24,::1") == ""
    prefixes = (ip_network("10.0.0.0/24"), ip_network("::1/128"))
    assert interface.peers == {ONE: PeerState(ONE, SECRET, allowed_ips=prefixes)}
    assert interface.wg("set", *one, "preshared-key", "/dev/null", "persistent-keepalive", "9", "allowed-ips", "") == ""
    assert interface.peers == {ONE: PeerState(ONE, persistent_keepalive=9)}
    assert interface.wg("set", *one, "remove") == ""
    assert interface.wg("set", "private-key", "/dev/null", "fwmark", "off") == ""
    assert (interface.peers, interface.state) == ({}, InterfaceState(bytes(32)))
    assert interface.wg("show", "dump") == "(none)\t(none)\t0\toff\n"


@pytest.mark.system
@NEEDS_WG
def test_wg_says_our_errors_in_the_right_words(interface: Interface) -> None:
    # wg turns the number of a zone into its interface's name, and the reader here knows none.
    zone = interface.wg("set", "peer", base64(ONE), "endpoint", "[fe80::1%1]:5")
    assert zone == "Unable to modify interface: Invalid argument\n"
    assert [(found.code, found.line) for found in interface.mistakes] == [(uapi.EINVAL, 3)]
    for code, words in (
        (uapi.EIO, "Input/output error"),
        (uapi.E2BIG, "Argument list too long"),
        (uapi.EPROTO, "Protocol error"),
        (uapi.EADDRINUSE, "Address already in use"),
    ):
        interface.refuses = code
        assert interface.wg("set", "listen-port", "1") == f"Unable to modify interface: {words}\n"
        assert interface.wg("show", "dump") == f"Unable to access interface: {words}\n"
