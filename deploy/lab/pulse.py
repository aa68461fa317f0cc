"""Measures how long a tunnel stands still, by a steady stream of small packets between processes of their own.

`NumberedStream` measures from threads of the test's own process. They stand still whenever the test is busy, for
example with a long answer. A pulse's processes precede all others. A stall is how much longer the gap between two
packets was at the receiver than at the sender.
"""

import contextlib
import itertools
import json
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from lab.namespaces import Namespace, stop

COUNT: Final = struct.Struct("@Q")
STARVED: Final = 0.02
"""s by which the sender or an idle process may be late; beyond that the machine lacks CPU."""


@dataclass(frozen=True, slots=True)
class PulseReport:
    """Reports all flows together. Times are in seconds."""

    sent: int
    received: int
    lost: int
    duplicates: int
    longest_stall: float
    """How much farther apart two packets of a flow arrived than they were sent."""
    longest_latency: float
    longest_send_gap: float
    longest_oversleep: float
    """Of an idle process, in a session of its own as the gateway's stages are."""

    @property
    def starved(self) -> bool:
        """Tells whether a stall may be the machine's fault."""
        return max(self.longest_send_gap, self.longest_oversleep) >= STARVED

    def __str__(self) -> str:
        times = (self.longest_stall, self.longest_latency, self.longest_send_gap, self.longest_oversleep)
        stall, latency, ours, machine = (each * 1000 for each in times)
        return (
            f"stood still for {stall:.0f} ms at most, latency up to {latency:.0f} ms (the sender {ours:.0f} ms, an idle "
            f"process {machine:.0f} ms late), {self.lost} of {self.sent} lost"
        )


class Pulse:
    """Sends `rate` packets/s in all, of `size` bytes of UDP payload, to each of `destinations` in turn."""

    def __init__(
        self, sender: Namespace, receiver: Namespace, destinations: Sequence[str], rate: float = 1000, size: int = 100
    ) -> None:
        self._sender, self._receiver, self._destinations = sender, receiver, destinations
        self._rate, self._size = rate, size

    def __enter__(self) -> Self:
        anywhere = ["::" if ":" in each else "0.0.0.0" for each in self._destinations]
        listening = [self._receiver.udp_socket(each) for each in anywhere]
        sending = [self._sender.udp_socket(each) for each in anywhere]
        self._received, self._sent = _Shared(), _Shared()
        ends = [str(each.fileno()) for each in listening]
        shared = self._received.descriptor
        self._receiving = _start("receive", str(shared), *ends, inherits=[shared, *map(int, ends)])
        flows = [
            text
            for out, destination, into in zip(sending, self._destinations, listening, strict=True)
            for text in (str(out.fileno()), destination, str(into.getsockname()[1]))
        ]
        shared, ends = self._sent.descriptor, [str(each.fileno()) for each in sending]
        self._sending = _start(
            *("send", str(self._rate), str(self._size), str(shared)), *flows, inherits=[shared, *map(int, ends)]
        )
        self._witness = _start("witness")
        for opened in (*listening, *sending):
            opened.close()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._sending, self._receiving, self._witness):
            if process.poll() is None:
                stop(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._sent.close()
        self._received.close()

    @property
    def sent(self) -> int:
        """Counts the packets sent so far."""
        return self._sent.value

    @property
    def received(self) -> int:
        """Counts the packets received so far."""
        return self._received.value

    def finish(self) -> PulseReport:
        """Stops sending, waits for packets under way, and reports."""
        sent, arrived = _end(self._sending), _end(self._receiving)["arrived"]
        stall = latency = 0.0
        distinct = 0
        for flow in arrived:
            distinct += len({number for number, _, _ in flow})
            latency = max([latency, *((came - left) / 1e9 for _, left, came in flow)])
            pairs = itertools.pairwise(flow)
            stall = max([stall, *((b[2] - a[2] - max(0, b[1] - a[1])) / 1e9 for a, b in pairs)])
        machine = _end(self._witness)["longest_oversleep"]
        received, total = sum(map(len, arrived)), sum(sent["sent"])
        return PulseReport(
            total, received, total - distinct, received - distinct, stall, latency, sent["longest_gap"], machine
        )


class _Shared:
    """Holds a number that a child counts up."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("progress")
        os.truncate(self.descriptor, COUNT.size)
        self._map = mmap.mmap(self.descriptor, COUNT.size)

    @property
    def value(self) -> int:
        return int(COUNT.unpack(self._map[:])[0])

    def close(self) -> None:
        self._map.close()
        os.close(self.descriptor)


def _start(*arguments: str, inherits: Sequence[int] = ()) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("pulse_ends.py")), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=inherits,
        start_new_session=True,  # see `favour`: the test's other processes must not hold them up
    )


def _end(process: "subprocess.Popen[bytes]") -> Any:
    said, _ = process.communicate(timeout=60)
    return json.loads(said)


def favour(*processes: int) -> None:
    """Raises the priority of a tunnel's far end: it stands for another machine, and only the gateway is measured."""
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), -15)
        # With autogroup, priorities count only within a session (sched(7)), so the process should have one of its own.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/autogroup").write_text("-15")
