"""A peer far away, made of the core alone and driven by hand: its handshakes and its packets."""

import os
import struct
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.config import generate_private_key, public_key
from stagewire.loop import boot_time
from stagewire.proto import constants as c
from stagewire.proto.events import InstallSession, SendHandshake
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.packets.merge import Item
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Output
from stagewire.proto.worker import PeerFacts, Worker


def packet(source: str, destination: str, body: bytes = b"") -> bytes:
    """Makes an IPv4 packet of an experimental protocol."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 253, 0) + addresses + body


def singles(items: Sequence[Item]) -> list[bytes]:
    """Returns packets, and checks that no super-packet is among them."""
    found = []
    for item in items:
        assert isinstance(item, bytes)
        found.append(item)
    return found


def private_key_that(suits: Callable[[bytes], bool]) -> bytes:
    """Makes private keys until `suits` accepts the public key of one."""
    while not suits(public_key(private := generate_private_key(os.urandom(32)))):
        pass
    return private


class FarPeer:
    """Talks to the gateway whose public key is `ours`, from a packed endpoint."""

    def __init__(self, ours: bytes, private: bytes, place: bytes) -> None:
        self.ours, self.place, self.private, self.public = ours, place, private, public_key(private)
        self.handshaker = Handshaker(Identity.from_private_bytes(private), bytes(12), os.urandom, lambda: 0.0)
        self.handshaker.add_peer(ours, bytes(32), 0).endpoint = place
        self.handshaker.worker_up(0, boot_time(), time.time_ns())
        self.worker = Worker(lambda: 0.0)
        self.worker.set_peer(PeerFacts(ours, (ip_network("0.0.0.0/0"),), home=True, endpoint=place), boot_time())
        self._ahead = 0.0

    def initiation(self) -> bytes:
        """Makes a new one, as if REKEY_TIMEOUT had passed since the last."""
        self._ahead += 2 * c.REKEY_TIMEOUT
        effects = self.handshaker.want(self.ours, boot_time() + self._ahead, time.time_ns())
        (sent,) = [effect for effect in effects if isinstance(effect, SendHandshake)]
        return sent.data

    def take(self, message: bytes) -> Output:
        """Reads a handshake message; returns what its session sends first."""
        out = Output()
        for effect in self.handshaker.receive_untrusted(message, self.place, boot_time(), time.time_ns()):
            if isinstance(effect, InstallSession):
                out = self._install(effect)
        return out

    def _install(self, effect: InstallSession) -> Output:
        send, receive = (ChaCha20Poly1305(key) for key in (effect.keys.send, effect.keys.receive))
        session = Session(
            effect.index, effect.remote_index, send, receive, initiator=effect.initiator, created=effect.created
        )
        out = self.worker.install(self.ours, session, self.place, boot_time())
        assert out is not None
        return out

    def sealed(self, *packets: bytes) -> list[bytes]:
        """Returns the packets as datagrams for the gateway's worker."""
        out = self.worker.outbound(packets, boot_time())
        return [datagram for _, datagrams in out.runs for datagram in datagrams]

    def opened(self, datagrams: Sequence[bytes]) -> list[bytes]:
        """Returns the packets in datagrams from the gateway's worker."""
        return singles(self.worker.inbound([(self.place, datagrams)], boot_time()).packets)
