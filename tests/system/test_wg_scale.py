"""Large configurations through `wg` while a stream of another peer runs: how long each takes, and what the stream sees.

The figures are printed. The issue asks for at most 50 ms of standstill; what is asserted leaves room for a busy machine.
"""

import base64
import signal
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, StreamReport, ping
from lab.wait import until
from lab.wg import BareHub, is_ready, say
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system

STEADY = Spoke(1, Topology.A4)
PREFIXES, PEERS = 130_560, 10_000
STANDSTILL = 0.25


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("k") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[BareHub]:
    with BareHub(network.b, shared_directory, {"steady": STEADY}) as hub:
        yield hub


def beside_a_stream(network: Topology, hub: BareHub, what: str, change: Callable[[], object]) -> StreamReport:
    """1,000 packets/s both before and after, and while the change is made and settles in every stage."""
    with NumberedStream(network.a, network.b, STEADY.gateway_inner[0], rate=1000) as stream:
        until(lambda: stream.received > 200, 5, "the stream")
        begun = time.monotonic()
        change()
        took = time.monotonic() - begun
        sent = stream.sent
        until(lambda: stream.sent > sent + 1000, 10, "a second more of the stream")
        report = stream.finish()
    print(
        f"{what}: {took:.2f} s; longest gap {report.longest_gap * 1000:.0f} ms (our sender's own"
        f" {report.longest_send_gap * 1000:.0f} ms), {report.lost} of {report.sent} lost"
    )
    assert report.duplicates == report.foreign == 0
    assert report.longest_gap - report.longest_send_gap < STANDSTILL
    hub.expect_whole(report)
    return report


def restart_key_service(hub: BareHub) -> None:
    hub.gateway.kill("key", signal.SIGKILL)
    until(lambda: is_ready(hub.gateway), 20, "key-service to be back")


def networks(count: int) -> Iterator[str]:
    """Distinct ones, half of them IPv6."""
    for number in range(count // 2):
        yield f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32"
        yield f"fd99:{number >> 16:x}:{number & 65535:x}::/48"


def section(key: str, allowed: list[str]) -> str:
    return f"[Peer]\nPublicKey = {key}\nAllowedIPs = {', '.join(allowed)}\n"


def encoded(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "little")).decode()


def many(hub: BareHub, numbers: range) -> str:
    """The steady peer and some more, whose public keys are any 32 bytes, each with two prefixes."""
    sections = [
        section(
            encoded(number + 2),
            [f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32", f"fd98:{number:x}::/48"],
        )
        for number in numbers
    ]
    return hub.stripped() + "".join(sections)


def test_a_peer_with_130560_allowed_ips(network: Topology, hub: BareHub) -> None:
    with hub.wireguard_go(STEADY, network.a, Topology.B4):
        assert ping(network.a, STEADY.gateway_inner[0]).received == 1
        other = new_key_pair().public
        text = section(other, list(networks(PREFIXES)))
        beside_a_stream(
            network, hub, "addconf, 1 peer with 130,560 prefixes",
            lambda: hub.wg("addconf", hub.name, "/dev/stdin", data=text),
        )  # fmt: skip
        begun = time.monotonic()
        shown = hub.dump().peers[other].allowed_ips
        print(f"show dump: {time.monotonic() - begun:.2f} s")
        assert len(shown) == PREFIXES
        assert {ip_network(each) for each in shown} == set(map(ip_network, networks(PREFIXES)))
        beside_a_stream(network, hub, "show", lambda: hub.wg("show", hub.name))
        beside_a_stream(
            network, hub, "set, one prefix more for another peer",
            lambda: hub.set("peer", STEADY.keys.public, "allowed-ips", ",".join([*STEADY.networks, "10.93.0.0/16"])),
        )  # fmt: skip
        beside_a_stream(network, hub, "key-service killed, until ready", lambda: restart_key_service(hub))
        assert len(hub.dump().peers[other].allowed_ips) == PREFIXES
        beside_a_stream(network, hub, "remove", lambda: hub.set("peer", other, "remove"))
        assert set(hub.dump().peers) == {STEADY.keys.public}


def test_10000_peers(network: Topology, hub: BareHub) -> None:
    with hub.wireguard_go(STEADY, network.a, Topology.B4):
        text = many(hub, range(PEERS))
        begun = time.monotonic()
        hub.wg("setconf", hub.name, "/dev/stdin", data=text)
        print(f"setconf, 10,000 peers: {time.monotonic() - begun:.2f} s")
        until(lambda: ping(network.a, STEADY.gateway_inner[0]).received, 15, "a session among them")
        begun = time.monotonic()
        assert len(hub.dump().peers) == PEERS + 1
        print(f"show dump, 10,000 peers: {time.monotonic() - begun:.2f} s")
        changed = many(hub, range(500, PEERS + 500))
        beside_a_stream(
            network, hub, "syncconf, 500 of 10,000 peers go and 500 come",
            lambda: hub.wg("syncconf", hub.name, "/dev/stdin", data=changed),
        )  # fmt: skip
        assert len(hub.dump().peers) == PEERS + 1
        only = hub.stripped()
        beside_a_stream(
            network, hub, "syncconf, 10,000 peers go",
            lambda: hub.wg("syncconf", hub.name, "/dev/stdin", data=only),
        )  # fmt: skip
        beside_a_stream(
            network, hub, "syncconf, 10,000 peers come",
            lambda: hub.wg("syncconf", hub.name, "/dev/stdin", data=changed),
        )  # fmt: skip
        assert say(hub.name, "get=1\n\n").count(b"public_key=") == PEERS + 1
