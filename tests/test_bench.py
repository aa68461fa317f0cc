"""The pure parts of the benchmark: statistics, what programs print, the report; and its bursts of datagrams."""

import contextlib
import io
import json
import math
import socket
from pathlib import Path

import pytest
from rich.console import Console
from tests.bench import edges, functions, latency, report, tcp, udp
from tests.bench.bursts import MOST, Bursts, Heads
from tests.bench.cost import Bill, Reading, name_of
from tests.bench.hubs import fairness
from tests.bench.machine import room_for_many
from tests.bench.publish import publish
from tests.bench.rows import ROWS, Row, derive, udp_key
from tests.bench.samples import Results, Sample, quantile, quantiles, steadiness, summarise
from tests.bench.udp_load import NUMBER, counted, receive_within


def sample(scenario: str, contestant: str, number: int, **values: float) -> Sample:
    return Sample(scenario, contestant, number, values)


def test_summaries() -> None:
    summary = summarise([3.0, 1.0, 2.0, math.nan])
    assert summary is not None
    assert (summary.median, summary.low, summary.high, summary.runs, summary.spread) == (2.0, 1.0, 3.0, 3, 0.5)
    assert summarise([]) is None


def test_quantiles() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.25) == 1.25
    assert quantiles([5.0, 1.0], 2) == [1.0, 3.0, 5.0]
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_steadiness_is_the_slowest_second() -> None:
    assert steadiness([10.0, 10.0, 4.0]) == 0.4
    assert math.isnan(steadiness([10.0]))


def test_ratios_are_taken_within_a_round() -> None:
    results = Results()
    # The machine is twice as fast in the second round, for both.
    for number, speed in enumerate((1.0, 2.0)):
        results.add(sample("tcp-1", "stagewire", number, goodput=3.0 * speed))
        results.add(sample("tcp-1", "wireguard-go", number, goodput=2.0 * speed))
    results.add(sample("tcp-1", "stagewire", 2, goodput=100.0))  # the other one failed in the third
    ratio = results.ratio("tcp-1", "stagewire", "wireguard-go", "goodput")
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high, ratio.runs) == (1.5, 1.5, 1.5, 2)


def test_targets() -> None:
    results = Results([sample("x", "stagewire", 0, a=2.4e9), sample("x", "wireguard-go", 0, a=1e9)])
    assert Row("", "", "x", "a", "Gb/s", 1e-9, least_ratio=2.5).reached(results) is False
    assert Row("", "", "x", "a", "Gb/s", 1e-9, least_ratio=2.4).reached(results) is True
    assert Row("", "", "x", "a", "Gb/s", 1e-9, most=3.0).reached(results) is True
    assert Row("", "", "y", "a", "Gb/s", 1e-9, most=3.0).reached(results) is None
    assert Row("", "", "x", "a", "Gb/s", 1e-9, least_ratio=2.5).target() == "≥ 2.5\N{MULTIPLICATION SIGN}"
    assert Row("", "", "x", "a", "s", most=3.0).target() == "< 3 s"


def test_each_reference_has_a_ratio_and_a_target_of_its_own() -> None:
    rates = {"stagewire": 2.4e9, "wireguard-go": 1e9, "newest": 2e9}
    results = Results([sample("tcp-1", name, 0, goodput=rate) for name, rate in rates.items()])
    names = report.columns(results)
    assert names == ["stagewire", "wireguard-go", "newest"]
    ((row, cells, verdicts),) = report.lines(results, names)
    assert (row.title, cells) == ("1 stream", ["2.40", "1.00", "2.00"])
    times = "\N{MULTIPLICATION SIGN}"
    assert verdicts == [(f"2.40{times}", f"≥ 2.5{times} ✗"), (f"1.20{times}", f"≥ 1{times} ✓")]


