"""Metrics and health of a real gateway, whose status-service may open no socket any more when they are asked for."""

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.system.whys import works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology, stop
from lab.pulse import Pulse
from lab.traffic import ping
from lab.wait import until

pytestmark = pytest.mark.system

ANNA = Spoke(1, name="Anna")
GHOST = Spoke(2)
"""A peer that nobody is."""
PLACE = "127.0.0.1:9586"
PROMETHEUS: Final = "127.0.0.1:9090"
ROOT: Final = Path(__file__).parents[2]
MONITORING: Final = ROOT / "deploy/monitoring"
PROGRAMS: Final = ROOT / ".venv/prometheus"
"""Debian's Prometheus, as `deploy/setup --system` fetches it."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("x") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"anna": ANNA, "ghost": GHOST}) as gateway:
        until(lambda: gateway.gateway.status()["metrics"].startswith("http"), 10, "the metrics")
        yield gateway


def fetch(hub: Hub, path: str, place: str = PLACE) -> tuple[int, str]:
    """Asks in the gateway's namespace, where alone the address means it."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{place}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    return hub.namespace.call(ask)


def ready(hub: Hub) -> tuple[int, str]:
    """What the container's health check runs."""
    asked = hub.gateway.command("ready", hub.name, check=False)
    return asked.returncode, asked.stdout


def samples(hub: Hub) -> dict[tuple[str, str], float]:
    """The metrics, by name and by the name of the peer."""
    return {
        (sample.name, sample.labels.get("friendly_name", "")): sample.value
        for family in text_string_to_metric_families(fetch(hub, "/metrics")[1])
        for sample in family.samples
    }


def test_metrics_are_on_the_usual_port_of_loopback_and_name_the_peer(network: Topology, hub: Hub) -> None:
    assert hub.gateway.status()["metrics"] == f"http://{PLACE}/metrics"
    assert f"  metrics http://{PLACE}/metrics" in hub.gateway.command("status", hub.name).stdout
    until(lambda: ("wireguard_peer_up", "Anna") in samples(hub), 10, "status-service to hear of the peer")
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: samples(hub)["wireguard_peer_up", "Anna"] == 1, 5, "the peer to be up")

        def counts_the_ping() -> bool:
            found = samples(hub)
            return all(found[f"wireguard_{way}_bytes_total", "Anna"] > 148 for way in ("received", "sent"))

        # Workers tell their bytes from time to time: right after the handshake its 148 or 92 alone may be known.
        until(counts_the_ping, 5, "the ping's bytes to be counted both ways")
        assert samples(hub)["wireguard_latest_handshake_seconds", "Anna"] > 1_700_000_000
    assert fetch(hub, "/nothing")[0] == 404


def test_a_second_gateway_has_the_next_free_port_and_both_are_targets(hub: Hub, shared_directory: Path) -> None:
    with Hub(hub.namespace, shared_directory, {"other": Spoke(7)}, name="wg7", port=51_999) as other:
        places = [PLACE, "127.0.0.1:9587"]
        assert [each.gateway.status()["metrics"] for each in (hub, other)] == [
            f"http://{each}/metrics" for each in places
        ]
        [found] = json.loads(other.gateway.command("metrics", "--targets").stdout)
        assert (sorted(found["targets"]), found["labels"]) == (places, {"job": "stagewire"})
        for each in (hub, other):
            peers = f'wireguard_peers_total{{interface="{each.name}"}} {len(each.spokes)}.0'
            until(lambda at=each, line=peers: line in at.gateway.command("metrics", at.name).stdout, 10, peers)  # type: ignore[misc]
            text = each.gateway.command("metrics", each.name).stdout
            assert f'stagewire_ready{{interface="{each.name}"}}' in text
        other.gateway.down()


