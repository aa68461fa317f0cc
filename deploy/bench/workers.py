"""Crypto workers alone: real device-services, fed from their pipes as fast as they take it, what they seal thrown away.

A real key-service gives them their sessions, with far ends made of the same core. On a machine with few cores whoever
feeds takes from those who are fed, so beside what came out each second there is what came out for each second of the
workers' own CPU.
"""

import contextlib
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import zmq
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from bench.cost import cpu_seconds
from bench.tcp import Values
from key_service.homes import home_of
from lab.namespaces import Namespace
from lab.stagewire import executable
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
from stagewire.proto.session import Session
from stagewire_cli import query

INTERFACE: Final = "wg0"
STAGES: Final = ("tun", "device", "conn", "key", "status")
TRAIN: Final = 64
PATIENCE: Final = 30
_AGELESS: Final = 3600.0
"""s that a frame is dated ahead, so that one can be sent again and again: making them would cost what is measured."""


def packet(source: str, destination: str, size: int) -> bytes:
    """An IPv4 packet of an experimental protocol, `size` bytes in all."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 253, 0) + addresses + bytes(size - 20)


class FarEnd:
    """One peer, made of the core alone: its handshake, and the packet that confirms the session."""

    def __init__(self, ours: bytes, number: int, private: bytes) -> None:
        self.inner, self.public = f"10.9.{number}.2", public_key(private)
        self.place = Endpoint(bytes([192, 0, 2, 7]), 7777 + number).pack()
        self._ours = ours
        self._handshaker = Handshaker(Identity.from_private_bytes(private), bytes(12), os.urandom, lambda: 0.0)
        self._handshaker.add_peer(ours, bytes(32), 0).endpoint = self.place
        self._handshaker.worker_up(0, boot_time(), time.time_ns())
        self._ahead = 0.0
        self._device = Device(lambda: 0.0)
        facts = PeerFacts(ours, (ip_network("0.0.0.0/0"),), home=True, endpoint=self.place)
        self._device.set_peer(facts, boot_time())

    def initiation(self) -> bytes:
        """A new one; the 5 s between two are not waited for."""
        self._ahead += 2 * c.REKEY_TIMEOUT
        effects = self._handshaker.want(self._ours, boot_time() + self._ahead, time.time_ns())
        return next(effect.data for effect in effects if isinstance(effect, SendHandshake))

    def take(self, response: bytes) -> list[bytes]:
        """Reads the response; returns the first datagrams under the new session."""
        now = boot_time()
        for effect in self._handshaker.receive_untrusted(response, self.place, now, time.time_ns()):
            if isinstance(effect, InstallSession):
                send, receive = (ChaCha20Poly1305(key) for key in (effect.keys.send, effect.keys.receive))
                session = Session(
                    effect.index, effect.remote_index, send, receive, initiator=True, created=effect.created
                )
                self._device.install(self._ours, session, self.place, now)
        out = self._device.outbound([packet(self.inner, "10.9.0.1", 64)], now)
        return [datagram for _, datagrams in out.runs for datagram in datagrams]


@dataclass(slots=True)
class House:
    """Some workers, their key-service, and the other ends of their pipes. `name` says how many workers."""

    name: str
    pids: list[int]
    feeds: "list[zmq.Socket[bytes]]"
    sealed: "zmq.Socket[bytes]"
    destinations: list[str]

    def rest(self) -> None:
        """Idle, it is two or three processes' heartbeats."""

    def wake(self) -> None:
        """It never rested."""


