"""A full disk under a running gateway: each command that writes says so in a line, and changes and costs nothing."""

from pathlib import Path

import pytest
from tests.services.disks import full_disk, small_disk
from tests.system.test_peers import Single

from lab.hub import PORT
from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.traffic import ping
from lab.wait import until
from lab.wg import WgHub

pytestmark = pytest.mark.system

STAYS = Single(1)
GATEWAY = STAYS.gateway_inner[0]
WRITING = (
    ("peer", "add", "b", "-i"), ("peer", "set", "a", "--mtu", "1300", "-i"), ("peer", "disable", "a", "-i"),
    ("peer", "rotate", "a", "-i"), ("peer", "rename", "a", "c", "-i"), ("peer", "remove", "a", "-i"),
    ("apply",), ("apply", "--confirm", "5"), ("save",),
)  # fmt: skip


def test_each_command_that_writes_says_so_and_the_tunnel_notices_nothing(lab_directory: Path) -> None:
    line = f"# stagewire: ClientEndpoint = {Topology.B4}:{PORT}"
    with (
        small_disk(lab_directory / "d", "12m") as disk,
        Topology("fd") as network,
        WgHub(network.b, disk, {"stays": STAYS}, line) as hub,
        hub.wireguard_go(STAYS, network.a, Topology.B4),
    ):
        until(lambda: ping(network.a, GATEWAY).received == 1, 10, "the tunnel")
        hub.gateway.command("peer", "add", "a", "-i", hub.name)
        before, names = hub.gateway.config_path.read_text(), {each.name for each in disk.iterdir()}
        with Pulse(network.a, network.b, [GATEWAY], rate=400) as pulse:
            until(lambda: pulse.received > 100, 10, "packets to flow")
            with full_disk(disk) as ballast:
                for words in WRITING:
                    done = hub.gateway.command(*words, hub.name, check=False)
                    assert done.returncode == 1
                    assert "No space left on device" in done.stderr
                    assert len(done.stderr.splitlines()) == 1
                assert hub.gateway.config_path.read_text() == before
                assert {each.name for each in disk.iterdir()} == {*names, ballast.name}
                assert len(hub.dump().peers) == 2
                ballast.unlink()
            hub.gateway.command("peer", "add", "b", "-i", hub.name)
            hub.expect_whole(pulse.finish())
        assert hub.gateway.status()["warnings"] == []
