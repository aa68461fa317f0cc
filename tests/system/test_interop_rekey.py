"""Rekeying under traffic, every five seconds instead of every two minutes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.decode import decode_all
from lab.hub import PORT, Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

WE, THEY = Spoke(1, Topology.A4), Spoke(2)
REKEY_AFTER_TIME = 5
REKEYS = {"we": 3, "they": 2}
SPAN = 3 * REKEY_AFTER_TIME
"""s that either takes: a session's responder leaves the other side five more before it rekeys itself."""
TRANSPORT = 4
RATE = 250


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("r") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    line = f"# stagewire: RekeyAfterTime = {REKEY_AFTER_TIME}"
    with Hub(network.b, shared_directory, {"we": WE, "they": THEY}, line) as hub:
        yield hub


def handshake_times(hub: Hub, spoke: Spoke, peer: WireguardGo) -> tuple[float, int]:
    """Ours and theirs."""
    return hub.peer(spoke)["last_handshake_unix_s"], peer.dump().peers[hub.keys.public].latest_handshake


def streams(network: Topology, spoke: Spoke) -> tuple[NumberedStream, NumberedStream]:
    """One each way."""
    return (
        NumberedStream(network.a, network.b, spoke.gateway_inner[0], rate=RATE),
        NumberedStream(network.b, network.a, spoke.inner[1], rate=RATE),
    )


def test_nothing_is_lost_or_doubled_while_keys_change(network: Topology, hub: Hub) -> None:
    """wireguard-go rekeys after 120 s, so from our first rekey on (as its responder, 5 s later) it is we who initiate."""
    with (
        Capture(network.b, network.link_b.a_interface, snap=192) as outer,
        hub.wireguard_go(WE, network.a) as answers,
        hub.wireguard_go(THEY, network.a, Topology.B4) as initiates,
    ):
        assert ping(network.b, WE.inner[0]).received == 1
        assert ping(network.a, THEY.gateway_inner[0]).received == 1
        assert "Sending handshake initiation" in initiates.logs()
        before = handshake_times(hub, WE, answers), handshake_times(hub, THEY, initiates)
        (in1, out1), (in2, out2) = streams(network, WE), streams(network, THEY)
        with in1, out1, in2, out2:
            until(lambda: handshakes(answers) > REKEYS["we"], 30, "our session to be renewed")
            until(lambda: handshakes(initiates) > REKEYS["they"], 30, "their session to be renewed")
            reports = [stream.finish() for stream in (in1, out1, in2, out2)]
            hub.expect_whole(*reports)
            assert min(report.sent for report in reports) > SPAN * RATE / 2
        after = handshake_times(hub, WE, answers), handshake_times(hub, THEY, initiates)
        for earlier, later in zip(before, after, strict=True):
            for side in (0, 1):
                assert later[side] - earlier[side] > SPAN - 2
        outer.assert_no_duplicate_counters(PORT)
        check_sessions(outer, WE, 1 + REKEYS["we"])
        check_sessions(outer, THEY, 1 + REKEYS["they"])


def handshakes(peer: WireguardGo) -> int:
    """How many there were by the peer's own account, whoever initiated."""
    logs = peer.logs()
    return logs.count("Received handshake response") + logs.count("Sending handshake response")


def check_sessions(outer: Capture, spoke: Spoke, sessions: int) -> None:
    """All but the last were used in both directions, and their counters begin at 0."""
    counters: dict[int, list[int]] = {}
    for kind, fields, _ in decode_all(outer.datagrams(spoke.port)):
        if kind == TRANSPORT:
            counters.setdefault(fields["receiver_index"], []).append(fields["counter"])
    assert len(counters) >= 2 * (sessions - 1)
    assert all(min(used) == 0 for used in counters.values())
