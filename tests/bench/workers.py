"""Measures crypto workers alone: real device-services, fed from their pipes at full rate, with their output discarded.

A real key-service gives them sessions, with far ends made of the same core. On a machine with few cores the feeder
takes CPU from the workers. So the figures are both packets per second, and packets per second of the workers' own
CPU.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
from tests import far_peer
from tests.bench.cost import cpu_seconds
from tests.bench.tcp import Values
from tests.far_peer import FarPeer, private_key_that

from key_service.homes import home_of
from lab.namespaces import Namespace
from lab.stagewire import executable
from lab.wait import until
from stagewire.config import encode_key, generate_private_key, public_key
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.linux import uids
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CIPHER_IN, CIPHER_OUT, HANDSHAKE_IN, HANDSHAKE_OUT, PLAIN_IN, PLAIN_OUT
from stagewire.pipe.pipes import Pipes, prepare_folders
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.stages import STAGES

INTERFACE: Final = "wg0"
TRAIN: Final = 64
PATIENCE: Final = 30
_AGELESS: Final = 3600.0
"""s that a frame is dated ahead, so that it can be sent many times without the cost of making it."""


def packet(source: str, destination: str, size: int) -> bytes:
    """Makes an IPv4 packet of `size` bytes in all."""
    return far_peer.packet(source, destination, bytes(size - 20))


class FarEnd(FarPeer):
    """Plays the peer that worker `number` serves."""

    def __init__(self, ours: bytes, number: int, private: bytes) -> None:
        super().__init__(ours, private, Endpoint(bytes([192, 0, 2, 7]), 7777 + number).pack())
        self.inner = f"10.9.{number}.2"


@dataclass(slots=True)
class House:
    """Holds some workers, their key-service, and the other ends of their pipes. `name` says how many workers."""

    name: str
    pids: list[int]
    feeds: "list[zmq.Socket[bytes]]"
    sealed: "zmq.Socket[bytes]"
    destinations: list[str]

    def rest(self) -> None:
        """Does nothing: idle workers need almost no CPU."""

    def wake(self) -> None:
        """Does nothing: it never rests."""


@contextlib.contextmanager
def houses(directory: Path, counts: tuple[int, ...] = (1, 2)) -> Iterator[list[House]]:
    """Brings up a house with each number of workers."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace("benchw"))
        yield [stack.enter_context(_house(namespace, directory / f"w{count}", count)) for count in counts]


def called(count: int) -> str:
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
        pipes = Pipes(context, directory / "run" / INTERFACE)
        uids.claim(Environment.read(variables), afresh=True)  # the folders are those of the services' uids
        for stage in STAGES:
            prepare_folders(pipes.run, stage)
        before = os.umask(0)  # the services run as other users and must be able to connect
        try:
            sealed = stack.enter_context(pipes.bind(CIPHER_OUT))
            responses = stack.enter_context(pipes.bind(HANDSHAKE_OUT))
            opened = stack.enter_context(pipes.bind(PLAIN_IN))
        finally:
            os.umask(before)
        _start(stack, namespace, "key-service", env=variables)
        pids = [
            _start(stack, namespace, "device-service", "--number", str(each), env=variables) for each in range(count)
        ]
        until(lambda: _ready(variables, count), PATIENCE, f"{count} workers to be up")
        initiations = stack.enter_context(pipes.connect(HANDSHAKE_IN))
        for number, each in enumerate(far):
            with pipes.connect(CIPHER_IN, number) as to_worker:
                _shake_hands(each, initiations, responses, to_worker, opened)
        feeds = [stack.enter_context(pipes.connect(PLAIN_OUT, each)) for each in range(count)]
        yield House(called(count), pids, feeds, sealed, [each.inner for each in far])


def _far_end(ours: bytes, worker: int, workers: int) -> FarEnd:
    """Makes a far end whose key has this worker as its home."""
    return FarEnd(ours, worker, private_key_that(lambda public: home_of(public, workers) == worker))


def _start(stack: ExitStack, namespace: Namespace, program: str, *arguments: str, env: dict[str, str]) -> int:
    process = namespace.popen(executable(program), *arguments, env=env)

    def end(process: "subprocess.Popen[bytes]" = process) -> None:
        process.kill()
        process.wait()

    stack.callback(end)
    return process.pid


def _ready(variables: dict[str, str], count: int) -> bool:
    answer = query.key_service(Environment.read(variables))
    stages = answer.stages if answer else ()
    return len([each for each in stages if each.stage == "device" and each.ready]) == count


def _shake_hands(
    far: FarEnd,
    initiations: "zmq.Socket[bytes]",
    responses: "zmq.Socket[bytes]",
    to_worker: "zmq.Socket[bytes]",
    opened: "zmq.Socket[bytes]",
) -> None:
    """Returns when the worker has opened the packet that confirms the session."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        initiations.send(trains.pack_handshake(far.place, far.initiation(), boot_time()))
        while responses.poll(200):
            message = trains.unpack_handshake_untrusted(responses.recv(), boot_time())[1]
            if message[0] == c.TYPE_RESPONSE:
                far.take(message)
                first = far.sealed(packet(far.inner, "10.9.0.1", 64))
                to_worker.send(trains.pack_cipher([(far.place, first)], boot_time()))
                if opened.poll(1000):
                    opened.recv()
                    return
    raise RuntimeError(f"a worker and its far end made no session within {PATIENCE} s")


def measure(house: House, size: int, seconds: float) -> Values:
    """Returns `pps`, sealed by all workers each second, and `pps_cpu`, the same if each worker had a core to itself.

    `size` is of an inner packet in bytes. Every train is full.
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
    """Returns the bytes that the workers sealed."""
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
