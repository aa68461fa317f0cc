"""Measures TCP through a tunnel by iperf3. The client receives, so each second's figure is what arrived in it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.contestants import INNER4, INNER6, Tunnel
from tests.bench.cost import Bill
from tests.bench.samples import steadiness

from lab.namespaces import Namespace, stop
from lab.wait import until

PORT: Final = 5201


@dataclass(frozen=True, slots=True)
class Shape:
    """Describes the streams that run at once. `both`: as many in each direction. `backwards`: from `b` to `a`."""

    streams: int = 1
    both: bool = False
    family: int = 4
    backwards: bool = False


Values = tuple[dict[str, float], dict[str, list[float]]]
"""A sample's values and curves."""


def measure(tunnel: Tunnel, shape: Shape, seconds: int, warm_up: int = 1) -> Values:
    """Returns `goodput` in bit/s, `steadiness`, the cost, and the curve `seconds` (bit/s, both directions added)."""
    server, client = (tunnel.b, tunnel.a) if shape.backwards else (tunnel.a, tunnel.b)
    number = 1 if shape.backwards else 0
    address = (INNER4 if shape.family == 4 else INNER6)[number]
    listening = server.popen("iperf3", "-s", "-1")
    try:
        until(lambda: listens(server), 5, "iperf3 to listen")
        how = ["--bidir"] if shape.both else ["-R"]
        length = ["-t", str(seconds), "-O", str(warm_up)]
        command = ["iperf3", "-c", address, "-p", str(PORT), "-P", str(shape.streams), *length, *how, "-J"]
        before = tunnel.read()
        answer = client.run(*command, check=False, timeout=seconds + warm_up + 30).stdout
        bill = Bill.between(before, tunnel.read())
    finally:
        stop(listening, patience=1)
    goodput, intervals, generator = parse(json.loads(answer))
    values = {"goodput": goodput, **bill.values()}
    if bill.delivered:
        values["cpu/iperf3"] = generator / (bill.delivered / 1e9)
    steady = steadiness(intervals)
    if math.isfinite(steady):
        values["steadiness"] = steady
    return values, {"seconds": intervals}


def listens(namespace: Namespace, port: int = PORT) -> bool:
    """Tells whether a program listens at a TCP port there."""
    table = namespace.call(
        lambda: "".join(Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6"))
    )
    return any(
        fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in map(str.split, table.splitlines()[1:])
    )


def parse(answer: dict[str, Any]) -> tuple[float, list[float], float]:
    """Reads iperf3's report: bit/s received, those of each second, and the CPU seconds of both ends.

    Raises RuntimeError with iperf3's words if it failed.
    """
    if "error" in answer:
        raise RuntimeError(f"iperf3: {answer['error']}")
    end, sums = answer["end"], ("sum", "sum_bidir_reverse")
    received = sum(
        end[name]["bits_per_second"] for name in ("sum_received", "sum_received_bidir_reverse") if name in end
    )
    kept = [each for each in answer["intervals"] if not each["sum"]["omitted"]]
    # The last interval may be very short.
    whole = [each for each in kept if each["sum"]["seconds"] > 0.5]
    intervals = [float(sum(each[name]["bits_per_second"] for name in sums if name in each)) for each in whole]
    busy = end["cpu_utilization_percent"]
    seconds = sum(each["sum"]["seconds"] for each in answer["intervals"])
    return float(received), intervals, (busy["host_total"] + busy["remote_total"]) / 100 * seconds
