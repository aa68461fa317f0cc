"""A worker with a peer whose other side is made by hand: what it sends and what it gets, without any of our code."""

import random
from ipaddress import ip_address, ip_network

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.proto.endpoint import Endpoint
from stagewire.proto.replay import ReplayWindow
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Output, Tunnel
from stagewire.proto.worker import PeerFacts, Worker

T = 1000.0
OURS, THEIRS = random.Random(1).randbytes(32), random.Random(2).randbytes(32)
PEER, OTHER, AWAY = b"P" * 32, b"O" * 32, b"A" * 32
PLACE = Endpoint(ip_address("192.0.2.1").packed, 51820, source=b"\xc0\0\2\x63", source_interface=2).pack()
ELSEWHERE = Endpoint(ip_address("198.51.100.7").packed, 1024).pack()
INDEX, REMOTE = 0x11223300, 0x99887766


def facts(
    public_key: bytes = PEER,
    *prefixes: str,
    home: bool = True,
    place: bytes | None = PLACE,
    keepalive: int = 0,
) -> PeerFacts:
    return PeerFacts(public_key, tuple(map(ip_network, prefixes)), home, keepalive, place)


def worker() -> Worker:
    """PEER has 10.1/16 and 2001:db8:1::/48, OTHER a part of it, AWAY (in another worker) another part."""
    one = Worker(lambda: 0.1)
    one.set_peer(facts(PEER, "10.1.0.0/16", "2001:db8:1::/48"), T)
    one.set_peer(facts(OTHER, "10.1.2.0/24"), T)
    one.set_peer(facts(AWAY, "10.1.3.0/24", "2001:db8:1:3::/64", home=False), T)
    return one


def tunnel_of(one: Worker, public_key: bytes = PEER) -> Tunnel:
    return next(tunnel for tunnel in one.owners.tunnels() if tunnel.public_key == public_key)


def current_index(one: Worker) -> int | None:
    current = tunnel_of(one).slots.current
    return None if current is None else current.index


def new_session(*, initiator: bool = True, index: int = INDEX, created: float = T) -> Session:
    send, receive = ChaCha20Poly1305(OURS), ChaCha20Poly1305(THEIRS)
    return Session(index, REMOTE, send, receive, initiator=initiator, created=created)


def install(one: Worker, session: Session, now: float = T, place: bytes = PLACE) -> Output:
    out = one.install(PEER, session, place, now)
    assert out is not None
    return out


def running() -> Worker:
    """A worker with a session that we initiated."""
    one = worker()
    install(one, new_session())
    return one


def theirs(counter: int, inner: bytes, index: int = INDEX, key: bytes = THEIRS) -> bytes:
    """What the peer would send, made by hand."""
    nonce = counter.to_bytes(8, "little")
    header = b"\4\0\0\0" + index.to_bytes(4, "little") + nonce
    return header + ChaCha20Poly1305(key).encrypt(bytes(4) + nonce, inner, None)


def ours(datagram: bytes) -> bytes:
    """What we sent, opened."""
    return ChaCha20Poly1305(OURS).decrypt(bytes(4) + datagram[8:16], datagram[16:], None)


def v4(source: str, destination: str = "10.9.9.9", size: int = 60) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return (b"\x45\0" + size.to_bytes(2) + bytes(5) + b"\xfd\0\0" + addresses).ljust(size, b"\x55")


def v6(source: str, destination: str = "2001:db8:9::9", payload: int = 20, after: int = 59) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return b"\x60\0\0\0" + payload.to_bytes(2) + bytes([after, 64]) + addresses + b"\x55" * payload


def receive(one: Worker, *inners: bytes, place: bytes = PLACE, now: float = T) -> Output:
    """Each inner packet arrives in a datagram of its own, in one train."""
    window = next(session.window for _, session in one.sessions() if session.index == INDEX)
    assert isinstance(window, ReplayWindow)
    start = window._newest + 1
    datagrams = [theirs(start + at, inner) for at, inner in enumerate(inners)]
    return one.inbound([(place, datagrams)], now)
