"""Measures round trips through a tunnel by ping: idle, and beside a TCP stream at full rate."""

import re
from typing import Final

from tests.bench import tcp
from tests.bench.contestants import INNER4, Tunnel
from tests.bench.samples import quantile, quantiles

from lab.namespaces import stop
from lab.wait import until

PATTERN: Final = re.compile(r"time=([0-9.]+) ms")
INTERVAL: Final = 0.01
"""s between two pings: long enough that each finds every stage asleep."""
WARM_UP: Final = 1.0


def parse(output: str) -> list[float]:
    """Returns the round trips in ms that ping printed, in order."""
    return [float(found) for found in PATTERN.findall(output)]


def values(trips: list[float], sent: int) -> tcp.Values:
    """Returns `median` and `p99` in ms, `loss` as a part, and the curve `trips`: quantiles in ms.

    Raises RuntimeError for none.
    """
    if not trips:
        raise RuntimeError("no ping was answered")
    ordered = sorted(trips)
    figures = {
        "median": quantile(ordered, 0.5),
        "p99": quantile(ordered, 0.99),
        "loss": max(0.0, 1 - len(trips) / sent),
    }
    return figures, {"trips": quantiles(trips)}


def idle(tunnel: Tunnel, seconds: float) -> tcp.Values:
    """Pings the idle tunnel."""
    count = round(seconds / INTERVAL)
    return values(_ping(tunnel, count, seconds), count)


def _ping(tunnel: Tunnel, count: int, seconds: float) -> list[float]:
    command = ["ping", "-n", "-i", str(INTERVAL), "-c", str(count), "-W", "1", INNER4[1]]
    return parse(tunnel.a.run(*command, check=False, timeout=seconds * 3 + 15).stdout)


def loaded(tunnel: Tunnel, seconds: float) -> tcp.Values:
    """Pings beside one TCP stream, in the direction of the requests, that has run for a second."""
    server = tunnel.b.popen("iperf3", "-s", "-1")
    try:
        until(lambda: tcp.listens(tunnel.b), 5, "iperf3 to listen")
        load = tunnel.a.popen("iperf3", "-c", INNER4[1], "-t", str(int(seconds) * 3 + 20))
        try:
            received = tcp_bytes(tunnel)
            until(lambda: tcp_bytes(tunnel) > received + 5_000_000, 10, "the stream beside the pings")
            count = round(seconds / INTERVAL)
            return values(_ping(tunnel, count, seconds), count)
        finally:
            stop(load, patience=1)
    finally:
        stop(server, patience=1)


def tcp_bytes(tunnel: Tunnel) -> int:
    """Counts the bytes that arrived at `b`."""
    return tunnel.read().delivered
