"""What a tunnel costs the machine: CPU time and context switches by stage, memory, and the bytes that this bought."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lab.namespaces import Namespace

TICKS: Final = os.sysconf("SC_CLK_TCK")
GENERATORS: Final = {"iperf3", "ping", "traffic"}
"""What makes the load isn't part of the tunnel."""
_PROC: Final = Path("/proc")


def name_of(command_line: bytes) -> str:
    """The program that a process runs: a script's own name, not its interpreter's. `command_line` is /proc's."""
    words = [word.decode(errors="replace") for word in command_line.split(b"\0") if word]
    if not words:
        return ""  # it is ending
    program = Path(words[0]).name
    if program.startswith("python") and len(words) > 1:
        # With an option first it is `python -m bench.…`, which only ever makes load.
        return "traffic" if words[1].startswith("-") else Path(words[1]).name
    return program


def programs(namespace: Namespace) -> dict[int, str]:
    """The name of what runs in the namespace now, by pid; the makers of load left out."""
    found = {}
    for pid in namespace.pids():
        with suppress(OSError):
            name = name_of((_PROC / str(pid) / "cmdline").read_bytes())
            if name and name not in GENERATORS:
                found[pid] = name
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have had, user and system."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def context_switches(pid: int) -> int:
    """Voluntary and other context switches of all threads that live."""
    total = 0
    for status in (_PROC / str(pid) / "task").glob("*/status"):
        with suppress(OSError):  # the thread has ended
            lines = (line for line in status.read_text().splitlines() if "ctxt_switches" in line)
            total += sum(int(line.split()[1]) for line in lines)
    return total


def pss(pid: int) -> int:
    """Bytes of memory, those shared with others divided by how many share them."""
    lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def memory(namespace: Namespace) -> dict[str, int]:
    """Bytes (PSS) by program, of all that runs in the namespace but what makes load."""
    total: Counter[str] = Counter()
    for pid, name in programs(namespace).items():
        with suppress(OSError):
            total[name] += pss(pid)
    return dict(total)


@dataclass(frozen=True, slots=True)
class Meter:
    """One end of a tunnel, and the direction in which its device counts."""

    namespace: Namespace
    device: str
    sent: bool = False


def delivered(meter: Meter) -> int:
    """Bytes that the OS of the namespace has had from a device, or given to it."""
    # Of the thread that looks: /proc/net would be of the process, which lives elsewhere.
    table = meter.namespace.call(Path("/proc/thread-self/net/dev").read_text)
    line = next(line for line in table.splitlines() if line.strip().startswith(f"{meter.device}:"))
    return int(line.partition(":")[2].split()[8 if meter.sent else 0])


@dataclass(frozen=True, slots=True)
class Reading:
    """The meters of a tunnel at one time: by pid (name, CPU in s, context switches), and the bytes delivered."""

    by_pid: dict[int, tuple[str, float, int]]
    delivered: int

    @classmethod
    def of(cls, meters: Sequence[Meter]) -> Self:
        """Of all that runs at these ends."""
        by_pid = {}
        for meter in meters:
            for pid, name in programs(meter.namespace).items():
                with suppress(OSError):
                    by_pid[pid] = (name, cpu_seconds(pid), context_switches(pid))
        return cls(by_pid, sum(map(delivered, meters)))


@dataclass(frozen=True, slots=True)
class Bill:
    """What was spent between two readings. `cpu` is in s by stage, `delivered` in bytes of inner packets."""

    cpu: dict[str, float]
    switches: int
    delivered: int

    @classmethod
    def between(cls, first: Reading, last: Reading) -> Self:
        """What came between; a process that is new has spent all that it has."""
        cpu: dict[str, float] = {}
        switches = 0
        for pid, (name, seconds, switched) in last.by_pid.items():
            _, seconds_before, switched_before = first.by_pid.get(pid, (name, 0.0, 0))
            cpu[name] = cpu.get(name, 0.0) + seconds - seconds_before
            switches += switched - switched_before
        return cls(cpu, switches, last.delivered - first.delivered)

    def values(self) -> dict[str, float]:
        """`cpu/<stage>` in s per gigabyte delivered, their sum as `cpu`, and context switches per megabyte."""
        if self.delivered < 1_000_000:
            return {}
        gigabytes = self.delivered / 1e9
        by_stage = {f"cpu/{name}": seconds / gigabytes for name, seconds in self.cpu.items()}
        return {**by_stage, "cpu": sum(by_stage.values()), "switches": self.switches / gigabytes / 1000}
