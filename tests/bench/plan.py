"""Says what runs, for how long and how often: the full form, and the short form of two minutes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Holds durations in s, and `udp_rates` in packets/s by bytes of payload."""

    rounds: int
    tcp: int
    udp: float
    latency: float
    streams: tuple[int, ...]
    udp_rates: dict[int, tuple[int, ...]]
    starts: int
    """Rounds of starting each gateway."""
    hub: int
    """s of each run at a hub."""
    hub_rounds: int
    telemetry: tuple[int, int]
    """Rounds, and s of each run."""
    many: int
    """Peers that speak at once; 0 leaves the scenario out."""
    crowd: int
    """Peers, all in one process, that speak at once; 0 leaves the scenario out."""
    handshakes: tuple[int, float]
    """Most initiations of one run, and s."""
    workers: tuple[int, float]
    """Rounds, and s of each run."""
    functions: float
    """s for each function."""
    quick: bool


def _megabits(size: int, *rates: int) -> tuple[int, ...]:
    return tuple(round(rate * 1e6 / 8 / size) for rate in rates)


FULL = Plan(
    rounds=3,
    tcp=5,
    udp=2.0,
    latency=3.0,
    streams=(1, 4, 16),
    udp_rates={1200: _megabits(1200, 100, 200, 400, 800, 1600), 64: (20_000, 40_000, 80_000, 160_000, 240_000)},
    starts=3,
    hub=4,
    hub_rounds=3,
    telemetry=(4, 3),
    many=50,
    crowd=500,
    handshakes=(12_000, 2.0),
    workers=(3, 3.0),
    functions=1.0,
    quick=False,
)
QUICK = Plan(
    rounds=1,
    tcp=3,
    udp=1.0,
    latency=1.0,
    streams=(1, 4),
    udp_rates={1200: _megabits(1200, 200, 1000), 64: (100_000,)},
    starts=1,
    hub=2,
    hub_rounds=1,
    telemetry=(1, 2),
    many=0,
    crowd=0,
    handshakes=(6_000, 1.0),
    workers=(1, 1.5),
    functions=0.1,
    quick=True,
)
