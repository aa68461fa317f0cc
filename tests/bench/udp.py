"""Measures UDP through a tunnel at a given rate: arrivals, losses, packets out of order."""

import json
from collections.abc import Sequence
from typing import Any, Final

from tests.bench import loads
from tests.bench.contestants import INNER4, Tunnel
from tests.bench.cost import Bill
from tests.bench.tcp import Values

PORT: Final = 9009


def measure(
    tunnel: Tunnel, size: int, rate: float, seconds: float, destinations: Sequence[str] = (INNER4[1],)
) -> Values:
    """Returns `offered` and `pps` in packets/s, `goodput` in bit/s, `loss` and `reordered` as parts, and the cost.

    `rate` is in packets/s, `goodput` and `size` are of the payload. The packets go to all `destinations` in turn.
    """
    before = tunnel.read()
    how = (PORT, size, rate, seconds, *destinations)
    counted, said = loads.between(tunnel.b, tunnel.a, "tests.bench.udp_load", [PORT], how, seconds)
    bill = Bill.between(before, tunnel.read())
    return figures(json.loads(said), counted, size) | bill.values(), {}


def figures(source: dict[str, Any], sink: dict[str, Any], size: int) -> dict[str, float]:
    """Computes the figures from both ends' counts. Rates are over the time of sending."""
    sent, received, seconds = source["sent"], sink["received"], source["seconds"]
    pps = received / seconds
    return {
        "offered": sent / seconds,
        "pps": pps,
        "goodput": pps * size * 8,
        "loss": max(0.0, 1 - received / sent) if sent else 0.0,
        "reordered": sink["reordered"] / received if received else 0.0,
    }
