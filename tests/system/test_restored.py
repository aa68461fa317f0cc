"""A gateway restored on another host, to which its address has moved: its peers connect without knowing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.test_peers import Client, Single

from lab.hub import PORT
from lab.namespaces import Namespace, Topology, add_addresses
from lab.stagewire import Gateway
from lab.traffic import ping
from lab.wait import until
from lab.wg import WgHub

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

STAYS = Single(1)
GATEWAY = STAYS.gateway_inner


@pytest.fixture
def network() -> Iterator[Topology]:
    with Topology("m") as topology:
        yield topology


def move_address(network: Topology, other: Namespace) -> None:
    """Gives B's link, with its addresses and routes, to another host."""
    name = network.link_b.a_interface
    network.b.run("ip", "link", "set", name, "netns", other.name)
    add_addresses(other, name, [f"{Topology.B4}/24", f"{Topology.B6}/64"])
    other.run("ip", "link", "set", name, "up")
    other.run("ip", "link", "set", "lo", "up")
    other.run("ip", "-4", "route", "add", "default", "via", Topology.CB4)
    other.run("ip", "-6", "route", "add", "default", "via", Topology.CB6)


def test_peers_connect_to_the_restored_gateway_without_knowing(
    network: Topology, lab_directory: Path, shared_directory: Path
) -> None:
    passphrase, backup = shared_directory / "passphrase", shared_directory / "backup"
    passphrase.write_text("correct horse\n")
    line = f"# stagewire: ClientEndpoint = {Topology.B4}:{PORT}"
    with (
        Namespace("mother") as other,
        WgHub(network.b, shared_directory / "one", {"stays": STAYS}, line) as hub,
        hub.wireguard_go(STAYS, network.a, Topology.B4),
    ):
        said = hub.gateway.command("peer", "add", "phone", "--expires", "2999-01-01", "-i", hub.name).stdout
        with Client.read(said).runs(network):
            ways = [(network.a, GATEWAY[0]), (network.a, GATEWAY[1]), (network.c, GATEWAY[0])]
            for namespace, address in ways:
                until(lambda at=namespace, to=address: ping(at, to, timeout=1).received, 15, "the tunnel")  # type: ignore[misc]
            secret = ("--passphrase-file", str(passphrase))
            hub.gateway.command("backup", str(hub.gateway.config_path), "--output", str(backup), *secret)
            hub.gateway.down()
            move_address(network, other)
            restored = Gateway(other, hub.name, lab_directory, "")
            restored.command("restore", str(backup), "--as", str(restored.config_path), *secret)
            assert restored.config_path.read_text() == hub.gateway.config_path.read_text()
            try:
                restored.command("up", str(restored.config_path), timeout=60)
                for namespace, address in ways:
                    until(lambda at=namespace, to=address: ping(at, to, timeout=1).received, 40, "the tunnel again")  # type: ignore[misc]
                assert restored.status()["warnings"] == []
            finally:
                restored.down()
