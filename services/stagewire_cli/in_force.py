"""Asks the `wg` socket for the configuration in force, which `stagewire save` writes back."""

import errno
import socket
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from stagewire.config import HostPort, InterfaceConfig, Network, PeerConfig, operations
from stagewire.config.keys import NO_KEY
from stagewire.linux import descriptors

TIMEOUT = 10.0
"""s that the `wg` socket gets to answer."""
MOST = 256 << 20
"""Bytes of an answer."""
Lines = list[tuple[str, str]]


def ask(path: Path) -> Lines | None:
    """Returns the lines of a `get`; None without a good answer."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            descriptors.allow(line, allowed=False)
            line.settimeout(TIMEOUT)
            line.connect(str(path))
            line.sendall(b"get=1\n\n")
            line.shutdown(socket.SHUT_WR)
            answer = received(line, TIMEOUT).decode()
    except (OSError, ValueError):
        return None
    lines = [(key, value) for key, _, value in (text.partition("=") for text in answer.splitlines()) if key]
    return lines if ("errno", "0") in lines else None


def received(line: socket.socket, within: float) -> bytes:
    """Receives all up to the end. Raises OSError beyond `within` s or MOST bytes: key-service may be hostile."""
    until, data = time.monotonic() + within, bytearray()
    while piece := line.recv(1 << 16):
        data += piece
        line.settimeout(max(0.001, until - time.monotonic()))
        if len(data) > MOST:
            raise OSError(errno.EMSGSIZE, "the answer is too long")
    return bytes(data)


def over(standing: InterfaceConfig, lines: Lines) -> InterfaceConfig:
    """Lays the socket's lines over a file's configuration; keys that the socket doesn't know stay the file's."""
    known = {peer.public_key: peer for peer in standing.peers}
    peers: list[PeerConfig] = []
    prefixes: list[list[Network]] = []
    for key, value in lines:
        match key:
            case "private_key":
                standing = _with_private_key(standing, bytes.fromhex(value))
            case "listen_port":
                standing = replace(standing, listen_port=int(value))
            case "fwmark":
                standing = replace(standing, fwmark=int(value))
            case "public_key":
                public_key = bytes.fromhex(value)
                file = known.get(public_key, PeerConfig(public_key, NO_KEY, (), None, 0, False, 0))
                peers.append(file)
                prefixes.append([])
            case "allowed_ip":
                prefixes[-1].append(ip_network(value))
            case _ if peers:
                peers[-1] = _with_line(peers[-1], key, value)
    if not any(key == "fwmark" for key, _ in lines):
        standing = replace(standing, fwmark=0)
    # In the file's order, so that unchanged lines stay where they are.
    position = {peer.public_key: number for number, peer in enumerate(standing.peers)}
    now = [replace(peer, allowed_ips=_in_order(peer, found)) for peer, found in zip(peers, prefixes, strict=True)]
    now.sort(key=lambda peer: position.get(peer.public_key, len(position)))
    return replace(standing, peers=tuple(now))


def with_expired(now: InterfaceConfig, standing: InterfaceConfig, at: float) -> InterfaceConfig:
    """Adds the file's peers whose time is over: they are not in force, but `save` must not lose them."""
    there = {peer.public_key for peer in now.peers}
    gone = [peer for peer in standing.peers if operations.is_expired(peer, at) and peer.public_key not in there]
    position = {peer.public_key: number for number, peer in enumerate(standing.peers)}
    peers = sorted((*now.peers, *gone), key=lambda peer: position.get(peer.public_key, len(position)))
    return replace(now, peers=tuple(peers))


def _with_private_key(standing: InterfaceConfig, private_key: bytes) -> InterfaceConfig:
    # The file may hold the same key unclamped.
    if standing.private_key is not None and _clamped(standing.private_key) == private_key:
        return standing
    return replace(standing, private_key=private_key)


def _clamped(key: bytes) -> bytes:
    return bytes([key[0] & 248, *key[1:31], (key[31] & 127) | 64])


def _with_line(peer: PeerConfig, key: str, value: str) -> PeerConfig:
    match key:
        case "preshared_key":
            return replace(peer, preshared_key=bytes.fromhex(value))
        case "persistent_keepalive_interval":
            return replace(peer, persistent_keepalive=int(value))
        case "endpoint" if peer.endpoint is None or _is_address(peer.endpoint.host):
            host, _, port = value.rpartition(":")
            return replace(peer, endpoint=HostPort(_with_named_zone(host.strip("[]")), int(port)))
    return peer


def _with_named_zone(host: str) -> str:
    """Names a link-local address's zone by its interface, whose number may be another's after a boot."""
    address, percent, zone = host.partition("%")
    if percent and zone.isdecimal():
        with suppress(OSError):
            return f"{address}%{socket.if_indextoname(int(zone))}"
    return host


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _in_order(file: PeerConfig, found: list[Network]) -> tuple[Network, ...]:
    position = {prefix: number for number, prefix in enumerate(file.allowed_ips)}
    return tuple(sorted(found, key=lambda prefix: position.get(prefix, len(position))))
