"""Makes the answers of the configuration socket, as bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from stagewire.config.keys import NO_KEY
from stagewire.proto.endpoint import Endpoint

_CHUNK: Final = 2**16
_FILLING: Final = "\0" * 512
"""Python keeps shorter blocks than this itself, in which a key would outlive its removal."""
_SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class PeerState:
    """Describes a peer for `get`.

    Times are ns since 1970, 0 for never; traffic is in bytes, the interval in s, 0 is off.
    """

    public_key: bytes
    preshared_key: bytes = field(default=NO_KEY, repr=False)
    endpoint: Endpoint | None = None
    last_handshake_unix_ns: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    persistent_keepalive: int = 0
    allowed_ips: Iterable[IPv4Network | IPv6Network] = ()


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """Describes the interface for `get`, which shows nothing that is None or 0. wg(8) computes the public key itself."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int = 0
    fwmark: int = 0
    peers: Iterable[PeerState] = ()


def set_reply(code: int) -> bytes:
    """Answers a set: 0, or a positive errno, which is sent negative."""
    return b"errno=%d\n\n" % -code


def get_error(code: int) -> bytes:
    """Answers a get that fails with this positive errno, which is sent as it is."""
    return b"errno=%d\n\n" % code


def get_reply(state: InterfaceState) -> Iterator[memoryview]:
    """Answers a get, in pieces of some 64 KiB. The state must not change before the last piece."""
    lines: list[str] = []
    size = 0
    for line in _interface_lines(state):
        lines.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield _piece(lines)
            lines.clear()
            size = 0
    lines.append(get_error(0).decode())
    yield _piece(lines)


def _piece(lines: list[str]) -> memoryview:
    return memoryview("".join([*lines, _FILLING]).encode())[: -len(_FILLING)]


def _interface_lines(state: InterfaceState) -> Iterator[str]:
    if state.private_key is not None and state.private_key != NO_KEY:
        yield f"private_key={state.private_key.hex()}\n"
    if state.listen_port:
        yield f"listen_port={state.listen_port}\n"
    if state.fwmark:
        yield f"fwmark={state.fwmark}\n"
    for peer in state.peers:
        yield from _peer_lines(peer)


def _peer_lines(peer: PeerState) -> Iterator[str]:
    seconds, nanoseconds = divmod(peer.last_handshake_unix_ns, _SECOND_NS)
    yield f"public_key={peer.public_key.hex()}\n"
    yield f"preshared_key={peer.preshared_key.hex()}\n"
    yield "protocol_version=1\n"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}\n"
    yield f"last_handshake_time_sec={seconds}\nlast_handshake_time_nsec={nanoseconds}\n"
    yield f"tx_bytes={peer.tx_bytes}\nrx_bytes={peer.rx_bytes}\n"
    yield f"persistent_keepalive_interval={peer.persistent_keepalive}\n"
    for prefix in peer.allowed_ips:
        yield f"allowed_ip={prefix}\n"
