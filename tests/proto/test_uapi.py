"""The configuration socket: every rule and its errno, the replies to the letter, and Debian's `wg` as the judge."""

import os
import shutil
import socketserver
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from stagewire.proto import uapi
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.noise import clamp, public_key_of
from stagewire.proto.uapi import (
    BadOperation,
    Change,
    Get,
    InterfaceState,
    Operation,
    OperationReader,
    PeerChange,
    PeerState,
    PrefixChange,
    get_error,
    get_reply,
    set_reply,
)

SECRET = bytes(range(1, 33))
ONE, TWO = bytes([1] * 32), bytes([2] * 32)
PEER = f"public_key={ONE.hex()}\n"


def base64(key: bytes) -> str:
    return b64encode(key).decode()


def read(text: str) -> list[Operation | BadOperation]:
    return OperationReader().feed_untrusted(text.encode())


def change(lines: str) -> Change:
    [found] = read(f"set=1\n{lines}\n")
    assert isinstance(found, Change), found
    return found


def peer(lines: str) -> PeerChange:
    [found] = change(PEER + lines).peers
    return found


def prefixes(lines: str) -> list[tuple[str, bool]]:
    return [(str(change.prefix), change.add) for change in peer(lines).allowed_ips]


# --- get -----------------------------------------------------------------------------------------------------


def test_get() -> None:
    assert read("get=1\n\n") == [Get()]


