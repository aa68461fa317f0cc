"""A real key-service and a real worker; the test is the network, the OS, and a peer far away."""

import os
from collections.abc import Callable, Sequence

from tests.far_peer import FarPeer, packet, private_key_that, singles
from tests.services.surroundings import PATIENCE, CountersStandIn, Program, Surroundings

from lab.wait import until
from stagewire.config import encode_key, generate_private_key, public_key
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CIPHER_IN, CIPHER_OUT, HANDSHAKE_IN, HANDSHAKE_OUT, PLAIN_IN, PLAIN_OUT
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint

PLACE = Endpoint(bytes([192, 0, 2, 7]), 7777).pack()
OURS, THEIRS = "10.9.0.1", "10.9.0.2"
EVER = 0.0
"""A time at which no train is too old: a busy machine may have kept the test waiting."""


def stamp() -> float:
    """A stamp that makes no train too old, though a busy machine keeps the services waiting."""
    return boot_time() + PATIENCE


def is_mark(frame: bytes) -> bool:
    return trains.mark_untrusted(frame, 0, len(frame)) is not None


class House:
    """key-service and one worker, and all their pipes."""

    def __init__(self, around: Surroundings, suits: Callable[[bytes], bool] = bool, **env: str) -> None:
        self.around = around
        self.private = generate_private_key(os.urandom(32))
        self.far = FarPeer(public_key(self.private), private_key_that(suits), PLACE)
        around.config.write_text(
            f"[Interface]\nPrivateKey = {encode_key(self.private)}\nAddress = {OURS}/24\n"
            f"[Peer]\nPublicKey = {encode_key(public_key(self.far.private))}\nAllowedIPs = {THEIRS}/32\n"
        )
        around.config.chmod(0o600)
        self.counters = CountersStandIn(around)
        self.handshakes = around.bind(HANDSHAKE_OUT)
        self.cipher = around.bind(CIPHER_OUT)
        self.plain = around.bind(PLAIN_IN)
        self.device: Program = around.start("device-service", "--number", "0", **env)
        self.key: Program = around.start("key-service")
        folders = {"STAGEWIRE_RUN_DIR": "run", "STAGEWIRE_WG_DIR": "wg"}
        variables = {name: str(around.directory / folder) for name, folder in folders.items()}
        self.environment = Environment.read(variables, "wg0")
        self.handshake_in = around.connect(HANDSHAKE_IN)
        self.plain_out = around.connect(PLAIN_OUT, 0)
        self.cipher_in = around.connect(CIPHER_IN, 0)
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
        return answer is not None and any(each.stage == "device" and each.ready for each in answer.stages)

    def received(self) -> list[bytes]:
        """The next train for the OS, which takes no super-packets."""
        while self.plain.poll(PATIENCE * 1000):
            if not is_mark(frame := self.plain.recv()):
                return singles(trains.unpack_plain_untrusted(frame, EVER))
        raise AssertionError("nothing came")

    def say(self, message: bytes) -> None:
        """A handshake message from the network."""
        self.handshake_in.send(trains.pack_handshake(PLACE, message, stamp()))

    def answer(self, within: float = PATIENCE) -> bytes:
        """The next response to the network, or nothing; initiations of key-service's own are passed over."""
        deadline = boot_time() + within
        while self.handshakes.poll(max(0, int((deadline - boot_time()) * 1000))):
            message = trains.unpack_handshake_untrusted(self.handshakes.recv(), EVER)[1]
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
        self.cipher_in.send(trains.pack_cipher([(PLACE, datagrams)], stamp()))

    def inbound(self, *packets: bytes) -> list[bytes]:
        """Packets of the far peer's, as the OS gets them."""
        self.send(self.far.sealed(*packets))
        return self.received()

    def outbound(self, *packets: bytes) -> list[bytes]:
        """The OS's packets, as the far peer gets them."""
        self.plain_out.send(trains.pack_plain(packets, stamp()))
        opened: list[bytes] = []

        def arrived() -> bool:
            while self.cipher.poll(1):
                opened.extend(packet for datagrams in self.datagrams() for packet in self.far.opened(datagrams))
            return len(opened) >= len(packets)

        until(arrived, PATIENCE, "the packets at the far end")
        return opened

    def datagrams(self) -> list[Sequence[bytes]]:
        """The runs of a train for the network; none of a mark."""
        frame = self.cipher.recv()
        runs = [] if is_mark(frame) else trains.unpack_cipher_untrusted(frame, EVER)
        return [datagrams for _, datagrams in runs]

    def works(self) -> None:
        """A packet each way."""
        sent: list[bytes] = []

        def arrived() -> bool:
            # Again, if a busy machine made the last train too old.
            sent.append(packet(THEIRS, OURS, os.urandom(16)))
            self.send(self.far.sealed(sent[-1]))
            while self.plain.poll(500):
                came = self.received()
                assert len(came) == 1
                assert came[0] in sent
                if came[0] == sent[-1]:
                    return True
            return False

        until(arrived, PATIENCE, "a packet for the OS")
        body = packet(OURS, THEIRS, os.urandom(16))
        assert self.outbound(body) == [body]