def test_a_gateway_that_works_is_ready_and_a_killed_status_service_comes_back_with_all(hub: Hub) -> None:
    until(lambda: fetch(hub, "/readyz") == (200, "ok\n"), 10, "it to be ready")
    assert fetch(hub, "/healthz") == (200, "ok\n")
    hub.gateway.kill("status", signal.SIGKILL)
    until(lambda: fetch(hub, "/readyz") == (200, "ok\n"), 20, "the next status-service to be ready")
    until(lambda: ("wireguard_sent_bytes_total", "Anna") in samples(hub), 10, "the peers to be known again")


def test_a_gateway_whose_conn_service_stands_still_is_not_ready(network: Topology, hub: Hub) -> None:
    still = "conn-service stands still"
    with hub.wireguard_go(ANNA, network.a, Topology.B4), Pulse(network.a, network.b, [ANNA.gateway_inner[0]]) as pulse:
        until(lambda: pulse.received > 10, 10, "packets to flow")
        stopped = hub.gateway.kill("conn", signal.SIGSTOP)
        try:
            # Within a second, unless it was stopped in its sleep.
            until(lambda: fetch(hub, "/readyz") == (503, f"{still}\n"), 10, "it to be noticed")
            assert ready(hub) == (4, f"{still}\n")
            assert (
                "does no work: conn-service, a signal has"
                in hub.gateway.command("doctor", hub.name, check=False).stdout
            )
            assert fetch(hub, "/healthz")[0] == 200
        finally:
            os.kill(stopped, signal.SIGCONT)
        pulse.finish()
    until(lambda: fetch(hub, "/readyz")[0] == 200, 10, "it to be ready again")
    until(lambda: ready(hub) == (0, "ready\n"), 10, "the command too")


