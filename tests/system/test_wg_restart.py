"""What `wg` changed outlives every restart: of key-service in both modes, of tun-service after its device was moved."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Spoke, together
from lab.namespaces import Namespace, Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import BareHub, WgHub, is_ready
from lab.wireguard_go import new_key_pair, new_preshared_key

pytestmark = pytest.mark.system

UP = {"over IPv4": Spoke(1, Topology.A4), "over IPv6": Spoke(2, f"[{Topology.A6}]", psk=True)}
BARE = {"over IPv4": Spoke(11, Topology.A4), "over IPv6": Spoke(12, f"[{Topology.A6}]", psk=True)}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("r") as topology:
        yield topology


@pytest.fixture(scope="module")
def both(network: Topology, shared_directory: Path) -> Iterator[dict[str, WgHub]]:
    hubs = {
        "up": WgHub(network.b, shared_directory / "u", UP),
        "bare": BareHub(network.b, shared_directory / "d", BARE),
    }
    with together(*hubs.values()):
        yield hubs


def kill_and_wait(hub: WgHub, program: str) -> None:
    """Returns when all is ready again, with another process in its place."""
    before = hub.gateway.kill(program, signal.SIGKILL)

    def back() -> bool:
        if not is_ready(hub.gateway):
            return False
        return hub.gateway.pid(program) != before and hub.wg("show", hub.name, check=False).returncode == 0

    until(back, 15, f"{program} to be back")


def change_everything(hub: WgHub) -> None:
    """By `wg`: each kind of change, of peers of the file and of others."""
    steady, leaving = hub.spokes.values()
    added, named = new_key_pair().public, new_key_pair().public
    hub.set("listen-port", str(hub.port + 3000), "fwmark", "0x77")
    hub.set("peer", leaving.keys.public, "remove")
    hub.set("peer", steady.keys.public, "persistent-keepalive", "21")
    hub.set("peer", steady.keys.public, "allowed-ips", ",".join([*steady.networks, "10.95.0.0/16"]))
    hub.set("peer", named, "endpoint", f"{Topology.CB4}:9", "allowed-ips", "10.94.0.0/16,fd94::/32")
    hub.set("peer", added, "preshared-key", "/dev/stdin", "allowed-ips", "10.95.0.0/16", data=new_preshared_key())


@pytest.mark.parametrize("mode", ["up", "bare"])
def test_key_service_forgets_nothing(network: Topology, both: dict[str, WgHub], mode: str) -> None:
    hub = both[mode]
    steady = hub.spokes["over IPv4"]
    with hub.wireguard_go(steady, network.a) as peer:
        assert ping(network.b, steady.inner[0]).received == 1
        change_everything(hub)
        before = hub.wg("showconf", hub.name).stdout
        assert before.count("[Peer]") == 3
        assert ping(network.b, steady.inner[0]).received == 1  # and the peer knows the new port
        handshake = hub.dump().peers[steady.keys.public].latest_handshake
        with NumberedStream(network.a, network.b, steady.gateway_inner[0], rate=200) as stream:
            kill_and_wait(hub, "key-service")
            hub.expect_whole(stream.finish())
        assert hub.wg("showconf", hub.name).stdout == before
        assert hub.dump().peers[steady.keys.public].latest_handshake == handshake
        # Also the key, and peers that were all removed.
        fresh = new_key_pair()
        hub.set("private-key", "/dev/stdin", data=fresh.private)
        inner = f"{steady.gateway_inner[0]}/32,{steady.gateway_inner[1]}/128"
        peer.set("peer", hub.keys.public, "remove", "peer", fresh.public, "allowed-ips", inner)
        before = hub.wg("showconf", hub.name).stdout
        kill_and_wait(hub, "key-service")
        assert hub.wg("showconf", hub.name).stdout == before
        assert hub.show("public-key").strip() == fresh.public
        until(lambda: ping(network.b, steady.inner[0]).received, 10, "the tunnel, under the new key")
    hub.wg("setconf", hub.name, "/dev/stdin", data=f"[Interface]\nListenPort = {hub.port}\n")
    kill_and_wait(hub, "key-service")
    assert (hub.show("peers"), hub.show("public-key")) == ("", "(none)\n")


def test_an_edited_file_is_the_newer_word(both: dict[str, WgHub]) -> None:
    hub = both["up"]
    hub.gateway.write_config(hub.config.replace(f"ListenPort = {hub.port}", f"ListenPort = {hub.port + 9}"))
    kill_and_wait(hub, "key-service")
    assert set(hub.dump().peers) == {spoke.keys.public for spoke in hub.spokes.values()}
    assert hub.dump().listen_port == hub.port + 9


def test_a_device_in_another_namespace_outlives_restarts(network: Topology, both: dict[str, WgHub]) -> None:
    """The UDP sockets stay where the daemon was started; the device is found again, packets and settings with it."""
    hub = both["bare"]
    assert isinstance(hub, BareHub)
    spoke = hub.spokes["over IPv4"]
    hub.wg("setconf", hub.name, "/dev/stdin", data=hub.stripped())
    with Namespace("rin") as inside, hub.wireguard_go(spoke, network.a, Topology.B4):
        network.b.run("ip", "link", "set", hub.name, "netns", inside.name)
        hub.address(inside)
        assert network.b.run("ip", "link", "show", hub.name, check=False).returncode != 0
        assert ping(network.a, spoke.gateway_inner[0]).received == 1
        for program in ("tun-service", "conn-service", "key-service", "device-service:device-service_00"):
            kill_and_wait(hub, program)
            until(lambda: ping(inside, spoke.inner[0]).received, 10, f"the tunnel after {program}")
            assert ping(network.a, spoke.gateway_inner[1]).received == 1
        assert hub.wg("show", hub.name, "dump").stdout.count("\n") == 3
        inside.run("ip", "link", "delete", hub.name)
        until(hub.bare.gone, 10, "it to clean up after its device")
