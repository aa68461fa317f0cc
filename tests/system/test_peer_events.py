"""A peer's way at a real gateway: it connects, moves, rekeys and goes. What 180 s of silence do, `test_presence` shows."""

import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import schemas
from tests.system.whys import works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.wait import until

pytestmark = pytest.mark.system

ANNA = Spoke(1, name="Anna's phone")


class Moved(Spoke):
    """The same peer at another port."""

    @property
    def port(self) -> int:
        return super().port + 100


MOVED = Moved(1, keys=ANNA.keys, preshared_key=ANNA.preshared_key)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("y") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {"anna": ANNA}) as gateway:
        yield gateway


def events(hub: Hub, kind: str) -> list[dict[str, Any]]:
    text = hub.gateway.command("events", hub.name, "--json", "--kind", kind).stdout
    return [json.loads(line) for line in text.splitlines()]


def received(hub: Hub) -> float:
    """Returns the bytes received from Anna, as status-service tells them."""
    with hub.namespace.call(lambda: urllib.request.urlopen("http://127.0.0.1:9586/metrics", timeout=5)) as answer:
        [count] = re.findall(r"^wireguard_received_bytes_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(count)


def test_a_peer_connects_moves_rekeys_and_goes(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: len(events(hub, "connected")) == 1, 10, "the connection")
    with hub.wireguard_go(MOVED, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: events(hub, "moved") and events(hub, "rekeyed"), 10, "the next place and the next session")
        hub.gateway.command("peer", "disable", "Anna", "-i", hub.name)
        until(lambda: len(events(hub, "disconnected")) == 1, 10, "the end of the connection")
    [move], [end] = events(hub, "moved"), events(hub, "disconnected")
    assert (move["before"].rpartition(":")[2], move["endpoint"].rpartition(":")[2]) == (str(ANNA.port), str(MOVED.port))
    assert end["rx_bytes"] > 0
    assert end["tx_bytes"] > 0
    for kind in ("connected", "moved", "rekeyed", "disconnected"):
        for event in events(hub, kind):
            schemas.check(event, "event")
            assert (event["public_key"], event["name"]) == (ANNA.keys.public, "Anna's phone")
    log = "".join(hub.gateway.logs().values())
    for said in ("peer connected", "peer disconnected"):
        [line] = [line for line in log.splitlines() if f'event="{said}"' in line]
        assert "Anna's phone" in line
        assert "level=info" in line


def test_a_killed_key_service_is_no_handshake(network: Topology, hub: Hub) -> None:
    """The next key-service hears of the handshake from the worker: at the same time, so that no event tells of another."""
    hub.gateway.command("peer", "enable", "Anna", "-i", hub.name)
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: len(events(hub, "connected")) == 2, 10, "the connection")
        shaken = hub.peer(ANNA)["last_handshake_unix_s"]
        told = len(events(hub, "rekeyed"))
        killed = hub.gateway.kill("key", signal.SIGKILL)
        until(lambda: hub.gateway.held().get(("key", 0), killed) != killed, 10, "another key-service")
        until(lambda: hub.gateway.status()["peers"], 10, "the next key-service's word")
        before = received(hub)
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: received(hub) > before, 10, "a report by the next key-service")
        assert hub.peer(ANNA)["last_handshake_unix_s"] == pytest.approx(shaken, abs=1e-5)
    assert len(events(hub, "rekeyed")) == told


def test_a_peer_that_is_disabled_as_key_service_dies_is_seen_to_go(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: len(events(hub, "connected")) > len(events(hub, "disconnected")), 10, "the connection")
        hub.gateway.kill("key", signal.SIGKILL)
        hub.gateway.command("peer", "disable", "Anna", "-i", hub.name)
        until(
            lambda: len(events(hub, "disconnected")) == len(events(hub, "connected")), 10, "the end of the connection"
        )
