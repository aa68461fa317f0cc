"""Lists the lines of the report: which value of which scenario, its unit, the two contestants, and the target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from tests.bench.contestants import LIBZMQ, REFERENCE, STAGEWIRE
from tests.bench.samples import Results, Sample, Summary

REPORTING: Final = f"{STAGEWIRE}, 10,000 peers reported"
SILENT: Final = f"{STAGEWIRE}, nothing reported"
UDP_SIZES: Final = (1200, 64)
"""Bytes of payload."""
CORES: Final = 8
"""Of the gateway that is calculated from the CPU time of each stage: one each for tun- and conn-service, six workers."""
CARRIED: Final = (
    ("tcp-1", "TCP, 1 stream", 2),
    ("many-tcp", "TCP, 50 peers", 1),
    ("many-udp", "UDP, 1,200 B, 50 peers", 1),
    ("crowd-udp", "UDP, 1,200 B, 500 peers", 1),
)
"""Scenarios for which that is calculated, with the number of gateways whose CPU time they have."""
TIMES: Final = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Row:
    """Describes one line.

    `factor` converts the value to `unit`. Limits are for the ratio, or else for the value in its unit.
    `least_to_peer` and `most_to_peer` are for the ratio to BENCH_PEER's program.
    """

    section: str
    title: str
    scenario: str
    value: str
    unit: str
    factor: float = 1.0
    digits: int = 2
    least_ratio: float | None = None
    most_ratio: float | None = None
    least: float | None = None
    most: float | None = None
    least_to_peer: float | None = None
    most_to_peer: float | None = None
    ours: str = STAGEWIRE
    theirs: str = REFERENCE
    compared: bool = True
    """Whether a ratio makes sense."""

    def between(self, ours: str, theirs: str) -> "Row":
        """Returns the same row for two other contestants."""
        return replace(self, ours=ours, theirs=theirs)

    def against(self, peer: str) -> "Row":
        """Returns the row that compares with BENCH_PEER's program in place of Debian's wireguard-go."""
        theirs = self.theirs.replace(REFERENCE, peer, 1)
        least, most = self.least_to_peer, self.most_to_peer
        return replace(self, theirs=theirs, least_ratio=least, most_ratio=most, least=None, most=None)

    def target(self) -> str:
        """Returns the target in words; empty without one."""
        for sign, limit, unit in (
            ("≥", self.least_ratio, TIMES),
            ("≤", self.most_ratio, TIMES),
            ("≥", self.least, f" {self.unit}"),
            ("<", self.most, f" {self.unit}"),
        ):
            if limit is not None:
                return f"{sign} {limit:g}{unit}".rstrip()
        return ""

    def reached(self, results: Results) -> bool | None:
        """Tells whether the target is reached; None without a target or a measured value."""
        if self.least_ratio is not None or self.most_ratio is not None:
            found = results.ratio(self.scenario, self.ours, self.theirs, self.value)
            return None if found is None else _within(found.median, self.least_ratio, self.most_ratio)
        if self.least is None and self.most is None:
            return None
        found = results.summary(self.scenario, self.ours, self.value)
        return None if found is None else _within(found.median * self.factor, self.least, self.most)

    def cell(self, summary: Summary | None) -> str:
        """Formats a summary in the row's unit, with half its spread."""
        if summary is None:
            return ""
        text = f"{summary.median * self.factor:,.{self.digits}f}"
        return f"{text} ±{summary.spread:.0%}" if summary.runs > 1 else text


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _tcp() -> list[Row]:
    shapes = [
        ("tcp-1", "1 stream", True),
        ("tcp-4", "4 streams", True),
        ("tcp-16", "16 streams", True),
        ("tcp-both", "4 streams each way at once", True),
        ("tcp-6", "1 stream, IPv6", True),
        ("tcp-back", "1 stream, the other way", False),
    ]
    found = []
    for key, title, aimed in shapes:
        least, to_peer = (2.5, 1.0) if aimed else (None, None)
        found.append(Row("TCP", title, key, "goodput", "Gb/s", 1e-9, least_ratio=least, least_to_peer=to_peer))
        if aimed and key not in {"tcp-1", "tcp-6"}:
            found.append(
                Row("TCP", f"{title}: slowest second / median", key, "steadiness", "", least=0.5, compared=False)
            )
    return found


def _udp() -> list[Row]:
    return [
        Row(
            "UDP", "1,200 B, overload", "udp-1200-overload", "goodput", "Gb/s", 1e-9, least_ratio=3.0, least_to_peer=2.0
        ),
        Row("UDP", "  goodput / best at a lower rate", "udp-1200-overload", "held", "", least=0.9, compared=False),
        Row("UDP", "  lost", "udp-1200-overload", "loss", "%", 100, 0, compared=False),
        Row("UDP", "  out of order", "udp-1200-overload", "reordered", "%", 100, compared=False),
        Row(
            *("UDP", "64 B, overload", "udp-64-overload", "pps", "kpackets/s", 1e-3, 1),
            least_ratio=4.0,
            least_to_peer=2.0,
        ),
        Row("UDP", "  packets/s / best at a lower rate", "udp-64-overload", "held", "", compared=False),
    ]


