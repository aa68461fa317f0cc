"""The benchmark's own instruments, at the two contestants that are up at once: a bare veth and wireguard-go."""

from pathlib import Path

import pytest
from tests.bench import crowd, latency, tcp, udp, workers
from tests.bench.contestants import CEILING, REFERENCE, all_up, entries

pytestmark = [pytest.mark.alone, pytest.mark.system]


def test_the_instruments_agree_with_what_is_sent(lab_directory: Path) -> None:
    chosen = [entry for entry in entries(None) if entry.name in {CEILING, REFERENCE}]
    with all_up(chosen, lab_directory) as tunnels:
        by_name = {tunnel.name: tunnel for tunnel in tunnels}
        values, curves = tcp.measure(by_name[REFERENCE], tcp.Shape(2, both=True), 1, warm_up=0)
        assert values["goodput"] > 1e6
        assert values["cpu/wireguard-go"] > 0
        assert len(curves["seconds"]) == 1
        values, _ = udp.measure(by_name[CEILING], 64, rate=2000, seconds=0.5)
        assert values["loss"] < 0.5
        assert values["reordered"] == 0
        assert values["goodput"] == pytest.approx(values["pps"] * 64 * 8)
        values, curves = latency.idle(by_name[CEILING], 0.2)
        assert 0 < values["median"] <= values["p99"]
        assert curves["trips"][0] > 0
    assert not any(tunnel.a.exists() or tunnel.b.exists() for tunnel in tunnels)


def test_workers_alone_are_fed_and_seal(shared_directory: Path) -> None:
    with workers.houses(shared_directory, (1,)) as (house,):
        values, _ = workers.measure(house, 64, 0.1)
        assert values["pps"] > 1000
        assert values["pps_cpu"] > 0


def test_a_crowd_shakes_hands_and_each_of_it_gets_packets(lab_directory: Path) -> None:
    chosen = [entry for entry in entries(None) if entry.name == REFERENCE]
    with crowd.crowds(chosen, lab_directory, 20) as (made,):
        values, _ = crowd.measure(made, 1200, 6000, 0.5)
        assert values["loss"] < 0.5
        assert values["cpu"] > 0