# --- Prometheus ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(hub: Hub, shared_directory: Path) -> Iterator[None]:
    """Runs a real Prometheus with our rules, which finds the gateway by `metrics --targets`."""
    folder = shared_directory / "prometheus"
    folder.mkdir()
    (folder / "targets.json").write_text(hub.gateway.command("metrics", "--targets").stdout)
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [{"job_name": "found", "file_sd_configs": [{"files": [str(folder / "targets.json")]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))  # YAML takes JSON
    with (folder / "log").open("wb") as log:
        running = hub.namespace.popen(
            PROGRAMS / "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={PROMETHEUS}", output=log,
        )  # fmt: skip
        try:
            until(lambda: fetch(hub, "/-/ready", PROMETHEUS)[0] == 200, 20, "Prometheus")
            yield
        finally:
            stop(running)


def asked(hub: Hub, path: str, **parameters: str) -> Any:
    status, text = fetch(hub, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}", PROMETHEUS)
    assert status == 200, text
    return json.loads(text)["data"]


def panels() -> dict[str, str]:
    """Every panel's queries, as Grafana would send them."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$interface", ".*")
        .replace("$__rate_interval", "10s")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


@pytest.mark.usefixtures("prometheus")
def test_prometheus_answers_each_panel_of_the_dashboard_and_each_rule(network: Topology, hub: Hub) -> None:
    silent = dict(panels())
    assert len(silent) > 14
    with hub.wireguard_go(ANNA, network.a, Topology.B4):

        def all_answer() -> bool:
            ping(network.a, ANNA.gateway_inner[0], timeout=3)
            ping(hub.namespace, GHOST.inner[0], timeout=0.2)  # dropped: the ghost has no endpoint
            for title, expression in list(silent.items()):
                if asked(hub, "query", query=expression)["result"]:
                    del silent[title]
            return not silent

        try:
            until(all_answer, 30, "each panel to have data")
        except AssertionError as late:
            raise AssertionError(f"no data for {silent}") from late
    rules = [rule for group in asked(hub, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 10
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    known = set(asked(hub, "label/__name__/values"))
    asked_for = {name for rule in rules for name in re.findall(r"\b(?:stagewire|wireguard)_\w+", rule["query"])}
    # No other program has changed this host.
    assert asked_for - known == {"stagewire_repairs_total"}
    assert asked(hub, "query", query='up{job="stagewire"}')["result"][0]["value"][1] == "1"


def test_grafana_can_import_the_dashboard() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert dashboard["uid"]
    assert len(dashboard["uid"]) <= 40
    assert dashboard["schemaVersion"] >= 36, "older ones name a data source by a text"
    assert "id" not in dashboard, "Grafana gives it one"
    source = dashboard["templating"]["list"][0]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    anyone = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert all(panel["gridPos"][name] >= 0 for name in "xywh")
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [anyone] * (
            1 + len(panel["targets"])
        )


FIRING: Final = {
    "StagewireAway": {'up{job="stagewire",instance="a"}': "0x20"},
    "StagewireNotReady": {'stagewire_ready{interface="wg0"}': "0x20"},
    "StagewireStageSilent": {'stagewire_heard_seconds{interface="wg0",stage="conn"}': "0+60x20"},
    "StagewireTakeOvers": {'stagewire_takeovers_total{interface="wg0",stage="conn",number="0"}': "0+1x20"},
    "StagewirePeerGone": {'wireguard_peer_up{interface="wg0",friendly_name="anna",public_key="k"}': "1x8 0x12"},
    "StagewireHandshakesFail": {
        'stagewire_peer_incidents_total{interface="wg0",stage="key",friendly_name="anna",reason="gave_up"}': "0+1x20"
    },
    "StagewireOverloaded": {
        'stagewire_drops_total{interface="wg0",stage="conn",number="0",reason="train_too_old"}': "0+600x20"
    },
    "StagewireSlow": {
        'stagewire_wait_seconds_bucket{interface="wg0",pipe="plain-in",le="0.05"}': "0+10x20",
        'stagewire_wait_seconds_bucket{interface="wg0",pipe="plain-in",le="0.25"}': "0+90x20",
        'stagewire_wait_seconds_bucket{interface="wg0",pipe="plain-in",le="+Inf"}': "0+90x20",
    },
    "StagewireFlooded": {
        'stagewire_drops_total{interface="wg0",stage="conn",number="0",reason="bad_mac1"}': "0+60000x20"
    },
    "StagewireHostContested": {
        'stagewire_repairs_total{interface="wg0",stage="host",number="0",what="put_back_route"}': "0+1x20"
    },
}  # fmt: skip
"""Series, a value each minute, that make each rule fire."""


def test_each_rule_fires_for_its_own_trouble_alone(tmp_path: Path) -> None:
    tests = []
    for fires, series in FIRING.items():
        case = {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) > 0', "eval_time": "15m"}
                | ({"exp_samples": [{"labels": "{}", "value": 1}]} if alert == fires else {})
                for alert in FIRING
            ],
        }
        tests.append(case)
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"rule_files": [str(MONITORING / "alerts.yml")], "tests": tests}))
    told = subprocess.run([PROGRAMS / "promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_metrics_and_replaces_a_textfile_in_one_step(hub: Hub, shared_directory: Path) -> None:
    families = {family.name for family in text_string_to_metric_families(hub.gateway.command("metrics").stdout)}
    assert {"wireguard_sent_bytes", "stagewire_wait_seconds", "stagewire_queue_bytes"} <= families
    file = shared_directory / "stagewire.prom"
    file.write_text("old")
    with file.open() as reader:
        hub.gateway.command("metrics", hub.name, "--textfile", str(file))
        assert reader.read() == "old"  # a collector that is reading meanwhile
    assert families == {family.name for family in text_string_to_metric_families(file.read_text())}
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in shared_directory.glob(".stagewire-*")] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--textfile", "/proc/stagewire.prom"), "/proc/stagewire.prom: "),
        (("--textfile", "/dev/full"), "/dev/full: node-exporter reads only files whose names end in .prom"),
        (("--targets", "wg0"), "--targets is about all gateways"),
    ],
)
def test_a_textfile_that_cannot_be_written_gets_one_line(hub: Hub, options: tuple[str, ...], said: str) -> None:
    told = hub.gateway.command("metrics", *options, check=False)
    assert told.returncode in (1, 2)
    assert said in told.stderr
    assert "Traceback" not in told.stderr
