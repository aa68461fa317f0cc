"""The configuration in force, asked of the `wg` socket, for `stagewire save` to write back."""

import socket
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from stagewire.config import HostPort, InterfaceConfig, Network, PeerConfig

TIMEOUT = 10.0
_NO_KEY = bytes(32)
_DEFAULT_PORT = 51820
Lines = list[tuple[str, str]]


def ask(path: Path) -> Lines | None:
    """The lines of a `get`; None when nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(TIMEOUT)
            line.connect(str(path))
            line.sendall(b"get=1\n\n")
            line.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: line.recv(65536), b""))
    except OSError:
        return None
    lines = [(key, value) for key, _, value in (text.partition("=") for text in answer.decode().splitlines()) if key]
    return lines if ("errno", "0") in lines else None


def remove_stale(path: Path) -> None:
    """Removes a socket that nobody serves any more; one that another program serves stays."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(TIMEOUT)
            line.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError:
        return


def over(standing: InterfaceConfig, lines: Lines) -> InterfaceConfig:
    """A file's configuration with what is in force laid over it; what the socket has no word for stays the file's."""
    known = {peer.public_key: peer for peer in standing.peers}
    peers: list[PeerConfig] = []
    prefixes: list[list[Network]] = []
    for key, value in lines:
        match key:
            case "private_key":
                standing = _with_private_key(standing, bytes.fromhex(value))
            case "listen_port":
                port = int(value)
                if standing.listen_port is not None or port != _DEFAULT_PORT:
                    standing = replace(standing, listen_port=port)
            case "fwmark":
                standing = replace(standing, fwmark=int(value))
            case "public_key":
                public_key = bytes.fromhex(value)
                file = known.get(public_key, PeerConfig(public_key, _NO_KEY, (), None, 0, False, 0))
                peers.append(file)
                prefixes.append([])
            case "allowed_ip":
                prefixes[-1].append(ip_network(value))
            case _ if peers:
                peers[-1] = _with_line(peers[-1], key, value)
    if not any(key == "fwmark" for key, _ in lines):
        standing = replace(standing, fwmark=0)
    # In the file's order, so that nothing is rewritten that didn't change.
    position = {peer.public_key: number for number, peer in enumerate(standing.peers)}
    now = [replace(peer, allowed_ips=_in_order(peer, found)) for peer, found in zip(peers, prefixes, strict=True)]
    now.sort(key=lambda peer: position.get(peer.public_key, len(position)))
    return replace(standing, peers=tuple(now))


def _with_private_key(standing: InterfaceConfig, private_key: bytes) -> InterfaceConfig:
    # The file may hold the key unclamped, which is the same key.
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
    """A link-local address by its interface's name, which outlives a boot; its number may be another's then."""
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
