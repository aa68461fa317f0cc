"""Stagewire at both ends, timestamps in responses, and two interfaces in one namespace.

A: wg0, wg1    B: wg0      wg0 - wg0: both ask for timestamps. wg1 - wg0: only wg1, which initiates, does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.capture import Capture
from lab.hub import PORT, Hub, Spoke, together
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wait import until
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system

RESPONSE = 2
PLAIN_RESPONSE, STAMPED_RESPONSE = 92, 104
REMOTE = new_key_pair()
FIRST, SECOND = Spoke(1, response_timestamp=True), Spoke(2)
"""As the remote gateway in B has the two in A."""
UNSTAMPED, STAMPED = Spoke(3), Spoke(4, response_timestamp=True)
"""wireguard-go's, which knows nothing of timestamps."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("s") as topology:
        yield topology


class Mirrored(Spoke):
    """A spoke as seen from its own end: the other's key, and the inner addresses the other way round."""

    @property
    def gateway_inner(self) -> tuple[str, str]:
        return super().inner

    @property
    def inner(self) -> tuple[str, str]:
        return super().gateway_inner


class Hubs(NamedTuple):
    remote: Hub
    first: Hub
    second: Hub


@pytest.fixture(scope="module")
def hubs(network: Topology, shared_directory: Path) -> Iterator[Hubs]:
    spokes = {"first": FIRST, "second": SECOND, "unstamped": UNSTAMPED, "stamped": STAMPED}
    three = Hubs(
        Hub(network.b, shared_directory / "b", spokes, keys=REMOTE),
        local(network, shared_directory / "a", "wg0", FIRST),
        local(network, shared_directory / "a", "wg1", SECOND),
    )
    with together(*three):
        yield three


def local(network: Topology, directory: Path, name: str, seen: Spoke) -> Hub:
    """A gateway in A, whose one peer is the remote one."""
    spoke = Mirrored(seen.number, Topology.B4, PORT, keys=REMOTE, response_timestamp=True)
    line = "# stagewire: RekeyAfterTime = 5"
    return Hub(network.a, directory, {"remote": spoke}, line, name=name, port=seen.port, keys=seen.keys)


def remote_as_seen_by(hub: Hub) -> dict[str, Any]:
    return hub.peer(hub.spokes["remote"])


def response_lengths(outer: Capture, spoke: Spoke) -> set[int]:
    return {len(each.payload) for each in outer.datagrams(spoke.port) if each.payload[0] == RESPONSE}


def test_responses_carry_timestamps_when_both_want_them(network: Topology, hubs: Hubs) -> None:
    with Capture(network.b, network.link_b.a_interface) as outer:
        for address in FIRST.gateway_inner:
            assert ping(network.a, address, count=3, size=1300).received == 3
        for address in FIRST.inner:
            assert ping(network.b, address, count=3).received == 3
        # There may have been a session before; then it takes until the next.
        until(lambda: ping(network.a, FIRST.gateway_inner[0]).received and response_lengths(outer, FIRST), 15, "one")
        assert response_lengths(outer, FIRST) == {STAMPED_RESPONSE}
    assert abs(remote_as_seen_by(hubs.first)["clock_skew_s"]) < 0.3  # it is the same clock, rounded down to 17 ms
    assert hubs.remote.peer(FIRST)["clock_skew_s"] is None  # it has read no response
    assert "clock skew" in hubs.first.gateway.command("status", "wg0").stdout


def test_an_initiator_who_knows_no_timestamps_gets_no_session(network: Topology, hubs: Hubs) -> None:
    with (
        Capture(network.b, network.link_b.a_interface) as outer,
        hubs.remote.wireguard_go(STAMPED, network.a, Topology.B4) as peer,
    ):
        assert ping(network.a, STAMPED.gateway_inner[0], timeout=0.5).received == 0
        assert response_lengths(outer, STAMPED) == {STAMPED_RESPONSE}
        assert peer.dump().peers[hubs.remote.keys.public].latest_handshake == 0
        assert hubs.remote.peer(STAMPED)["last_handshake_unix_s"] is None


def test_without_the_option_responses_are_as_wireguard_has_them(network: Topology, hubs: Hubs) -> None:
    with (
        Capture(network.b, network.link_b.a_interface) as outer,
        hubs.remote.wireguard_go(UNSTAMPED, network.a, Topology.B4),
    ):
        assert ping(network.a, UNSTAMPED.gateway_inner[1], size=1300).received == 1
        assert ping(network.b, UNSTAMPED.inner[0]).received == 1
        assert response_lengths(outer, UNSTAMPED) == {PLAIN_RESPONSE}
        assert hubs.remote.peer(UNSTAMPED)["clock_skew_s"] is None


def test_a_response_without_the_timestamp_we_want_is_refused(network: Topology, hubs: Hubs) -> None:
    """Until we want it no longer: for that, one of two interfaces goes and comes back, and leaves no trace meanwhile."""
    with Capture(network.b, network.link_b.a_interface) as outer:
        assert ping(network.a, SECOND.gateway_inner[0], timeout=0.5).received == 0
        until(lambda: hubs.second.counters()["response_without_timestamp"] > 0, 5, "the refusal to be counted")
        assert response_lengths(outer, SECOND) == {PLAIN_RESPONSE}
    assert remote_as_seen_by(hubs.second)["last_handshake_unix_s"] is None
    assert hubs.remote.peer(SECOND)["last_handshake_unix_s"] is None

    take_down(network, hubs)
    hubs.second.gateway.write_config(hubs.second.config.replace("# stagewire: ResponseTimestamp = on\n", ""))
    hubs.second.gateway.up()
    with Capture(network.b, network.link_b.a_interface) as outer:
        until(lambda: ping(network.a, SECOND.gateway_inner[0]).received, 15, "a session")
        assert response_lengths(outer, SECOND) == {PLAIN_RESPONSE}
    for address in (SECOND.gateway_inner[1], FIRST.gateway_inner[1]):
        assert ping(network.a, address).received == 1


def take_down(network: Topology, hubs: Hubs) -> None:
    """wg1, beside wg0, which must not notice."""
    first, second = hubs.first.gateway, hubs.second.gateway
    directory = second.run_directory / "wg1"
    processes = {service["pid"] for service in second.status()["services"]}
    assert directory.exists()
    assert processes <= set(network.a.pids())
    second.down()
    assert not directory.exists()
    assert "wg1" not in network.a.run("ip", "link").stdout
    assert "wg1" not in network.a.run("ip", "route", "show", "table", "all").stdout
    assert not processes & set(network.a.pids())
    assert {path.name for path in second.run_directory.iterdir()} == {"wg0", "wg0.uids"}
    assert ping(network.a, FIRST.gateway_inner[0], count=2).received == 2
    assert {service["state"] for service in first.status()["services"]} == {"RUNNING"}
