"""A real key-service and a real worker; the test is the network, the OS, and a peer far away."""

import os
import struct
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network

import zmq
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.services.surroundings import PATIENCE, CountersStandIn, Program, Surroundings

from lab.wait import until
from stagewire.config import encode_key, generate_private_key, public_key
from stagewire.environment import Environment
from stagewire.ipc import endpoints, trains
from stagewire.ipc.loop import boot_time
from stagewire.proto import constants as c
from stagewire.proto.device import Device, PeerFacts
from stagewire.proto.effects import InstallSession, SendHandshake
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.offload.coalesce import Item
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Output
from stagewire_cli import query

PLACE = Endpoint(bytes([192, 0, 2, 7]), 7777).pack()
OURS, THEIRS = "10.9.0.1", "10.9.0.2"


def packet(source: str, destination: str, body: bytes = b"") -> bytes:
    """An IPv4 packet of an experimental protocol."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 253, 0) + addresses + body


def singles(items: Sequence[Item]) -> list[bytes]:
    """Packets among which there is no super-packet."""
    found = []
    for item in items:
        assert isinstance(item, bytes)
        found.append(item)
    return found


class Far:
    """The other end of the tunnel: its handshakes and its packets, from the same core, driven by hand."""

    def __init__(self, ours: bytes, suits: Callable[[bytes], bool] = bool) -> None:
        """`suits` is asked of its public key."""
        self.private = generate_private_key(os.urandom(32))
        while not suits(public_key(self.private)):
            self.private = generate_private_key(os.urandom(32))
        self.ours = ours
        self.handshaker = Handshaker(Identity.from_private_bytes(self.private), bytes(12), os.urandom, lambda: 0.0)
        self.handshaker.add_peer(ours, bytes(32), 0).endpoint = PLACE
        self.handshaker.worker_up(0, boot_time(), time.time_ns())
        self._ahead = 0.0
        self.device = Device(lambda: 0.0)
        facts = PeerFacts(ours, (ip_network("0.0.0.0/0"),), home=True, endpoint=PLACE)
        self.device.set_peer(facts, boot_time())

    def initiation(self) -> bytes:
        """A new one; the 5 s between two are not waited for."""
        self._ahead += 2 * c.REKEY_TIMEOUT
        effects = self.handshaker.want(self.ours, boot_time() + self._ahead, time.time_ns())
        (sent,) = [effect for effect in effects if isinstance(effect, SendHandshake)]
        return sent.data

    def take(self, message: bytes) -> Output:
        """A handshake message; what its session sends first."""
        out = Output()
        for effect in self.handshaker.receive_untrusted(message, PLACE, boot_time(), time.time_ns()):
            if isinstance(effect, InstallSession):
                out = self._install(effect)
        return out

    def _install(self, effect: InstallSession) -> Output:
        send, receive = (ChaCha20Poly1305(key) for key in (effect.keys.send, effect.keys.receive))
        session = Session(
            effect.index, effect.remote_index, send, receive, initiator=effect.initiator, created=effect.created
        )
        out = self.device.install(self.ours, session, PLACE, boot_time())
        assert out is not None
        return out

    def sealed(self, *packets: bytes) -> list[bytes]:
        """Datagrams for the worker."""
        out = self.device.outbound(packets, boot_time())
        return [datagram for _, datagrams in out.runs for datagram in datagrams]

    def opened(self, datagrams: Sequence[bytes]) -> list[bytes]:
        """What was in datagrams from the worker."""
        return singles(self.device.inbound([(PLACE, datagrams)], boot_time()).packets)


class House:
    """key-service and one worker, and all their pipes."""

    def __init__(self, around: Surroundings, suits: Callable[[bytes], bool] = bool) -> None:
        self.around = around
        self.private = generate_private_key(os.urandom(32))
        self.far = Far(public_key(self.private), suits)
        around.config.write_text(
            f"[Interface]\nPrivateKey = {encode_key(self.private)}\nAddress = {OURS}/24\n"
            f"[Peer]\nPublicKey = {encode_key(public_key(self.far.private))}\nAllowedIPs = {THEIRS}/32\n"
        )
        around.config.chmod(0o600)
        self.counters = CountersStandIn(around)
        self.handshakes = around.bind(zmq.PULL, endpoints.HANDSHAKE_OUT)
        self.cipher = around.bind(zmq.PULL, endpoints.CIPHER_OUT)
        self.plain = around.bind(zmq.PULL, endpoints.PLAIN_IN)
        self.device: Program = around.start("device-service", "--number", "0")
        self.key: Program = around.start("key-service")
        variables = {"STAGEWIRE_RUN_DIR": str(around.directory / "run")}
        self.environment = Environment.read(variables, "wg0")
        self.handshake_in = around.connect(zmq.PUSH, endpoints.HANDSHAKE_IN)
        self.plain_out = around.connect(zmq.PUSH, endpoints.PLAIN_OUT, 0)
        self.cipher_in = around.connect(zmq.PUSH, endpoints.CIPHER_IN, 0)
        self.wait_for_worker()

    def restart_key_service(self) -> None:
        """Kills it, and starts another."""
        self.key.kill()
        self.key = self.around.start("key-service")
        self.wait_for_worker()

    def wait_for_worker(self) -> None:
        """Until key-service and the worker know one another."""
        until(self._worker_is_up, PATIENCE, f"the worker to be up: {self.key.log} {self.device.log}")

    def _worker_is_up(self) -> bool:
        answer = query.key_service(self.environment)
        return answer is not None and any(each["stage"] == "device" and each["ready"] for each in answer["stages"])

    def received(self) -> list[bytes]:
        """The next train for the OS, which takes no super-packets."""
        assert self.plain.poll(PATIENCE * 1000), "nothing came"
        return singles(trains.unpack_plain_untrusted(self.plain.recv(), boot_time()))

    def say(self, message: bytes) -> None:
        """A handshake message from the network."""
        self.handshake_in.send(trains.pack_handshake(PLACE, message, boot_time()))

    def answer(self, within: float = PATIENCE) -> bytes:
        """The next response to the network, or nothing; initiations of key-service's own are passed over."""
        deadline = boot_time() + within
        while self.handshakes.poll(max(0, int((deadline - boot_time()) * 1000))):
            message = trains.unpack_handshake_untrusted(self.handshakes.recv(), boot_time())[1]
            if message[0] == c.TYPE_RESPONSE:
                return message
        return b""

    def shake_hands(self) -> bytes:
        """The far peer initiates, and its first packet confirms the session. Returns the initiation."""
        initiation = self.far.initiation()

        def answered() -> bytes:
            self.say(initiation)  # again, if it came too soon after the last one; once answered, it is a replay
            return self.answer(0.1)

        out = self.far.take(until(answered, PATIENCE, "a response"))
        for _, datagrams in out.runs:
            self.send(datagrams)
        return initiation

    def send(self, datagrams: Sequence[bytes]) -> None:
        """From the network to the worker."""
        self.cipher_in.send(trains.pack_cipher([(PLACE, datagrams)], boot_time()))

    def inbound(self, *packets: bytes) -> list[bytes]:
        """Packets of the far peer's, as the OS gets them."""
        self.send(self.far.sealed(*packets))
        return self.received()

    def outbound(self, *packets: bytes) -> list[bytes]:
        """The OS's packets, as the far peer gets them."""
        self.plain_out.send(trains.pack_plain(packets, boot_time()))
        opened: list[bytes] = []

        def arrived() -> bool:
            while self.cipher.poll(1):
                runs = trains.unpack_cipher_untrusted(self.cipher.recv(), boot_time())
                opened.extend(packet for _, datagrams in runs for packet in self.far.opened(datagrams))
            return len(opened) >= len(packets)

        until(arrived, PATIENCE, "the packets at the far end")
        return opened

    def works(self) -> None:
        """A packet each way."""
        body = os.urandom(16)
        assert self.inbound(packet(THEIRS, OURS, body)) == [packet(THEIRS, OURS, body)]
        assert self.outbound(packet(OURS, THEIRS, body)) == [packet(OURS, THEIRS, body)]
