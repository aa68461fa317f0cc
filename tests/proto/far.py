"""A Handshaker whose other side is made by hand from the handshake's functions."""

import random
from collections.abc import Callable

import pytest

from stagewire.proto import handshake, tai64n
from stagewire.proto.cookie import MacSealer
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import Effect, RememberTimestamp, SendHandshake
from stagewire.proto.handshake import Identity, Remote, TransportKeys
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.messages import BadMessage, Initiation, Response, parse_handshake_untrusted
from stagewire.proto.peer import Peer

T = 1000.0
WALL = 1_700_000_000 * 10**9
PLACE = Endpoint(bytes([192, 0, 2, 1]), 51820, source=bytes([192, 0, 2, 9]), source_interface=3).pack()
ELSEWHERE = Endpoint(bytes([198, 51, 100, 1]), 1024).pack()
PSK = bytes(range(32))
INDEX = 0x77777700


class Far:
    """The other side, made by hand from the handshake's functions."""

    def __init__(self, ours: Identity, psk: bytes = PSK, seed: int = 9) -> None:
        self.rng = random.Random(seed)
        self.identity = Identity.from_private_bytes(self.rng.randbytes(32))
        self.remote = Remote.of(self.identity, ours.public_key, psk)
        self.ours = ours
        self.macs = MacSealer(ours.public_key)

    def initiation(self, stamp: bytes, index: int = INDEX) -> bytes:
        data, self.sent = handshake.initiate(self.identity, self.remote, index, self.rng.randbytes(32), stamp)
        return self.macs.seal(data, T)

    def respond(self, initiation: bytes, stamp: bytes = b"", index: int = INDEX) -> bytes:
        message = parse_handshake_untrusted(initiation)
        assert isinstance(message, Initiation)
        opened = handshake.open_initiation_untrusted(self.identity, message)
        authentic = handshake.authenticate_untrusted(opened, self.remote)
        data, self.keys = handshake.respond(authentic, self.remote, index, self.rng.randbytes(32), stamp)
        return self.macs.seal(data, T)

    def read(self, response: bytes, *, stamped: bool = False) -> tuple[TransportKeys, bytes]:
        message = parse_handshake_untrusted(response)
        assert isinstance(message, Response)
        return handshake.read_response_untrusted(self.identity, self.remote, self.sent, message, stamped=stamped)


def stamp(seconds: float = 0.0) -> bytes:
    return tai64n.encode(WALL + int(seconds * 1e9))


def new_handshaker(random_bytes: Callable[[int], bytes] | None = None, own: bytes = bytes(12)) -> Handshaker:
    identity = Identity.from_private_bytes(bytes(range(100, 132)))
    return Handshaker(identity, own, random_bytes or random.Random(3).randbytes, lambda: 0.1)


def setup(*, stamped: bool = False, worker: int = 5) -> tuple[Handshaker, Far, Peer]:
    ours = new_handshaker()
    far = Far(ours.identity)
    peer = ours.add_peer(far.identity.public_key, PSK, worker, stamped=stamped)
    peer.endpoint = PLACE
    ours.worker_up(worker, T, WALL)
    return ours, far, peer


def receive(ours: Handshaker, data: bytes, now: float = T, place: bytes = PLACE) -> list[Effect]:
    return ours.receive_untrusted(data, place, now, WALL + int((now - T) * 1e9))


def refused(ours: Handshaker, data: bytes, reason: str, now: float = T) -> None:
    """It is refused for a reason, and nothing has changed."""
    before = [(p.endpoint, p.latest_initiation, p.latest_response, p.rx_bytes, p.sent) for p in ours.peers.values()]
    indices = len(ours._indices._used)
    with pytest.raises(BadMessage) as bad:
        receive(ours, data, now, ELSEWHERE)
    assert bad.value.reason == reason
    after = [(p.endpoint, p.latest_initiation, p.latest_response, p.rx_bytes, p.sent) for p in ours.peers.values()]
    assert (after, len(ours._indices._used)) == (before, indices)


def initiation_sent(effects: list[Effect]) -> bytes:
    """Our initiation, and that its stamp is remembered before it leaves."""
    remember, send = effects
    assert isinstance(remember, RememberTimestamp)
    assert isinstance(send, SendHandshake)
    assert remember.kind == "own"
    assert send.initiation
    assert len(send.data) == 148
    return send.data


def want(ours: Handshaker, peer: Peer, now: float = T) -> list[Effect]:
    return ours.want(peer.public_key, now, WALL + int((now - T) * 1e9))


def under_way(ours: Handshaker) -> list[bytes]:
    """The peers that an initiation of ours waits for."""
    return [public_key for public_key, peer in ours.peers.items() if peer.sent is not None]
