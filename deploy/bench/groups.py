"""The groups of scenarios, made from a plan."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import latency, tcp, udp
from bench.contestants import CEILING, ONE_END, REFERENCE, STAGEWIRE, Entry, Tunnel, all_up
from bench.plan import Plan
from bench.rows import udp_key
from bench.runner import Group, Scenario


def all_groups(plan: Plan, chosen: Sequence[Entry], directory: Path) -> list[Group[Any]]:
    """In their order."""
    return [traffic(plan, chosen, directory)]


def traffic(plan: Plan, chosen: Sequence[Entry], directory: Path) -> Group[Tunnel]:
    """TCP, UDP and latency through one tunnel each."""
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
        # With Stagewire at one end, one stream each way tells all; in the short form it is left out.
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
