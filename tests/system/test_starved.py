"""A stage gets too little of the machine: a tenth of the processor (P20), or no more memory (P11)."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.attack.marks import Figure
from tests.system.oversight import BACK_WITHIN, Overseen

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream
from lab.wait import until
from lab.wg import WgHub
from stagewire import stats
from stagewire.control import query
from stagewire_cli import show

pytestmark = [pytest.mark.alone, pytest.mark.system]

SPOKE = Spoke(1, Topology.A4)
RATE, SIZE = 2000, 1000
RUNS, STANDS = 0.005, 0.045
"""s; a stage that stands for 0.3 s would count as hung."""
OLDEST = 0.25
WAITS = {
    "train_too_old",
    "datagram_too_old",
    "worker_full",
    "conn_full",
    "tun_full",
    "staging_full",
    "staging_room_full",
}
"""What a pipe counts at its entry, and what an old train counts as."""
OUTAGE = 1.0
"""s; `make chaos` measures what a death costs."""
MEMORY = 256 << 10
"""Bytes that a stage may take beyond what it has."""
CONTROLLERS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
"""Where both versions of control groups set a limit."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("st") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    with (
        WgHub(network.b, shared_directory, {"one": SPOKE}, workers=1, spares=1) as hub,
        hub.wireguard_go(SPOKE, network.a, Topology.B4),
    ):
        yield hub


@pytest.fixture
def seen(hub: WgHub, network: Topology) -> Overseen:
    found = Overseen(hub, network.a, SPOKE)
    found.settles()
    return found


@contextmanager
def streams(seen: Overseen, network: Topology, rate: float) -> Iterator[list[NumberedStream]]:
    """Yields a stream each way, once both flow."""
    with (
        NumberedStream(network.b, network.a, SPOKE.inner[0], rate, SIZE) as out,
        NumberedStream(network.a, network.b, SPOKE.gateway_inner[0], rate, SIZE) as back,
    ):
        both = [out, back]
        until(lambda: all(each.received > rate / 4 for each in both), BACK_WITHIN, "packets both ways")
        yield both


def goes_on(both: list[NumberedStream], packets: float) -> None:
    was = [each.received for each in both]
    until(
        lambda: all(each.received > at + packets for each, at in zip(both, was, strict=True)),
        BACK_WITHIN,
        "packets both ways",
    )


@contextmanager
def a_tenth(pid: int) -> Iterator[None]:
    """Lets a process run for a tenth of the time."""
    over = threading.Event()

    def throttle() -> None:
        with suppress(ProcessLookupError):
            while not over.wait(RUNS):
                os.kill(pid, signal.SIGSTOP)
                over.wait(STANDS)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def drops(seen: Overseen) -> dict[str, int]:
    found = show.gather(seen.environment)
    assert found is not None
    total: dict[str, int] = {}
    for service in found["services"]:
        for name, count in service["counters"].items():
            if stats.kind_of(name) is stats.DROP:
                total[name] = total.get(name, 0) + count
    return total


@pytest.mark.long
@pytest.mark.attack("P20")
@pytest.mark.parametrize("stage", ["tun", "device", "conn"])
def test_a_slow_stage_delivers_nothing_old_and_keeps_no_command_waiting(
    seen: Overseen, network: Topology, stage: str, figure: Figure
) -> None:
    before, pid = drops(seen), seen.gateway.pid(stage)
    waits = []
    with streams(seen, network, RATE) as both, a_tenth(pid):
        for _ in range(30):
            begun = time.monotonic()
            assert query.key_service(seen.environment) is not None
            waits.append(time.monotonic() - begun)
            goes_on(both, 10)
        reports = [each.finish() for each in both]
    assert seen.gateway.pid(stage) == pid, "a slow stage is none that hangs"
    for way, report in zip(("out", "back"), reports, strict=True):
        assert report.duplicates == report.foreign == 0
        # Before the pipes a packet waits in the kernel's queue while the stage stands, and behind them once more.
        figure(
            *(f"oldest packet {way}", report.longest_latency, "s"), most=OLDEST + 2 * STANDS + report.longest_send_gap
        )
        figure(f"lost {way}", report.lost / report.sent, "of 1")
    figure("median wait of a command", statistics.median(waits), "s", most=0.05)
    assert {name for name, count in drops(seen).items() if count > before.get(name, 0)} <= WAITS
    with streams(seen, network, RATE) as both:  # at once, and whole
        goes_on(both, RATE)


def limited_to(size: int, pid: int) -> Path:
    """Moves a process into a control group that may take so many bytes more."""
    for top, limit in CONTROLLERS:
        group = Path(top) / f"sw-{os.getpid()}-{pid}"
        if (Path(top) / "cgroup.procs").exists():
            with suppress(OSError):
                group.mkdir()
                (group / "cgroup.procs").write_text(str(pid))
                (group / limit).write_text(str(size))
                return group
            with suppress(OSError):
                group.rmdir()
    pytest.skip("this machine's control groups set no limit of memory")


def take_memory(pid: int) -> None:
    """Gives a process pages of its own, as its own writing would, until it dies: what it shares with others is copied."""
    with suppress(OSError), open(f"/proc/{pid}/mem", "r+b", 0) as memory:  # noqa: PTH123 - unbuffered
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            places, rights, *_, inode, _name = [*line.split(maxsplit=5), ""][:6]
            start, end = (int(each, 16) for each in places.split("-"))
            for at in range(start, end, PAGE) if rights.startswith("r") and inode != "0" else ():
                byte = os.pread(memory.fileno(), 1, at)
                os.pwrite(memory.fileno(), byte, at)


@pytest.mark.attack("P11")
@pytest.mark.parametrize("stage", ["tun", "device", "conn", "key"])
def test_a_stage_that_runs_out_of_memory_dies_alone_and_is_replaced(
    seen: Overseen, network: Topology, stage: str, figure: Figure
) -> None:
    before = seen.gateway.held()
    pid = before[stage, 0]
    with streams(seen, network, 400) as both:
        group = limited_to(MEMORY, pid)
        try:
            take_memory(pid)
            until(lambda: seen.gateway.held().get((stage, 0), pid) != pid, BACK_WITHIN, "another process")
            goes_on(both, 400)
        finally:
            until(lambda: not (group / "cgroup.procs").read_text(), 5, "the group to be empty")
            group.rmdir()
        reports = [each.finish() for each in both]
    for way, report in zip(("out", "back"), reports, strict=True):
        assert report.duplicates == report.foreign == 0
        figure(f"outage {way}", report.longest_gap - report.longest_send_gap, "s", most=OUTAGE)
    after = seen.gateway.held()
    assert {place for place in before if after[place] != before[place]} == {(stage, 0)}
    log = seen.gateway.log_directory / seen.hub.name / "supervisord.log"
    until(lambda: f"{stage}-service" in log.read_text() and "terminated by SIGKILL" in log.read_text(), 5, "the log")
