"""What `stagewire save` lays over a file: what the socket says of the interface, and nothing that didn't change."""

import socket
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

from stagewire.config import HostPort, InterfaceConfig, encode_key
from stagewire.config.parser import parse
from stagewire_cli import in_force

PRIVATE = bytes([7, *range(1, 31), 255])
CLAMPED = bytes([0, *range(1, 31), 127])
A, B, C = (sha256(name).digest() for name in (b"a", b"b", b"c"))
FILE = f"""[Interface]
PrivateKey = {encode_key(PRIVATE)}
FwMark = 5
MTU = 1400
SaveConfig = true
[Peer]
PublicKey = {encode_key(A)}
PresharedKey = {encode_key(B)}
AllowedIPs = 10.2.0.0/16, 10.1.0.0/16
Endpoint = gateway.example.com:51820
# stagewire: ResponseTimestamp = on
[Peer]
PublicKey = {encode_key(B)}
AllowedIPs = 10.3.0.0/16
Endpoint = 192.0.2.1:5
PersistentKeepalive = 25
"""


def lines(text: str) -> in_force.Lines:
    return [(key, value) for key, _, value in (line.partition("=") for line in text.splitlines())]


def over(text: str, file: str = FILE) -> InterfaceConfig:
    return in_force.over(parse(file, "test"), lines(text))


def peer(key: bytes, *allowed: str, preshared: bytes = bytes(32), keepalive: int = 0, endpoint: str = "") -> str:
    place = f"endpoint={endpoint}\n" if endpoint else ""
    return (
        f"public_key={key.hex()}\npreshared_key={preshared.hex()}\nprotocol_version=1\n{place}"
        f"last_handshake_time_sec=1\nlast_handshake_time_nsec=2\ntx_bytes=3\nrx_bytes=4\n"
        f"persistent_keepalive_interval={keepalive}\n" + "".join(f"allowed_ip={each}\n" for each in allowed)
    )


STANDING = (
    f"private_key={CLAMPED.hex()}\nlisten_port=51820\nfwmark=5\n"
    + peer(B, "10.3.0.0/16", keepalive=25, endpoint="192.0.2.1:5")
    + peer(A, "10.1.0.0/16", "10.2.0.0/16", preshared=B, endpoint="198.51.100.9:7")
    + "errno=0\n"
)


def test_what_did_not_change_is_the_files_word() -> None:
    """Also its order, a key that isn't clamped, and a host by its name. Whether the port was asked for, `saving` knows."""
    assert over(STANDING) == replace(parse(FILE, "test"), listen_port=51820)


def test_the_interface() -> None:
    text = STANDING.replace("listen_port=51820", "listen_port=9").replace("fwmark=5\n", "")
    changed = over(text.replace(CLAMPED.hex(), bytes([8, *CLAMPED[1:]]).hex()))
    assert (changed.listen_port, changed.fwmark) == (9, 0)
    assert changed.private_key == bytes([8, *CLAMPED[1:]])
    assert (changed.mtu, changed.save_config) == (1400, True)


def test_without_a_private_key_in_the_answer_the_files_stays() -> None:
    assert over(STANDING.partition("\n")[2]).private_key == PRIVATE


def test_peers_come_go_and_change() -> None:
    text = peer(B, "10.9.0.0/16", "10.3.0.0/16", endpoint="[2001:db8::1]:8", preshared=A)
    added = peer(C, "fd00::/8", endpoint=f"[fe80::1%{socket.if_nametoindex('lo')}]:9", keepalive=7)
    changed = over(f"listen_port=51820\n{added}{text}errno=0\n")
    first, second = changed.peers
    assert (first.public_key, second.public_key) == (B, C), "the file's first, then the new ones"
    assert first.allowed_ips == (ip_network("10.3.0.0/16"), ip_network("10.9.0.0/16"))
    assert (first.preshared_key, first.endpoint, first.persistent_keepalive) == (A, HostPort("2001:db8::1", 8), 0)
    assert (second.endpoint, second.persistent_keepalive) == (HostPort("fe80::1%lo", 9), 7), (
        "its number may be another's after a boot"
    )
    assert over("listen_port=51820\n").peers == ()


def test_nobody_answers(tmp_path: Path) -> None:
    assert in_force.ask(tmp_path / "none.sock") is None