FULL = InterfaceState(
    private_key=clamp(SECRET),
    listen_port=51820,
    fwmark=0xCA6C,
    peers=(
        PeerState(
            ONE,
            preshared_key=TWO,
            endpoint=Endpoint(ip_address("fe80::1").packed, 7, 3),
            last_handshake_unix_ns=1_700_000_000_000_000_042,
            tx_bytes=2**64 - 1,
            rx_bytes=5,
            persistent_keepalive=25,
            allowed_ips=(ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
        ),
        PeerState(TWO),
    ),
)


def test_the_reply_to_get_to_the_letter() -> None:
    assert b"".join(get_reply(FULL)).decode().splitlines() == [
        f"private_key={clamp(SECRET).hex()}",
        "listen_port=51820",
        "fwmark=51820",
        f"public_key={ONE.hex()}",
        f"preshared_key={TWO.hex()}",
        "protocol_version=1",
        "endpoint=[fe80::1%3]:7",
        "last_handshake_time_sec=1700000000",
        "last_handshake_time_nsec=42",
        "tx_bytes=18446744073709551615",
        "rx_bytes=5",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.0.0.0/24",
        "allowed_ip=fd00::/64",
        f"public_key={TWO.hex()}",
        f"preshared_key={'00' * 32}",
        "protocol_version=1",
        "last_handshake_time_sec=0",
        "last_handshake_time_nsec=0",
        "tx_bytes=0",
        "rx_bytes=0",
        "persistent_keepalive_interval=0",
        "errno=0",
        "",
    ]


@pytest.mark.parametrize("private_key", [None, bytes(32)])
def test_the_reply_to_get_of_nothing(private_key: bytes | None) -> None:
    assert b"".join(get_reply(InterfaceState(private_key))) == b"errno=0\n\n"


def test_the_reply_to_get_comes_in_pieces() -> None:
    made = 0

    def peers() -> Iterator[PeerState]:
        nonlocal made
        for number in range(10_000):
            made += 1
            yield PeerState(number.to_bytes(32))

    pieces = get_reply(InterfaceState(peers=peers()))
    first = next(pieces)
    assert made < 400
    sizes = [len(first), *(len(piece) for piece in pieces)]
    assert made == 10_000
    assert len(sizes) > 30
    assert max(sizes) < 66_000


def test_the_signs_of_errno() -> None:
    assert set_reply(0) == get_error(0) == b"errno=0\n\n"
    assert set_reply(uapi.EADDRINUSE) == b"errno=-98\n\n"
    assert get_error(uapi.EIO) == b"errno=5\n\n"


def test_no_repr_shows_a_secret() -> None:
    changed = change(f"private_key={SECRET.hex()}\n{PEER}preshared_key={TWO.hex()}\n")
    for value in (changed, changed.peers[0], FULL, *FULL.peers):
        for secret in (SECRET, clamp(SECRET), TWO):
            assert repr(secret) not in repr(value).replace(f"public_key={TWO!r}", "")


# --- set -----------------------------------------------------------------------------------------------------


def test_an_empty_set_changes_nothing() -> None:
    assert change("") == Change(None, None, None, False, ())


def test_everything_at_once() -> None:
    found = change(
        f"private_key={SECRET.hex()}\nlisten_port=1\nfwmark=2\nreplace_peers=true\n{PEER}update_only=true\n"
        f"preshared_key={TWO.hex().upper()}\nendpoint=192.0.2.1:3\npersistent_keepalive_interval=4\n"
        f"replace_allowed_ips=true\nallowed_ip=10.0.0.9/8\nallowed_ip=-::1/0\nprotocol_version=1\n"
        f"public_key={TWO.hex()}\nremove=true\n{PEER}allowed_ip=+10.1.0.0/16\n"
    )
    assert found == Change(
        clamp(SECRET),
        1,
        2,
        True,
        (
            PeerChange(
                ONE,
                line=6,
                update_only=True,
                preshared_key=TWO,
                endpoint=Endpoint(bytes([192, 0, 2, 1]), 3),
                persistent_keepalive=4,
                replace_allowed_ips=True,
                allowed_ips=(
                    PrefixChange(IPv4Network("10.0.0.0/8"), True),
                    PrefixChange(IPv6Network("::/0"), False),
                ),
            ),
            PeerChange(TWO, line=15, remove=True),
            PeerChange(ONE, line=17, allowed_ips=(PrefixChange(IPv4Network("10.1.0.0/16"), True),)),
        ),
    )


def test_zeros_are_no_key_and_not_clamped() -> None:
    assert change(f"private_key={'00' * 32}\n").private_key == bytes(32)
    assert peer(f"preshared_key={'00' * 32}\n").preshared_key == bytes(32)


def test_numbers() -> None:
    assert [change(f"listen_port={text}\n").listen_port for text in ("0", "65535", "007")] == [0, 65535, 7]
    marks = [change(f"fwmark={text}\n").fwmark for text in ("0", "4294967295", "0xffffffff", "0XCa6c")]
    assert marks == [0, 2**32 - 1, 2**32 - 1, 0xCA6C]
    assert [peer(f"persistent_keepalive_interval={n}\n").persistent_keepalive for n in (0, 65535)] == [0, 65535]


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:1", Endpoint(bytes([192, 0, 2, 1]), 1)),
        ("[2001:db8::1]:65535", Endpoint(ip_address("2001:db8::1").packed, 65535)),
        ("[fe80::1%7]:2", Endpoint(ip_address("fe80::1").packed, 2, 7)),
        ("[2001:db8::1%7]:2", Endpoint(ip_address("2001:db8::1").packed, 2)),
        ("[::ffff:192.0.2.1]:2", Endpoint(ip_address("::ffff:192.0.2.1").packed, 2)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert peer(f"endpoint={text}\n").endpoint == endpoint


def test_the_last_of_two_counts_but_allowed_ips_add_up() -> None:
    assert change("listen_port=1\nlisten_port=2\n").listen_port == 2
    assert prefixes("allowed_ip=10.0.0.1/32\nallowed_ip=-10.0.0.1/32\n") == [
        ("10.0.0.1/32", True),
        ("10.0.0.1/32", False),
    ]
    assert prefixes("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=::/0\n") == [("::/0", True)]


def test_what_stands_beside_remove_is_read_and_has_no_effect() -> None:
    assert peer("allowed_ip=::/0\nremove=true\nendpoint=192.0.2.1:1\n") == PeerChange(ONE, line=2, remove=True)
    [mistake] = read(f"set=1\n{PEER}remove=true\nendpoint=x\n\n")
    assert isinstance(mistake, BadOperation)
    assert mistake.line == 4


# --- what wg(8) makes of it ----------------------------------------------------------------------------------

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