@contextlib.contextmanager
def houses(directory: Path, counts: tuple[int, ...] = (1, 2)) -> Iterator[list[House]]:
    """One with each number of workers."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace("benchw"))
        yield [stack.enter_context(_house(namespace, directory / f"w{count}", count)) for count in counts]


def called(count: int) -> str:
    """The contestant with so many workers."""
    return "1 worker" if count == 1 else f"{count} workers"


@contextlib.contextmanager
def _house(namespace: Namespace, directory: Path, count: int) -> Iterator[House]:
    directory.mkdir()
    private = generate_private_key(os.urandom(32))
    far = [_far_end(public_key(private), number, count) for number in range(count)]
    peers = (f"[Peer]\nPublicKey = {encode_key(each.public)}\nAllowedIPs = {each.inner}/32\n" for each in far)
    config = directory / f"{INTERFACE}.conf"
    config.touch(0o600)
    config.write_text(f"[Interface]\nPrivateKey = {encode_key(private)}\nAddress = 10.9.0.1/16\n{''.join(peers)}")
    variables = {
        "STAGEWIRE_INTERFACE": INTERFACE,
        "STAGEWIRE_CONFIG": str(config),
        "STAGEWIRE_WORKERS": str(count),
        **{f"STAGEWIRE_{name.upper()}_DIR": str(directory / name) for name in ("run", "state", "log", "wg")},
    }
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)
        pipes = endpoints.Pipes(context, directory / "run" / INTERFACE)
        for stage in STAGES:
            endpoints.prepare_folders(pipes.run, stage)
        before = os.umask(0)  # the services connect though they run as other users
        try:
            sealed = stack.enter_context(pipes.bind(zmq.PULL, endpoints.CIPHER_OUT))
            responses = stack.enter_context(pipes.bind(zmq.PULL, endpoints.HANDSHAKE_OUT))
            opened = stack.enter_context(pipes.bind(zmq.PULL, endpoints.PLAIN_IN))
        finally:
            os.umask(before)
        _start(stack, namespace, "key-service", env=variables)
        pids = [
            _start(stack, namespace, "device-service", "--number", str(each), env=variables) for each in range(count)
        ]
        until(lambda: _ready(variables, count), PATIENCE, f"{count} workers to be up")
        initiations = stack.enter_context(pipes.connect(zmq.PUSH, endpoints.HANDSHAKE_IN))
        for number, each in enumerate(far):
            with pipes.connect(zmq.PUSH, endpoints.CIPHER_IN, number) as to_worker:
                _shake_hands(each, initiations, responses, to_worker, opened)
        feeds = [stack.enter_context(pipes.connect(zmq.PUSH, endpoints.PLAIN_OUT, each)) for each in range(count)]
        yield House(called(count), pids, feeds, sealed, [each.inner for each in far])


def _far_end(ours: bytes, worker: int, workers: int) -> FarEnd:
    """With a key that makes this worker its home."""
    while home_of(public_key(private := generate_private_key(os.urandom(32))), workers) != worker:
        pass
    return FarEnd(ours, worker, private)


def _start(stack: ExitStack, namespace: Namespace, program: str, *arguments: str, env: dict[str, str]) -> int:
    process = namespace.popen(executable(program), *arguments, env=env)

    def end(process: "subprocess.Popen[bytes]" = process) -> None:
        process.kill()
        process.wait()

    stack.callback(end)
    return process.pid


def _ready(variables: dict[str, str], count: int) -> bool:
    answer = query.key_service(Environment.read(variables))
    stages = answer["stages"] if answer else []
    return len([each for each in stages if each["stage"] == "device" and each["ready"]]) == count


def _shake_hands(
    far: FarEnd,
    initiations: "zmq.Socket[bytes]",
    responses: "zmq.Socket[bytes]",
    to_worker: "zmq.Socket[bytes]",
    opened: "zmq.Socket[bytes]",
) -> None:
    """Until the worker has opened the packet that confirms the session."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        initiations.send(trains.pack_handshake(far.place, far.initiation(), boot_time()))
        while responses.poll(200):
            message = trains.unpack_handshake_untrusted(responses.recv(), boot_time())[1]
            if message[0] == c.TYPE_RESPONSE:
                to_worker.send(trains.pack_cipher([(far.place, far.take(message))], boot_time()))
                if opened.poll(1000):
                    opened.recv()
                    return
    raise RuntimeError("no session came about between a worker and its far end")


def measure(house: House, size: int, seconds: float) -> Values:
    """`pps` sealed by all workers each second, and `pps_cpu`, their sum had each a core to itself.

    `size` is of an inner packet in bytes; every train is a full one.
    """
    frames = [
        trains.pack_plain([packet("10.9.0.1", to, size)] * TRAIN, boot_time() + _AGELESS) for to in house.destinations
    ]
    sealed_size = -(-size // 16) * 16 + c.TRANSPORT_OVERHEAD
    _feed(house, frames, 0.3)
    before = sum(map(cpu_seconds, house.pids))
    begun = time.monotonic()
    came = _feed(house, frames, seconds)
    took = time.monotonic() - begun
    spent = sum(map(cpu_seconds, house.pids)) - before
    packets = came / sealed_size
    return {"pps": packets / took, "pps_cpu": packets / spent * len(house.pids)}, {}


def _feed(house: House, frames: list[bytes], seconds: float) -> float:
    """Bytes that came out."""
    poller = zmq.Poller()
    for feed in house.feeds:
        poller.register(feed, zmq.POLLOUT)
    poller.register(house.sealed, zmq.POLLIN)
    by_feed = dict(zip(house.feeds, frames, strict=True))
    came, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        for source, _ in poller.poll(100):
            with contextlib.suppress(zmq.Again):
                if source is house.sealed:
                    while True:
                        came += len(house.sealed.recv(zmq.DONTWAIT, copy=False).buffer)
                while True:
                    source.send(by_feed[source], zmq.DONTWAIT, copy=False)
    return came
