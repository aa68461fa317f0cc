"""What is run, for how long and how often: the whole, and the short form of two minutes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Durations are in s. `udp_rates` are in packets/s, by bytes of payload."""

    rounds: int
    tcp: int
    udp: float
    latency: float
    streams: tuple[int, ...]
    udp_rates: dict[int, tuple[int, ...]]
    quick: bool


def _megabits(size: int, *rates: int) -> tuple[int, ...]:
    return tuple(round(rate * 1e6 / 8 / size) for rate in rates)


FULL = Plan(
    rounds=3,
    tcp=5,
    udp=2.0,
    latency=3.0,
    streams=(1, 4, 16),
    udp_rates={1200: _megabits(1200, 50, 100, 200, 400, 800, 1600), 64: (10_000, 20_000, 40_000, 80_000, 160_000)},
    quick=False,
)
QUICK = Plan(
    rounds=2,
    tcp=2,
    udp=1.0,
    latency=1.0,
    streams=(1, 4),
    udp_rates={1200: _megabits(1200, 200, 1000), 64: (100_000,)},
    quick=True,
)
