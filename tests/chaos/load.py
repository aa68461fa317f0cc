"""Makes faults of load: more packets than fit through, or a stage that gets almost no CPU."""

import contextlib
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import zmq
from tests.chaos.children import Child
from tests.chaos.house import House, Kind, Limits, Struck, kill
from tests.chaos.network import Network
from tests.chaos.stream import MARKER

from stagewire.control import messages
from stagewire.control.questions import StatusQuery
from stagewire.pipe.names import CONTROL
from stagewire.pipe.pipes import Pipes

LASTS: Final = 2.0
RUNS_FOR, STANDS_FOR = 0.005, 0.045
"""s of CPU that a throttled process gets, and s for which it then stands still."""
LOOKS_EVERY: Final = 0.001
FLOODED: Final = 1
FLOOD_PORT: Final = 7990
SEGMENT: Final = 120
SEGMENTS: Final = 60
FLOOD: Final = 120_000
"""Packets/s offered: about ten times what two busy cores carry of this size."""
UDP_SEGMENT: Final = 103
ASK_EVERY: Final = 0.005
PATIENCE_MS: Final = 500


class Flood(Child):
    """Floods a peer from the gateway with more packets than it can carry, on request."""

    def __init__(self, network: Network) -> None:
        super().__init__("flood", self._work)
        here, there = network.spokes[FLOODED].gateway_inner[0], network.spokes[FLOODED].inner[0]
        self._drain = network.hosts[FLOODED].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._drain.bind(
            (there, FLOOD_PORT)
        )  # never read: the kernel drops packets that find no room, without an error
        self._socket = network.gateway.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind((here, 0))
        self._socket.connect((there, FLOOD_PORT))
        self._socket.setsockopt(socket.SOL_UDP, UDP_SEGMENT, SEGMENT)

    def _work(self, line: Connection) -> None:
        train = (MARKER + bytes(SEGMENT - len(MARKER))) * SEGMENTS
        while True:
            seconds = line.recv()
            begun = due = time.monotonic()
            sent = 0
            while (now := time.monotonic()) < begun + seconds:
                if now < due:
                    time.sleep(due - now)
                due = max(due + SEGMENTS / FLOOD, time.monotonic() - 0.01)
                try:
                    self._socket.send(train)
                    sent += SEGMENTS
                except OSError:
                    continue
            line.send(sent)


class Control:
    """Measures as a client of key-service's control pipe how long an answer takes.

    It runs at a greater priority meanwhile: its own waits for a processor are not the gateway's.
    """

    def __init__(self, house: House) -> None:
        self._house = house

    def delays(self, seconds: float) -> list[float]:
        """Asks every ASK_EVERY s. Returns the s until each answer, PATIENCE_MS for none."""
        found = []
        with _in_front(), zmq.Context() as context:
            pipes = Pipes(context, self._house.run)
            with pipes.connect(CONTROL) as line:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    begun = time.monotonic()
                    if line.poll(PATIENCE_MS, zmq.POLLOUT):
                        line.send(messages.FROM_STAGE.pack(StatusQuery()))
                    if line.poll(PATIENCE_MS):
                        line.recv()
                    found.append(time.monotonic() - begun)
                    time.sleep(ASK_EVERY)
        return found


@contextlib.contextmanager
def _in_front() -> Iterator[None]:
    """Raises the priority of this thread, and of threads that it starts."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def flood(house: House) -> Struck:
    """Offers one peer ten times the gateway's capacity, while control messages must go on."""
    before = house.processes.resources()
    asked = Control(house)
    house.flood.tell(LASTS)
    delays = asked.delays(LASTS)
    sent = house.flood.answer()
    after = house.processes.resources()
    return Struck(
        note=f"{sent / LASTS:,.0f} packets/s offered",
        measured={
            "control_p99_ms": statistics.quantiles(delays, n=100)[98] * 1000,
            "memory_grew_mib": (after.memory - before.memory) / 2**20,
        },
    )


def used(pid: int) -> float:
    """Returns the s of CPU that all threads of a process have had."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def throttling(stage: str) -> Callable[[House], Struck]:
    """Makes a fault: a stage gets a tenth of its time. Packets beyond that are lost before it, and others go on."""

    def strike(house: House) -> Struck:
        number = house.worker() if stage == "device" else 0
        pid = house.active(stage, number)
        until = time.monotonic() + LASTS
        try:
            while time.monotonic() < until:
                kill({pid}, signal.SIGSTOP)
                house.pace(STANDS_FOR)
                had, again = used(pid), time.monotonic() + STANDS_FOR
                kill({pid}, signal.SIGCONT)
                # It counts CPU, not time: on a busy machine the process might not run at all in that time.
                while used(pid) < had + RUNS_FOR and time.monotonic() < again:
                    house.pace(LOOKS_EVERY)
        finally:
            kill({pid}, signal.SIGCONT)
        peers = house.at_home(number) if stage == "device" else None
        return Struck(
            peers=peers, note=f"{stage} {number} runs {RUNS_FOR * 1000:.0f} ms, stands {STANDS_FOR * 1000:.0f}"
        )

    return strike


_LOADED: Final = Limits(measured={"control_p99_ms": 50, "memory_grew_mib": 64})

KINDS: Final = (
    Kind("flood", "ten times the capacity offered", flood, _LOADED),
    Kind("slow-worker", "a worker throttled to a tenth", throttling("device"), Limits(others_lost=0)),
    Kind("slow-tun", "tun-service throttled to a tenth", throttling("tun")),
    Kind("slow-conn", "conn-service throttled to a tenth", throttling("conn")),
)
