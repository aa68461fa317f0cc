"""Tells the configuration in force in the `wg` socket's language."""

from collections.abc import Container, Iterable, Iterator
from itertools import starmap

from key_service.registry import Registry
from stagewire.config import PeerConfig, uapi
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer
from stagewire.wall_clock import unix_ns


def state(registry: Registry, handshaker: Handshaker, port: int, *, with_private_key: bool) -> uapi.InterfaceState:
    """Returns the state that `wg show` prints. `port`: the open UDP port; 0 for none."""
    interface = registry.interface
    # A slow reader gets the present peers, even if a change removes some of them.
    peers = [(peer, handshaker.peers[key]) for key, peer in registry.peers.items()]
    return uapi.InterfaceState(
        private_key=interface.private_key if with_private_key else None,
        listen_port=port or interface.listen_port or 0,
        fwmark=interface.fwmark,
        peers=starmap(_peer_state, peers),
    )


def as_operation(whole: uapi.InterfaceState, registry: Registry, names: Container[bytes]) -> Iterator[bytes]:
    """Yields the configuration in force as one operation upon the accepted text, without endpoints of peers in `names`."""
    # The kernel may have chosen the open port.
    skipped = (b"last_handshake", b"tx_bytes", b"rx_bytes", b"errno", b"listen_port")
    gone = registry.from_file.keys() - registry.peers.keys()
    interface = registry.interface
    first = b"private_key=%s\n" % (b"0" * 64) if interface.private_key is None else b""
    if interface.listen_port is not None:
        first += b"listen_port=%d\n" % interface.listen_port
    return _without(uapi.get_reply(whole), skipped, names, first, gone)


def _without(
    answer: Iterator[memoryview],
    skipped: tuple[bytes, ...],
    names: Container[bytes],
    first: bytes,
    gone: Iterable[bytes],
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
        last_handshake_unix_ns=unix_ns(known.last_handshake) if known.last_handshake else 0,
        tx_bytes=known.tx_bytes,
        rx_bytes=known.rx_bytes,
        persistent_keepalive=peer.persistent_keepalive,
        allowed_ips=peer.allowed_ips,
    )