def _latency() -> list[Row]:
    return [
        Row("Latency", "idle, median", "latency-idle", "median", "ms", 1, 3, most_ratio=2.0, most_to_peer=2.0),
        Row("Latency", "idle, 99th percentile", "latency-idle", "p99", "ms", 1, 3),
        Row(
            *("Latency", "beside a TCP stream, median", "latency-loaded", "median", "ms", 1, 2),
            most_ratio=1.0,
            most_to_peer=1.0,
        ),
        Row("Latency", "beside a TCP stream, 99th percentile", "latency-loaded", "p99", "ms", 1, 2),
    ]


def _cost() -> list[Row]:
    return [
        Row("Cost", "CPU, TCP 1 stream, both ends", "tcp-1", "cpu", "s/GB", most_ratio=0.4, most_to_peer=1.0),
        Row("Cost", "context switches, TCP 1 stream", "tcp-1", "switches", "per MB", 1, 0),
        Row("Cost", "CPU, TCP 16 streams, both ends", "tcp-16", "cpu", "s/GB"),
    ]


def all_rows() -> list[Row]:
    found = [*_tcp(), *_udp(), *_latency(), *_cost(), *_peers(), *_telemetry()]
    return [*found, *_handshakes(), *_start(), *_libzmq(), *_workers(), *_cores()]


def _peers() -> list[Row]:
    found = [
        Row(
            *("50 peers at once", "TCP, a stream to each", "many-tcp", "goodput", "Gb/s", 1e-9),
            least_ratio=1.5,
            least_to_peer=1.0,
        ),
        Row("50 peers at once", "  fairness (1: all have the same)", "many-tcp", "fairness", "", compared=False),
        Row("50 peers at once", "  CPU of the gateway", "many-tcp", "cpu", "s/GB", most_ratio=0.6, most_to_peer=1.0),
        Row(
            *("50 peers at once", "UDP, 1,200 B to each in turn", "many-udp", "goodput", "Gb/s", 1e-9),
            least_ratio=2.0,
            least_to_peer=1.5,
        ),
        Row(
            *("500 peers at once", "UDP, 1,200 B to each in turn", "crowd-udp", "goodput", "Gb/s", 1e-9),
            least_ratio=2.0,
            least_to_peer=1.0,
        ),
        Row("500 peers at once", "  CPU of the gateway", "crowd-udp", "cpu", "s/GB"),
    ]
    one, many = f"{STAGEWIRE}, 1 peer", f"{STAGEWIRE}, 10,000 peers"
    section, theirs = "10,000 peers configured", f"{REFERENCE}, 10,000 peers"
    return [
        *found,
        Row(section, "wg setconf returns", "peers-load", "setconf", "s").between(many, theirs),
        Row(section, "the last one's first packet", "peers-load", "ready", "s", most=3.0).between(many, theirs),
        Row(section, "memory (PSS)", "peers-load", "memory", "MB", 1e-6, 0).between(many, theirs),
        Row(section, "CPU of the gateway, TCP from one", "peers-cost", "cpu", "s/GB").between(many, theirs),
        Row(section, "  against 1 peer", "peers-cost", "cpu", "s/GB", most_ratio=1.1).between(many, one),
    ]


def _telemetry() -> list[Row]:
    section, names = "Telemetry", (REPORTING, SILENT)
    cost = Row(section, "CPU of the gateway, TCP from one of 10,000 peers", "telemetry", "cpu", "s/GB", digits=3)
    goodput = Row(section, "TCP from one of 10,000 peers", "telemetry", "goodput", "Gb/s", 1e-9, digits=3)
    share = Row(section, "  of it key- and status-service", "telemetry", "beside", "%", 100, compared=False)
    return [
        replace(cost, most_ratio=1.01).between(*names), share.between(*names),
        replace(goodput, least_ratio=0.99).between(*names),
    ]  # fmt: skip


def _handshakes() -> list[Row]:
    return [
        Row("Handshakes", "answered, all cores", "handshakes", "rate", "/s", 1, 0),
        Row(
            *("Handshakes", "answered by one core of key-service", "handshakes", "per_core", "/s", 1, 0),
            least_ratio=1.2,
            least_to_peer=1.0,
        ),
        Row("Handshakes", "CPU of all processes", "handshakes", "cpu_each", "ms", 1e3),
    ]


def _start() -> list[Row]:
    return [
        Row("Start", "to the first packet", "start", "first_packet", "s", most=1.0),
        Row("Start", "memory (PSS) after some traffic", "start", "memory", "MB", 1e-6, 0, most=160.0),
        Row("Start", "memory (PSS), idle", "start", "memory_idle", "MB", 1e-6, 0, most=160.0),
        Row("Idle", "CPU of the gateway, a peer without traffic", "start", "idle_cpu", "% of a core", 100, 2, most=0.5),
        Row("Idle", "wake-ups", "start", "wakes", "/s", 1, 0, most=15.0),
    ]


