"""UDP through a tunnel at a given rate: what arrives, what is lost, what comes out of order."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.contestants import INNER4, Tunnel
from bench.cost import Bill
from bench.tcp import Values
from lab.namespaces import Namespace, stop

PORT: Final = 9009
LAB: Final = Path(__file__).parents[1]
_ENV: Final = {"PYTHONPATH": str(LAB)}


def measure(
    tunnel: Tunnel, size: int, rate: float, seconds: float, destinations: Sequence[str] = (INNER4[1],)
) -> Values:
    """`offered` and `pps` in packets/s, `goodput` in bit/s of payload, `loss` and `reordered` as parts, and the cost.

    `rate` is in packets/s, `size` of the payload in bytes; the packets go to all `destinations` in turn.
    """
    sink = _start(tunnel.b, "sink", str(PORT))
    try:
        before = tunnel.read()
        command = ["source", str(PORT), str(size), str(rate), str(seconds), *destinations]
        run = tunnel.a.run(sys.executable, "-m", "bench.udp_load", *command, env=_ENV, timeout=seconds + 30)
        source = json.loads(run.stdout)
        sink.terminate()
        answer, _ = sink.communicate(timeout=20)
        bill = Bill.between(before, tunnel.read())
    finally:
        stop(sink, patience=1)
    return figures(source, json.loads(answer), size) | bill.values(), {}


def _start(namespace: Namespace, *command: str) -> "subprocess.Popen[bytes]":
    started = namespace.popen(sys.executable, "-m", "bench.udp_load", *command, env=_ENV, output=subprocess.PIPE)
    assert started.stdout is not None
    if (line := started.stdout.readline()) != b"ready\n":
        raise RuntimeError(f"the receiver of UDP didn't start: {line!r}")
    return started


def figures(source: dict[str, Any], sink: dict[str, Any], size: int) -> dict[str, float]:
    """From what both ends counted. Rates are over the time of sending."""
    sent, received, seconds = source["sent"], sink["received"], source["seconds"]
    pps = received / seconds
    return {
        "offered": sent / seconds,
        "pps": pps,
        "goodput": pps * size * 8,
        "loss": max(0.0, 1 - received / sent) if sent else 0.0,
        "reordered": sink["reordered"] / received if received else 0.0,
    }