def test_no_cell_is_cut_in_a_wide_or_a_narrow_table() -> None:
    rates = {"stagewire": 2.4e9, "wireguard-go": 1e9, "newest": 2e9}
    results = Results(
        [sample("tcp-1", name, number, goodput=rate) for name, rate in rates.items() for number in (0, 1)]
    )
    for width, others in ((80, False), (170, True)):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        report.show(console, results)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "…" not in text
        assert "2.40\N{NO-BREAK SPACE}±0%" in text
        assert ("2.00\N{NO-BREAK SPACE}±0%" in text) == others


def test_overload_is_the_greatest_rate_and_what_was_held_of_the_best() -> None:
    results = Results(
        [
            sample(udp_key(64, 1000), "stagewire", 0, pps=900.0),
            sample(udp_key(64, 9000), "stagewire", 0, pps=450.0),
        ]
    )
    assert derive(results).values("udp-64-overload", "stagewire", "held") == {0: 0.5}


def test_a_gateway_of_eight_cores_carries_what_its_first_full_stage_does() -> None:
    values = {"cpu/tun-service": 0.5, "cpu/conn-service": 1.0, "cpu/device-service": 2.0}
    results = Results([sample("many-tcp", "stagewire", 0, **values), sample("tcp-1", "stagewire", 0, **values)])
    derived = derive(results)
    assert derived.of("many-tcp-cores", "stagewire")[0].values == {
        "tun": 16e9,
        "conn": 8e9,
        "device": 4e9,
        "whole": 8e9,
    }
    assert derived.of("tcp-1-cores", "stagewire")[0].values["device"] == 8e9, "both ends' CPU time is in it"
    assert derive(Results([sample("many-tcp", "stagewire", 0, goodput=1.0)])).scenarios() == ["many-tcp"]


@pytest.mark.parametrize("size", functions.SIZES)
@pytest.mark.parametrize(("name", "edge"), list(edges.edges()))
def test_each_visit_to_a_device_or_a_socket_passes_whole_trains(name: str, edge: edges.Edge, size: int) -> None:
    assert name in functions.STAGES
    for train in functions.TRAINS:
        assert 0 < edge.once(train, size, 0.0) < 10_000


def test_every_row_has_a_scenario_of_its_own_words() -> None:
    assert len({(row.section, row.title, row.scenario, row.value) for row in ROWS}) == len(ROWS)
    assert all(row.target() or not (row.least_ratio or row.most_ratio) for row in ROWS)


def interval(rate: float, reverse: float = 0.0, seconds: float = 1.0, omitted: bool = False) -> dict[str, object]:
    plain = {"bits_per_second": rate, "seconds": seconds, "omitted": omitted}
    return {"sum": plain, "sum_bidir_reverse": {**plain, "bits_per_second": reverse}}


def test_iperf3_in_both_directions() -> None:
    answer = {
        "intervals": [interval(9, 9, omitted=True), interval(2, 1), interval(4, 2), interval(1, 1, 0.01)],
        "end": {
            "sum_received": {"bits_per_second": 3},
            "sum_received_bidir_reverse": {"bits_per_second": 1.5},
            "cpu_utilization_percent": {"host_total": 50, "remote_total": 25},
        },
    }
    goodput, seconds, cpu = tcp.parse(answer)
    assert (goodput, seconds) == (4.5, [3.0, 6.0])
    assert cpu == pytest.approx(0.75 * 3.01)
    with pytest.raises(RuntimeError, match="unable to connect"):
        tcp.parse({"error": "unable to connect"})


def test_ping() -> None:
    trips = latency.parse("64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.5 ms\nnoise\n64 bytes: time=12 ms\n")
    assert trips == [0.5, 12.0]
    values, _ = latency.values(trips, 4)
    assert values["loss"] == 0.5
    with pytest.raises(RuntimeError):
        latency.values([], 4)


def test_udp_figures() -> None:
    heads = [NUMBER.pack(number) for number in (0, 2, 1, 1, 3)]
    assert counted(heads) == {"received": 4, "reordered": 2}
    assert counted([]) == {"received": 0, "reordered": 0}
    figures = udp.figures({"sent": 8, "seconds": 2.0}, {"received": 4, "reordered": 1}, 100)
    assert figures == {"offered": 4.0, "pps": 2.0, "goodput": 1600.0, "loss": 0.5, "reordered": 0.25}