def _cores() -> list[Row]:
    section = "By each stage's CPU time, a core for each"
    found = []
    for key, title, _ in CARRIED:
        for value, what in (
            ("tun", f"{title}: tun-service"),
            ("conn", "  conn-service"),
            ("device", "  one worker, the most for one peer"),
            ("whole", f"  a gateway of {CORES} cores, as its first full stage has it"),
        ):
            found.append(Row(section, what, f"{key}-cores", value, "Gb/s", 1e-9, compared=False))
    return found


def _libzmq() -> list[Row]:
    section = "Pipes by libzmq"
    rows = [
        Row(section, "TCP, 1 stream", "libzmq-tcp", "goodput", "Gb/s", 1e-9),
        Row(section, "  CPU, both ends", "libzmq-tcp", "cpu", "s/GB"),
        Row(section, "  context switches", "libzmq-tcp", "switches", "per MB", 1, 0),
        Row(section, "latency, idle, median", "libzmq-latency", "median", "ms", 1, 3),
    ]
    return [row.between(LIBZMQ, STAGEWIRE) for row in rows]


def _workers() -> list[Row]:
    found = []
    for size in (1420, 64):
        for value, where in (("pps_cpu", "a core for each"), ("pps", "feeder on the same cores")):
            least = 1.8 if (size, value) == (1420, "pps_cpu") else None
            title = f"2 workers, {size:,} B, {where}"
            row = Row("Workers alone", title, f"workers-{size}", value, "kpackets/s", 1e-3, 0, least_ratio=least)
            found.append(row.between("2 workers", "1 worker"))
    return found


ROWS: Final = all_rows()


def brief(values: Mapping[str, float]) -> str:
    """Returns the words for a sample while the benchmark runs."""
    shown = []
    for name, (unit, factor, digits) in _BRIEF.items():
        if name in values:
            shown.append(f"{name} {values[name] * factor:,.{digits}f} {unit}".rstrip())
    return "  ".join(shown)


_BRIEF: Final = {
    "goodput": ("Gb/s", 1e-9, 3),
    "steadiness": ("", 1, 2),
    "pps": ("kpackets/s", 1e-3, 1),
    "loss": ("%", 100, 1),
    "median": ("ms", 1, 3),
    "p99": ("ms", 1, 3),
    "cpu": ("s/GB", 1, 2),
    "rate": ("handshakes/s", 1, 0),
    "per_core": ("/s", 1, 0),
    "pps_cpu": ("kpackets/s", 1e-3, 1),
    "us/1420/1": ("µs", 1, 2),
    "us/1420/64": ("µs", 1, 2),
    "first_packet": ("s", 1, 2),
    "memory": ("MB", 1e-6, 0),
    "memory_idle": ("MB", 1e-6, 0),
    "idle_cpu": ("% of a core", 100, 2),
    "wakes": ("/s", 1, 0),
    "setconf": ("s", 1, 2),
    "ready": ("s", 1, 2),
}


def _carried(values: Mapping[str, float], ends: int) -> dict[str, float]:
    """Returns bit/s that one core of each stage carries by its CPU time for a byte, and CORES of a whole gateway.

    `ends`: gateways whose CPU the values have. Stages without packets need next to none.
    """
    spent = {stage: values.get(f"cpu/{stage}-service", 0.0) for stage in ("tun", "conn", "device")}
    if not all(spent.values()):
        return {}
    found = {stage: 8e9 * ends / each for stage, each in spent.items()}
    return found | {"whole": min(found["tun"], found["conn"], (CORES - 2) * found["device"])}


def udp_key(size: int, rate: float) -> str:
    """Names the scenario of one offered rate (packets/s)."""
    return f"udp-{size}@{rate:.0f}"


def udp_rates(results: Results, size: int) -> list[float]:
    """Lists the offered rates (packets/s), rising."""
    prefix = f"udp-{size}@"
    return sorted({float(key.removeprefix(prefix)) for key in results.scenarios() if key.startswith(prefix)})


def derive(results: Results) -> Results:
    """Adds values that follow from others of a round: UDP under overload is at the greatest rate; what cores carry."""
    derived = Results(results.samples)
    for key, _, ends in CARRIED:
        for sample in results.of(key, STAGEWIRE):
            if carried := _carried(sample.values, ends):
                derived.add(Sample(f"{key}-cores", STAGEWIRE, sample.round, carried))
    for size in UDP_SIZES:
        rates = udp_rates(results, size)
        if not rates:
            continue
        top = udp_key(size, rates[-1])
        for contestant in results.contestants(top):
            for sample in results.of(top, contestant):
                best = max(
                    results.values(udp_key(size, rate), contestant, "pps").get(sample.round, 0.0) for rate in rates
                )
                values = {**sample.values, "held": sample.values.get("pps", 0.0) / best} if best else {}
                derived.add(Sample(f"udp-{size}-overload", contestant, sample.round, values))
    return derived
