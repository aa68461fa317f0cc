"""A wall clock that jumps, at a real gateway under traffic: what is counted, remembered, said, and goes by the time."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.system.whys import works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.traffic import ping
from lab.wait import until
from lab.wall_clock import WallClock
from stagewire.proto.constants import INITIATION_LENGTH

pytestmark = pytest.mark.system

ANNA, GUEST, STAYS = Spoke(1), Spoke(2), Spoke(3)
DAY = 86_400
PINGS = 20
ON_THE_WIRE = 16 + 1040 + 16
"""Bytes of a message with a ping of 1,000 bytes, padded."""


def at(days: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * DAY))


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("j") as topology:
        yield topology


@pytest.fixture(scope="module")
def clock(shared_directory: Path) -> WallClock:
    return WallClock(shared_directory)


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path, clock: WallClock) -> Iterator[Hub]:
    gateway = Hub(network.b, shared_directory / "g", {"anna": ANNA, "guest": GUEST, "stays": STAYS})
    text = gateway.config
    for spoke, line in ((ANNA, "Quota = 1G"), (GUEST, f"Expires = {at(20)}"), (STAYS, f"Expires = {at(100)}")):
        section = spoke.peer().section()
        text = text.replace(section, f"{section}\n# stagewire: {line}")
    gateway.config = text
    gateway.gateway.env |= clock.env
    with gateway:
        gateway.gateway.write_config(text)
        gateway.gateway.command("reload", gateway.name)
        yield gateway


def lines(hub: Hub, text: str) -> list[str]:
    logs = hub.gateway.logs().values()
    return [line for log in logs for line in log.splitlines() if line.startswith("timestamp=") and text in line]


def said(hub: Hub, *expected: str) -> None:
    """Waits until the log tells of these jumps, and of no other."""

    def found() -> list[str]:
        told = [*lines(hub, "the wall clock jumped"), *lines(hub, "the wall clock is back")]
        return sorted(word for line in told for word in line.split() if word.split("=")[0] in {"seconds", "days"})

    until(lambda: found() == sorted(expected), 10, f"the jumps {expected} to be said")


def kinds(hub: Hub) -> list[str]:
    text = hub.gateway.command("events", hub.name, "--json").stdout
    return [json.loads(line)["kind"] for line in text.splitlines()]


def peers(hub: Hub) -> set[str]:
    return {peer["public_key"] for peer in hub.gateway.status()["peers"]}


def _is_an_hour_back(hub: Hub) -> bool:
    """Tells whether a handshake of the last minutes is one by the clock that went back, too."""
    age = time.time() - 3600 - hub.peer(ANNA)["last_handshake_unix_s"]
    return bool(0 <= age < 600)


def history(hub: Hub) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        hub.gateway.command("history", ANNA.keys.public, "-i", hub.name, "--json").stdout
    )
    return found


def quota_used(hub: Hub) -> int:
    text = hub.gateway.command("peer", "show", ANNA.keys.public, "-i", hub.name, "--json").stdout
    return int(json.loads(text)["quota_used_bytes"])


def test_the_tunnel_goes_on_and_nothing_is_lost(network: Topology, hub: Hub, clock: WallClock) -> None:
    with hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        ping(network.a, ANNA.gateway_inner[0], count=PINGS, interval=0, size=1000)
        until(lambda: quota_used(hub) > 2 * PINGS * ON_THE_WIRE, 5, "the quota to count")
        until(lambda: kinds(hub).count("connected") == 1, 5, "the connection to be an event")
        used = quota_used(hub)
        with Pulse(network.a, hub.namespace, [ANNA.gateway_inner[0]], rate=200) as pulse:
            clock.be_ahead(-3600)
            said(hub, "seconds=-3600")
            until(lambda: _is_an_hour_back(hub), 10, "the handshake to be as old as it was")
            assert peers(hub) == {each.keys.public for each in (ANNA, GUEST, STAYS)}
            clock.be_ahead(0)
            said(hub, "seconds=-3600", "seconds=3600")
            clock.be_ahead(40 * DAY)
            said(hub, "seconds=-3600", "seconds=3600", "days=40.0")
            until(lambda: peers(hub) == {ANNA.keys.public, STAYS.keys.public}, 5, "the guest to go")
            in_this_month, carried = quota_used(hub), sum(hub.peer(ANNA)[way] for way in ("rx_bytes", "tx_bytes"))
            assert carried - in_this_month > used, "a month begins"
            clock.be_ahead(0)
            until(lambda: lines(hub, "the wall clock is back"), 10, "the clock to be back")
            assert quota_used(hub) >= used, "the month goes on"
            hub.expect_whole(pulse.finish())
        assert works(network.a, ANNA.gateway_inner[0])
    assert kinds(hub).count("connected") == 1
    assert not {"disconnected", "taken_over"} & {*kinds(hub)}
    assert kinds(hub).count("rekeyed") <= 1, "a jump is no handshake"
    assert hub.counters()["datagram_too_old"] == 0
    expect_history(hub)


def expect_history(hub: Hub) -> None:
    """Expects that what was carried meanwhile is in the history and outlives a `down`."""
    carried = hub.peer(ANNA)["rx_bytes"]
    hub.gateway.command("down", hub.name)
    found = history(hub)
    assert found["rx_bytes"] == carried
    with closing(sqlite3.connect(hub.gateway.state_directory / hub.name / "history/history.db")) as kept:
        for sums in ("SELECT sum(rx) FROM minutes", "SELECT sum(rx) FROM hours", "SELECT sum(rx) FROM months"):
            assert kept.execute(sums).fetchone() == (carried,)
    [connection] = found["connections"]
    # It begins with the first authentic packet: a report between that and the initiation counts the initiation before.
    assert carried - connection["rx_bytes"] in {0, INITIATION_LENGTH}
    assert 0 < connection["seconds"] < 600
    assert "# stagewire: Expires" in hub.gateway.config_path.read_text()