def test_programs_are_called_by_their_own_names() -> None:
    assert name_of(b"/x/bin/python3\0/x/bin/tun-service\0") == "tun-service"
    assert name_of(b"/x/bin/python3\0-m\0bench.udp_load\0") == "traffic"
    assert name_of(b"wireguard-go\0-f\0wg0\0") == "wireguard-go"
    assert name_of(b"") == ""


def test_a_bill_is_per_gigabyte() -> None:
    first = Reading({1: ("conn-service", 1.0, 10)}, 0)
    last = Reading({1: ("conn-service", 2.0, 30), 2: ("tun-service", 0.5, 5)}, 500_000_000)
    values = Bill.between(first, last).values()
    assert values == {"cpu/conn-service": 2.0, "cpu/tun-service": 1.0, "cpu": 3.0, "switches": 0.05}
    assert Bill({}, 0, 10).values() == {}


@pytest.mark.parametrize(
    ("before", "meanwhile", "after"), [("128", "", "128"), ("128", "2048", "2048"), ("4096", "", "4096")]
)
def test_a_limit_of_the_host_is_raised_for_a_while(tmp_path: Path, before: str, meanwhile: str, after: str) -> None:
    setting = tmp_path / "max_user_instances"
    setting.write_text(before)
    with room_for_many(setting):
        assert int(setting.read_text()) >= 1024
        if meanwhile:
            setting.write_text(meanwhile)
    assert setting.read_text() == after


def test_fairness() -> None:
    assert fairness([1.0, 1.0]) == 1.0
    assert fairness([1.0, 0.0]) == 0.5
    assert fairness([]) == 0.0


def test_reports_survive_the_disk_and_make_a_page(tmp_path: Path) -> None:
    results = Results()
    for number in range(2):
        for name, rate in (("stagewire", 2e9), ("wireguard-go", 1e9)):
            values = {"goodput": rate, "cpu": 5.0, "cpu/tun-service": 5.0}
            results.add(Sample("tcp-1", name, number, values))
            results.add(Sample("latency-idle", name, number, {"median": 0.5, "p99": 1.0}, {"trips": [0.4, 0.5, 1.0]}))
            for offered in (1000.0, 2000.0):
                results.add(sample(udp_key(1200, offered), name, number, offered=offered, pps=offered / 2))
    results.add(Sample("tcp-4", "stagewire", 0, error="it broke"))
    report.save(tmp_path / "report.json", results, {"CPU": "some", "cores": 2})
    assert json.loads((tmp_path / "report.json").read_text())["table"][0]["compared"]["wireguard-go"][
        "ratio"
    ].startswith("2.00")
    again, about = report.load(tmp_path / "report.json")
    assert again.samples == results.samples
    made = publish(again, about, tmp_path / "out")
    assert [path.name for path in made] == ["REPORT.md", "tcp.svg", "udp.svg", "latency.svg", "cpu.svg"]
    page = made[0].read_text()
    assert "| 1 stream | Gb/s | 2.00 ±0% | 1.00 ±0% |" in page
    assert "- CPU: some" in page


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2", "127.0.0.3"], ["::1"]])
def test_a_burst_reaches_its_destinations_in_turn_and_numbered(hosts: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in hosts[0] else socket.AF_INET
        opened = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in hosts]
        opened[0].bind((hosts[0], 0))
        port = opened[0].getsockname()[1]
        for each, host in zip(opened[1:], hosts[1:], strict=True):
            each.bind((host, port))
        bursts, count = Bursts(hosts, port, 64), 7
        stack.callback(bursts.close)
        for number in (count, MOST, MOST):
            bursts.send(number)
            for turn, each in enumerate(opened):
                receive_within(each, 0.05)
                heads = Heads(each)
                found = b"".join(iter(heads.receive, b""))
                numbers = [number for (number,) in NUMBER.iter_unpack(found)]
                assert numbers == [at for at in range(bursts.sent - number, bursts.sent) if at % len(hosts) == turn]
