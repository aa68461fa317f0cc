"""Measures what a tunnel costs the machine: CPU time and context switches by stage, memory, and the bytes delivered."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lab.namespaces import Namespace

TICKS: Final = os.sysconf("SC_CLK_TCK")
GENERATORS: Final = {"iperf3", "ping", "traffic"}
"""Programs that make the load and so are no part of the tunnel."""
_PROC: Final = Path("/proc")


def name_of(command_line: bytes) -> str:
    """Returns the program that a process runs: a script's own name, not its interpreter's.

    `command_line` is /proc's.
    """
    words = [word.decode(errors="replace") for word in command_line.split(b"\0") if word]
    if not words:
        return ""  # the process is ending
    program = Path(words[0]).name
    if program.startswith("python") and len(words) > 1:
        # An option comes first only in `python -m tests.bench.…`, which makes load.
        return "traffic" if words[1].startswith("-") else Path(words[1]).name
    return program


def programs(namespace: Namespace) -> dict[int, str]:
    """Returns the names of the programs in the namespace by pid, without the makers of load."""
    found = {}
    for pid in namespace.pids():
        with suppress(OSError):
            name = name_of((_PROC / str(pid) / "cmdline").read_bytes())
            if name and name not in GENERATORS:
                found[pid] = name
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of all threads of a process, user and system."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def idle(namespace: Namespace, seconds: float) -> dict[str, float]:
    """Returns `idle_cpu`, as a part of a core, and `wakes` per s of all programs in the namespace over so many seconds."""
    found = programs(namespace)
    spent, switched = sum(map(_ran, found)), sum(map(context_switches, found))
    time.sleep(seconds)
    return {
        "idle_cpu": (sum(map(_ran, found)) - spent) / seconds,
        "wakes": (sum(map(context_switches, found)) - switched) / seconds,
    }


def ran(namespace: Namespace) -> Counter[str]:
    """Returns the s of CPU time of each program in the namespace: finer than a Reading's, which counts ticks."""
    total: Counter[str] = Counter()
    for pid, name in programs(namespace).items():
        with suppress(OSError):
            total[name] += _ran(pid)  # type: ignore[assignment]  # a Counter takes any number
    return total


def _ran(pid: int) -> float:
    """Returns s of CPU time of all living threads."""
    threads = (_PROC / str(pid) / "task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def context_switches(pid: int) -> int:
    """Counts voluntary and other context switches of all living threads."""
    total = 0
    for status in (_PROC / str(pid) / "task").glob("*/status"):
        with suppress(OSError):  # the thread has ended
            lines = (line for line in status.read_text().splitlines() if "ctxt_switches" in line)
            total += sum(int(line.split()[1]) for line in lines)
    return total


def pss(pid: int) -> int:
    """Returns bytes of memory; those shared with others are divided by the number of sharers."""
    lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def memory(namespace: Namespace) -> dict[str, int]:
    """Returns bytes (PSS) by program in the namespace, without the makers of load."""
    total: Counter[str] = Counter()
    for pid, name in programs(namespace).items():
        with suppress(OSError):
            total[name] += pss(pid)
    return dict(total)


@dataclass(frozen=True, slots=True)
class Meter:
    """Names one end of a tunnel, and the direction in which its device counts."""

    namespace: Namespace
    device: str
    sent: bool = False


def delivered(meter: Meter) -> int:
    """Returns the bytes that the namespace's OS got from a device, or gave to it."""
    # thread-self shows the thread's namespace; /proc/net would show the process's, which is another.
    table = meter.namespace.call(Path("/proc/thread-self/net/dev").read_text)
    line = next(line for line in table.splitlines() if line.strip().startswith(f"{meter.device}:"))
    return int(line.partition(":")[2].split()[8 if meter.sent else 0])


@dataclass(frozen=True, slots=True)
class Reading:
    """Holds a tunnel's meters at one time: by pid (name, CPU in s, context switches), and the bytes delivered."""

    by_pid: dict[int, tuple[str, float, int]]
    delivered: int

    @classmethod
    def of(cls, meters: Sequence[Meter]) -> Self:
        """Reads all programs at these ends."""
        by_pid = {}
        for meter in meters:
            for pid, name in programs(meter.namespace).items():
                with suppress(OSError):
                    by_pid[pid] = (name, cpu_seconds(pid), context_switches(pid))
        return cls(by_pid, sum(map(delivered, meters)))


@dataclass(frozen=True, slots=True)
class Bill:
    """Holds the cost between two readings. `cpu` is in s by stage, `delivered` in bytes of inner packets."""

    cpu: dict[str, float]
    switches: int
    delivered: int

    @classmethod
    def between(cls, first: Reading, last: Reading) -> Self:
        """Subtracts two readings. All that a new process has spent counts."""
        cpu: dict[str, float] = {}
        switches = 0
        for pid, (name, seconds, switched) in last.by_pid.items():
            _, seconds_before, switched_before = first.by_pid.get(pid, (name, 0.0, 0))
            cpu[name] = cpu.get(name, 0.0) + seconds - seconds_before
            switches += switched - switched_before
        return cls(cpu, switches, last.delivered - first.delivered)

    def values(self) -> dict[str, float]:
        """Returns `cpu/<stage>` in s per gigabyte delivered, their sum as `cpu`, and context switches per megabyte."""
        if self.delivered < 1_000_000:
            return {}
        gigabytes = self.delivered / 1e9
        by_stage = {f"cpu/{name}": seconds / gigabytes for name, seconds in self.cpu.items()}
        return {**by_stage, "cpu": sum(by_stage.values()), "switches": self.switches / gigabytes / 1000}
