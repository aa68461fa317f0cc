"""Runs the two ends of a UDP load, each a process in its namespace: one sends numbered packets, one counts them.

python -m tests.bench.udp_load sink PORT                                   counts until SIGTERM, then prints JSON
python -m tests.bench.udp_load source PORT SIZE RATE SECONDS DESTINATION…  prints JSON when it is done
"""

import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Final

from tests.bench.bursts import Bursts, Heads

from lab.namespaces import SO_RCVBUFFORCE

NUMBER: Final = struct.Struct("=Q")
TICK: Final = 0.001
"""s between two bursts; each sends at once the packets of its tick."""
ARREARS: Final = 0.02
"""s by which a sender may fall behind; beyond that it skips the packets it owes, which would be one long burst."""
BUFFER: Final = 8 << 20
SETTLE: Final = 0.3
"""s without a packet after SIGTERM, then the rest counts as lost."""
_TIMEOUT: Final = struct.Struct("@ll")


class Stopped:
    """Remembers that SIGTERM came."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True


def receive_within(opened: socket.socket, seconds: float) -> None:
    """Sets the kernel's own timeout (less than 1 s): a timeout of Python's would poll before each packet."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT.pack(0, int(seconds * 1e6)))


def sink(port: int) -> dict[str, float]:
    """Receives until SIGTERM has come and no more packets arrive."""
    stopped = Stopped()
    counted(())  # imports NumPy before the load begins
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    receive_within(opened, SETTLE)
    opened.bind(("", port))
    print("ready", flush=True)
    heads: list[bytes] = []
    take, receive = heads.append, Heads(opened).receive
    while True:
        found = receive()
        if found:
            take(found)
        elif stopped.asked:
            break
    opened.close()
    return counted(heads)


def counted(heads: Iterable[bytes]) -> dict[str, float]:
    """Counts the distinct packets, and the packets that came after one with a greater number."""
    import numpy as np  # noqa: PLC0415 - the sender needs no NumPy, and its start counts in the measurement

    numbers = np.frombuffer(b"".join(heads), dtype=np.uint64)
    late = int((numbers < np.maximum.accumulate(numbers)).sum()) if len(numbers) else 0
    return {"received": len(np.unique(numbers)), "reordered": late}


def source(port: int, size: int, rate: float, seconds: float, destinations: list[str]) -> dict[str, float]:
    """Sends `rate` packets/s of `size` bytes for `seconds`, to each destination in turn."""
    bursts, sent, clock = Bursts(destinations, port, size), 0, time.monotonic
    begun = start = clock()
    owed = 0
    while (now := clock()) < begun + seconds:
        behind = (now - start) * rate - owed
        if behind > rate * ARREARS:
            start += (behind - rate * TICK) / rate
            behind = rate * TICK
        burst = int(behind)
        owed += burst
        bursts.send(burst)
        sent += burst
        if clock() < now + TICK:
            time.sleep(TICK)
    seconds = clock() - begun
    bursts.close()
    return {"sent": sent, "seconds": seconds}


def main(arguments: list[str]) -> None:
    role, port, *rest = arguments
    if role == "sink":
        answer = sink(int(port))
    else:
        size, rate, seconds, *destinations = rest
        answer = source(int(port), int(size), float(rate), float(seconds), destinations)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
