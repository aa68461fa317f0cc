"""More workers and fewer, as tun- and conn-service see it: the pipes that stay keep what they hold."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from tests.turning import turn_until

from conn_service.inbound import Inbound
from conn_service.kernel import Kernel
from stagewire.control.messages import RoutesSet, TunSettings, Welcome
from stagewire.logs import Log
from stagewire.loop import Loop, boot_time
from stagewire.pipe.names import CIPHER_IN, PLAIN_OUT
from stagewire.pipe.pipes import Pipes
from stagewire.proto import prefix
from tun_service.service import TunService

NO_NETLINK: Any = None
"""Nothing here asks for addresses or routes."""


class Bench:
    """What a stage has, and its workers' ends of the pipes."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.pipes = Pipes(self.context, folder)
        (folder / "device").mkdir()
        self.loop = Loop()
        self.counters: Counter[str] = Counter()
        self.kept: list[object] = []
        """Until the context is destroyed."""
        self.stage: Any = SimpleNamespace(
            loop=self.loop,
            pipes=self.pipes,
            counters=self.counters,
            environment=SimpleNamespace(interface="none"),
            log=Log(),
            inherited={},
            drop=lambda _bad: None,
        )

    def read(self, pipe: "zmq.Socket[bytes]", count: int) -> list[bytes]:
        """So many frames, while the loop turns."""
        found: list[bytes] = []

        def all_there() -> bool:
            while pipe.poll(0):
                found.append(pipe.recv())
            return len(found) >= count

        self.turn(all_there, f"{count} frames")
        return found

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        made = Bench(Path(name))
        yield made
        for service in made.kept:
            if isinstance(service, TunService | Inbound):
                service._workers.connect(0)
        made.pipes.close_listeners()
        made.context.destroy(linger=0)


@pytest.mark.parametrize("stage", ["tun", "conn"])
def test_what_waits_for_a_worker_goes_on_waiting_while_others_come_and_go(bench: Bench, stage: str) -> None:
    read, write = os.pipe()
    service: Any = TunService(bench.stage, read, attached=True) if stage == "tun" else Inbound(bench.stage, Kernel())
    bench.kept.append(service)
    pipe = PLAIN_OUT if stage == "tun" else CIPHER_IN
    workers = [bench.pipes.bind(pipe, number) for number in range(3)]
    bench.kept += workers
    connect = service._connect_workers if stage == "tun" else service._workers.connect
    queues = service._workers._queues
    connect(1)
    (first,) = queues
    first._patience = None
    frames = [number.to_bytes(4) * 25_000 for number in range(40)]
    bench.turn(lambda: first._sender.connected, "the connection")
    for frame in frames:
        first.offer(frame, 1, boot_time())
    assert first._held
    connect(3)
    assert len(queues) == 3
    connect(2)
    assert queues[0] is first
    bench.turn(lambda: queues[1]._sender.connected, "the other connection")
    queues[1].offer(b"second", 1, boot_time())
    assert bench.read(workers[1], 1) == [b"second"]
    assert bench.read(workers[0], len(frames)) == frames
    assert bench.counters == {}
    for descriptor in (read, write):
        os.close(descriptor)


def test_a_snapshot_with_more_workers_is_good_for_packets_at_once(bench: Bench) -> None:
    """Its prefixes hold from the moment they are named, its settings as a whole only from its end."""
    read, write = os.pipe()
    service: Any = TunService(bench.stage, read, attached=True)
    bench.kept.append(service)
    service._connect_workers(1)
    service.on_control(Welcome(1, 1), 0.0)
    service.on_control(TunSettings(3), 0.0)
    service.on_control(RoutesSet(2, (prefix.pack(ip_network("10.1.0.0/16")),)), 0.0)
    assert len(service._workers) == 3
    for descriptor in (read, write):
        os.close(descriptor)
