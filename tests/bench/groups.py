"""Makes the groups of scenarios from a plan."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import crowd, functions, handshakes, hubs, latency, start, tcp, udp, workers
from tests.bench.contestants import CEILING, LIBZMQ, ONE_END, REFERENCE, STAGEWIRE, Entry, Tunnel, all_up
from tests.bench.plan import Plan
from tests.bench.rows import REPORTING, SILENT, udp_key
from tests.bench.runner import Group, Scenario


def all_groups(plan: Plan, chosen: Sequence[Entry], directory: Path) -> list[Group[Any]]:
    # Starting comes first, while no other gateway shares its memory.
    found: list[Group[Any]] = [
        starting(plan, chosen, directory),
        traffic(plan, chosen, directory),
        answering(plan, chosen, directory),
        many_configured(plan, chosen, directory),
    ]
    found.append(telemetry(plan, directory))
    if plan.many:
        found.append(many_at_once(plan, chosen, directory))
    if plan.crowd:
        found.append(crowd_at_once(plan, chosen, directory))
    if not plan.quick:
        found.append(transports(plan, directory))
    return [*found, alone(plan, directory), parts(plan)]


def _gateways(chosen: Sequence[Entry]) -> list[Entry]:
    """Lists the contestants that have the same gateway at both ends."""
    return [entry for entry in chosen if entry.a is not None and entry.a == entry.b]


def starting(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[start.Place]:
    """Measures the time from the command to the first packet, and memory."""
    gateways = _gateways(chosen)
    names = [entry.name for entry in gateways]
    scenario = Scenario("start", "start to first packet", 16, start.measure)
    return Group("start", "starting", names, partial(start.places, gateways, directory), [scenario], plan.starts)


def answering(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[handshakes.Answerer]:
    """Measures handshakes per second."""
    gateways = _gateways(chosen)
    names = [entry.name for entry in gateways]
    each, seconds = plan.handshakes
    up = partial(handshakes.answerers, gateways, directory, each, plan.hub_rounds)
    scenario = Scenario("handshakes", "handshakes", seconds + 1, partial(handshakes.measure, seconds=seconds))
    return Group("handshakes", "handshakes of 1,000 peers", names, up, [scenario], plan.hub_rounds, 10)


def many_configured(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[hubs.Hub]:
    """Measures gateways with 10,000 configured peers, of which one speaks."""
    gateways = _gateways(chosen)
    names = [hubs.sized(entry.name, count) for entry in gateways for count in (0, hubs.PEERS)]
    loading = frozenset(name for name in names if f"{hubs.PEERS:,}" in name)
    scenarios = [
        Scenario("peers-load", "10,000 peers configured", 5, hubs.load, loading),
        Scenario("peers-cost", "TCP from one of 10,000 peers", plan.hub + 2, partial(hubs.tcp_one, seconds=plan.hub)),
    ]
    up = partial(hubs.of_sizes, gateways, directory, hubs.PEERS)
    return Group("configured", "10,000 peers configured", names, up, scenarios, plan.hub_rounds, 20)


def telemetry(plan: Plan, directory: Path) -> Group[hubs.Hub]:
    """Measures what it costs that the stages report what they count."""
    rounds, seconds = plan.telemetry
    scenario = Scenario("telemetry", "TCP, reports or none", seconds + 2, partial(hubs.told, seconds=seconds))
    up = partial(hubs.with_and_without_reports, directory, hubs.PEERS)
    return Group("telemetry", "telemetry", [REPORTING, SILENT], up, [scenario], rounds, 60)


def many_at_once(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[hubs.Hub]:
    """Measures gateways with 50 peers that all speak."""
    gateways = _gateways(chosen)
    names = [entry.name for entry in gateways]
    scenarios = [
        Scenario("many-tcp", f"TCP to {plan.many} peers", plan.hub + 2, partial(hubs.tcp_to_all, seconds=plan.hub)),
        Scenario(
            "many-udp",
            f"UDP to {plan.many} peers, 1,200 B",
            plan.udp + 2,
            partial(hubs.udp_to_all, size=1200, rate=80_000, seconds=plan.udp),
        ),
    ]
    up = partial(hubs.with_many, gateways, directory, plan.many)
    return Group("many", f"{plan.many} peers at once", names, up, scenarios, plan.hub_rounds, 30)


def crowd_at_once(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[crowd.Crowd]:
    """Measures gateways with 500 peers that all speak."""
    gateways = _gateways(chosen)
    measured = partial(crowd.measure, size=1200, rate=160_000, seconds=plan.udp)
    scenario = Scenario("crowd-udp", f"UDP to {plan.crowd} peers, 1,200 B", plan.udp + 3, measured)
    up = partial(crowd.crowds, gateways, directory, plan.crowd)
    names = [entry.name for entry in gateways]
    return Group("crowd", f"{plan.crowd} peers at once", names, up, [scenario], plan.hub_rounds, 15)


def transports(plan: Plan, directory: Path) -> Group[Tunnel]:
    """Compares pipes by libzmq with our own."""
    names = (STAGEWIRE, LIBZMQ)
    scenarios = [
        Scenario(
            "libzmq-tcp", "TCP, 1 stream", plan.tcp + 2, partial(tcp.measure, shape=tcp.Shape(1), seconds=plan.tcp)
        ),
        Scenario("libzmq-latency", "latency, idle", plan.latency + 0.5, partial(latency.idle, seconds=plan.latency)),
    ]
    return Group("libzmq", "pipes by libzmq", names, partial(_both_transports, directory), scenarios, plan.rounds)


@contextmanager
def _both_transports(directory: Path) -> Iterator[list[Tunnel]]:
    folder = directory / "libzmq"  # the folders of other groups' gateways are no place for new ones
    folder.mkdir()
    with all_up([Entry(name, name, name) for name in (STAGEWIRE, LIBZMQ)], folder) as tunnels:
        yield tunnels


def alone(plan: Plan, directory: Path) -> Group[workers.House]:
    """Measures workers that are fed from their pipes."""
    rounds, seconds = plan.workers
    names = [workers.called(count) for count in (1, 2)]
    scenarios = [
        Scenario(
            f"workers-{size}",
            f"workers alone, {size:,} B",
            seconds + 0.5,
            partial(workers.measure, size=size, seconds=seconds),
        )
        for size in (1420, 64)
    ]
    return Group("workers", "workers alone", names, partial(workers.houses, directory), scenarios, rounds, 4)


def parts(plan: Plan) -> Group[functions.Measured]:
    """Measures each hot function."""
    names = [function.name for function in functions.FUNCTIONS]
    scenario = Scenario(
        "functions", "hot function", plan.functions * 2, partial(functions.measure, budget=plan.functions)
    )
    return Group("functions", "hot functions", names, functions.all_functions, [scenario], 1, 0)


def traffic(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[Tunnel]:
    """Measures TCP, UDP and latency through one tunnel each."""
    names = [entry.name for entry in chosen]
    scenarios = [*_tcp(plan, names), *_udp(plan, names), *_latency(plan, names)]
    return Group(
        "traffic", "traffic through one tunnel", names, partial(all_up, chosen, directory), scenarios, plan.rounds
    )


def _tcp(plan: Plan, names: Sequence[str]) -> list[Scenario[Tunnel]]:
    full = frozenset(names) - {ONE_END}

    def one(key: str, title: str, shape: tcp.Shape, only: frozenset[str] | None = None) -> Scenario[Tunnel]:
        def measure(tunnel: Tunnel) -> tcp.Values:
            return tcp.measure(tunnel, shape, plan.tcp)

        return Scenario(key, title, plan.tcp + 2, measure, only)

    found = []
    for streams in plan.streams:
        title = "TCP, 1 stream" if streams == 1 else f"TCP, {streams} streams"
        # With Stagewire at one end, one stream each way is enough; --quick leaves it out.
        only = None if streams == 1 and not plan.quick else full
        found.append(one(f"tcp-{streams}", title, tcp.Shape(streams), only))
    found.append(one("tcp-both", "TCP, 4 streams each way", tcp.Shape(4, both=True), full))
    if not plan.quick:
        found.append(one("tcp-6", "TCP, 1 stream, IPv6", tcp.Shape(family=6), full))
        backwards = frozenset({ONE_END, STAGEWIRE, REFERENCE})
        found.append(one("tcp-back", "TCP, 1 stream, the other way", tcp.Shape(backwards=True), backwards))
    return found


def _udp(plan: Plan, names: Sequence[str]) -> list[Scenario[Tunnel]]:
    only = frozenset(names) - {ONE_END}
    found = []
    for size, rates in plan.udp_rates.items():
        for rate in rates:

            def measure(tunnel: Tunnel, size: int = size, rate: int = rate) -> tcp.Values:
                return udp.measure(tunnel, size, rate, plan.udp)

            title = f"UDP, {size:,} B, {rate / 1000:.0f} kpackets/s"
            found.append(Scenario(udp_key(size, rate), title, plan.udp + 1, measure, only))
    return found


def _latency(plan: Plan, names: Sequence[str]) -> list[Scenario[Tunnel]]:
    only = frozenset(names) - {ONE_END}

    def idle(tunnel: Tunnel) -> tcp.Values:
        return latency.idle(tunnel, plan.latency)

    def loaded(tunnel: Tunnel) -> tcp.Values:
        return latency.loaded(tunnel, plan.latency)

    return [
        Scenario("latency-idle", "latency, idle", plan.latency + 0.5, idle, only),
        Scenario("latency-loaded", "latency beside a TCP stream", plan.latency + 1.5, loaded, only - {CEILING}),
    ]
