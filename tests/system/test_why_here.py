"""`stagewire why` and `doctor` on what this host does to a tunnel: rules for a part of the packets, stopped stages."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.whys import broken, first, rules, why, works

from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology
from lab.wait import slack, until
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

ANNA = Spoke(1, allowed_ips=["10.66.1.2/32", "fd66:1::2/128"])
SILENT = Spoke(2, Topology.A4)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("wh") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"1": ANNA, "2": SILENT}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def far(network: Topology, hub: Hub) -> Iterator[WireguardGo]:
    with hub.wireguard_go(ANNA, network.a, Topology.B4, keepalive=1) as peer:
        until(lambda: works(network.a, ANNA.gateway_inner[0]), 15, "the tunnel to work")
        yield peer


def doctor(hub: Hub) -> str:
    return hub.gateway.command("doctor", hub.name, check=False).stdout


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (f"udp dport {PORT} numgen random mod 100 < 50 drop", "some of them at random"),
        (f"udp dport {PORT} meta length > 1000 drop", "those of certain lengths"),
    ],
)
def test_a_rule_for_a_part_of_what_comes_to_our_port(
    network: Topology, hub: Hub, far: WireguardGo, rule: str, said: str
) -> None:
    with rules(network.b, "input", rule):
        # One of two packets may get through by chance, but no packet of full size, nor ten of ten.
        assert network.b.run("ping", "-c10", "-i0.05", "-W1", "-s1200", ANNA.inner[0], check=False).returncode or (
            "10 received" not in network.b.run("ping", "-c10", "-i0.05", "-W1", ANNA.inner[0], check=False).stdout
        )
        found = why(hub, ANNA)["findings"][0]
        assert (found["id"], said in found["text"]) == ("port_blocked_here", True)
        assert f"this host drops a part, namely {said}, of datagrams to UDP port {PORT}" in doctor(hub)
    assert first(hub, ANNA) == "well"


@pytest.mark.parametrize(
    ("hook", "rule", "part"),
    [
        ("input", 'iifname "wg0" meta l4proto tcp drop', "TCP packets"),
        ("output", 'oifname "wg0" meta l4proto tcp drop', "TCP packets"),
        ("input", 'iifname "wg0" meta length > 1000 drop', "those of certain lengths"),
        ("prerouting", "ip saddr 10.66.1.0/24 drop", ""),
        ("output", "ip daddr 10.66.1.2 drop", ""),
        ("output", "ip6 daddr fd66:1::2 drop", ""),
    ],
)
def test_a_rule_for_packets_of_the_tunnel(
    network: Topology, hub: Hub, far: WireguardGo, hook: str, rule: str, part: str
) -> None:
    address = ANNA.inner["ip6" in rule]
    with rules(network.b, hook, rule):
        found = why(hub, address)["findings"][0]
        assert (found["id"], part in found["text"]) == ("tunnel_blocked_here", True)
        if "wg0" in rule:
            assert f"packets of {hub.name} to or from itself: a rule in chain c" in doctor(hub)
    assert first(hub, address) == "well"


def test_a_rule_for_one_family_of_the_tunnel(network: Topology, hub: Hub, far: WireguardGo) -> None:
    with rules(network.b, "input", 'iifname "wg0" meta nfproto ipv6 drop'):
        assert broken(network.b, ANNA.inner[1])
        assert works(network.b, ANNA.inner[0])
        assert first(hub, ANNA) == "tunnel_blocked_here"


def test_a_rule_that_drops_the_whole_of_the_tunnel_is_a_trouble_for_doctor(network: Topology, hub: Hub) -> None:
    with rules(network.b, "input", 'iifname "wg0" drop'):
        told = doctor(hub)
        assert "wrong: this host drops packets of wg0 to or from itself" in told
        assert "nft delete rule inet broken c handle" in told


def test_doctor_names_an_endpoint_without_a_route(network: Topology, hub: Hub) -> None:
    network.b.run("ip", "route", "del", "default")
    try:
        assert f"its endpoint {Topology.A4}:{SILENT.port} can't be reached: this host has no route to it" in doctor(hub)
    finally:
        network.b.run("ip", "route", "add", "default", "via", Topology.CB4)


def test_a_rule_against_floods_is_not_to_blame(network: Topology, hub: Hub, far: WireguardGo) -> None:
    with rules(network.b, "input", f"udp dport {PORT} limit rate over 5000/second drop"):
        assert first(hub, ANNA) == "well"


def test_a_stage_that_is_stopped_is_named_at_once(network: Topology, hub: Hub) -> None:
    for stage in ("conn", "tun", "device"):
        stopped = hub.gateway.kill(stage, signal.SIGSTOP)
        try:
            found = why(hub, ANNA, "--no-try")["findings"][0]
            assert found["id"] == "service_away"
            assert f"{stage}-service" in found["text"]
            assert "a signal has stopped its process" in found["text"]
            assert f"`stagewire restart {stage} -i wg0`" in found["mend"]
            assert f"    stagewire restart {stage} -i wg0" in doctor(hub)
        finally:
            os.kill(stopped, signal.SIGCONT)
            until(lambda: hub.gateway.status()["ready"], 15, "all to work again")


def test_a_key_service_that_is_stopped_or_dead(network: Topology, hub: Hub) -> None:
    stopped = hub.gateway.kill("key", signal.SIGSTOP)
    try:
        begun = time.monotonic()
        found = why(hub, ANNA)["findings"][0]
        assert time.monotonic() - begun < 3 * slack
        assert (found["id"], "key-service, a signal has stopped its process" in found["text"]) == ("service_away", True)
        assert "`stagewire restart key -i wg0`" in found["mend"]
        assert "    stagewire restart key -i wg0" in doctor(hub)
        assert broken(network.b, SILENT.inner[0])
    finally:
        os.kill(stopped, signal.SIGCONT)
    until(lambda: hub.gateway.status()["ready"], 15, "all to work again")


def test_doctor_brings_a_stopped_key_service_back(hub: Hub) -> None:
    stopped = hub.gateway.kill("key", signal.SIGSTOP)
    try:
        hub.gateway.command("doctor", "--fix", hub.name, check=False, timeout=60)
        until(lambda: hub.gateway.status()["ready"], 15, "all to work again")
        assert hub.gateway.pid("key") != stopped
    finally:
        if Path(f"/proc/{stopped}").exists():
            os.kill(stopped, signal.SIGCONT)


def test_a_status_service_that_is_stopped_hides_no_cause(network: Topology, hub: Hub) -> None:
    stopped = hub.gateway.kill("status", signal.SIGSTOP)
    try:
        with rules(network.b, "input", f"udp dport {PORT} drop"):
            found = [each["id"] for each in why(hub, SILENT, "--no-try")["findings"]]
        assert found == ["port_blocked_here", "service_away"]
    finally:
        os.kill(stopped, signal.SIGCONT)
        until(lambda: hub.gateway.status()["ready"], 15, "all to work again")


def test_a_dead_stage_without_a_supervisord(hub: Hub) -> None:
    """Comes last: the gateway needs another supervisord afterwards."""
    os.kill(hub.gateway.pid(), signal.SIGKILL)
    for stage in ("conn", "key"):
        hub.gateway.kill(stage, signal.SIGKILL)
        until(lambda stage=stage: (stage, 0) not in hub.gateway.held(), 5, "its end")  # type: ignore[misc]
        found = why(hub, ANNA, "--no-try")["findings"]
        told = {each["text"].partition(": ")[2]: each["mend"] for each in found}
        assert f"{stage}-service is down" in told
        assert "/supervisord -c " in told[f"{stage}-service is down"]
        assert f"{stage}-service is down" in doctor(hub)
