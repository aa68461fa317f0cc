"""What `wg` changed outlives every restart: of key-service in both modes, of tun-service after its device was moved."""

import signal
from collections.abc import Iterator

import pytest

from lab.hub import Spoke
from lab.namespaces import Namespace, Topology
from lab.pulse import Pulse
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY, BareHub, WgHub, is_ready
from lab.wireguard_go import new_key_pair, new_preshared_key

pytestmark = pytest.mark.system

LEAVING = Spoke(40)
BOTH = {"psk": True}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("r") as topology:
        yield topology


def kill_and_wait(hub: WgHub, program: str) -> None:
    """Returns when all is ready again, with another process in its place."""
    before = hub.gateway.kill(program, signal.SIGKILL)

    def back() -> bool:
        if not is_ready(hub.gateway):
            return False
        replaced = hub.gateway.held().get((program, 0), before) != before
        return replaced and hub.wg("show", hub.name, check=False).returncode == 0

    until(back, 15, f"{program} to be back")


def change_everything(hub: WgHub) -> None:
    """By `wg`: each kind of change, of peers of the file and of others."""
    four, six = hub.over(4), hub.over(6)
    added, named = new_key_pair().public, new_key_pair().public
    hub.set("listen-port", str(hub.port + 3000), "fwmark", "0x77")
    hub.set("peer", LEAVING.keys.public, "allowed-ips", ",".join(LEAVING.networks))
    hub.set("peer", LEAVING.keys.public, "remove")
    hub.set("peer", four.keys.public, "persistent-keepalive", "21")
    hub.set("peer", six.keys.public, "persistent-keepalive", "22")
    hub.set("peer", four.keys.public, "allowed-ips", ",".join([*four.networks, "10.95.0.0/16"]))
    hub.set("peer", named, "endpoint", f"{Topology.CB4}:9", "allowed-ips", "10.94.0.0/16,fd94::/32")
    hub.set("peer", added, "preshared-key", "/dev/stdin", "allowed-ips", "10.95.0.0/16", data=new_preshared_key())


@pytest.mark.parametrize("mode", ["up", "bare"])
def test_key_service_forgets_nothing(network: Topology, both: dict[str, WgHub], mode: str) -> None:
    """With a session over each family, and packets in both."""
    hub = both[mode]
    four, six = hub.over(4), hub.over(6)
    with hub.wireguard_go(four, network.a) as at_four, hub.wireguard_go(six, network.a) as at_six:
        for address in (four.inner[0], six.inner[1]):
            assert ping(network.b, address).received == 1
        change_everything(hub)
        before = hub.wg("showconf", hub.name).stdout
        assert before.count("[Peer]") == 4
        for address in (four.inner[0], six.inner[1]):
            assert ping(network.b, address).received == 1  # and the peers know the new port
        handshakes = hub.show("latest-handshakes")
        with Pulse(network.a, network.b, [four.gateway_inner[0], six.gateway_inner[1]], rate=400) as pulse:
            kill_and_wait(hub, "key")
            hub.expect_whole(pulse.finish())
        assert hub.wg("showconf", hub.name).stdout == before
        assert hub.show("latest-handshakes") == handshakes
        # Also the key.
        fresh = new_key_pair()
        hub.set("private-key", "/dev/stdin", data=fresh.private)
        for spoke, peer in ((four, at_four), (six, at_six)):
            inner = f"{spoke.gateway_inner[0]}/32,{spoke.gateway_inner[1]}/128"
            shared = ["preshared-key", "/dev/stdin"] if spoke.psk else []
            peer.set("peer", hub.keys.public, "remove")
            peer.set("peer", fresh.public, *shared, "allowed-ips", inner, input=spoke.preshared_key)
        before = hub.wg("showconf", hub.name).stdout
        kill_and_wait(hub, "key")
        assert hub.wg("showconf", hub.name).stdout == before
        assert hub.show("public-key").strip() == fresh.public
        for address in (four.inner[0], six.inner[1]):
            until(lambda: ping(network.b, address).received, 10, "the tunnel, under the new key")  # noqa: B023
    # And peers that were all removed.
    hub.wg("setconf", hub.name, "/dev/stdin", data=f"[Interface]\nListenPort = {hub.port}\n")
    kill_and_wait(hub, "key")
    assert (hub.show("peers"), hub.show("public-key")) == ("", "(none)\n")


def test_an_edited_file_waits_for_reload(both: dict[str, WgHub]) -> None:
    """What `wg` changed before stays, too."""
    hub = both["up"]
    before = hub.dump()
    hub.gateway.write_config(hub.config.replace(f"ListenPort = {hub.port}", f"ListenPort = {hub.port + 9}"))
    kill_and_wait(hub, "key")
    assert (hub.dump().peers, hub.dump().listen_port) == (before.peers, before.listen_port)
    [warning] = hub.gateway.status()["warnings"]
    assert "has changed since it was read" in warning


def test_a_device_in_another_namespace_outlives_restarts(network: Topology, both: dict[str, WgHub]) -> None:
    """The UDP sockets stay where the daemon was started; the device is found again, packets and settings with it."""
    hub = both["bare"]
    assert isinstance(hub, BareHub)
    four, six = hub.over(4), hub.over(6)
    hub.wg("setconf", hub.name, "/dev/stdin", data=hub.stripped())
    with (
        Namespace("rin") as inside,
        hub.wireguard_go(four, network.a, GATEWAY[4]),
        hub.wireguard_go(six, network.a, GATEWAY[6]),
    ):
        network.b.run("ip", "link", "set", hub.name, "netns", inside.name)
        hub.address(inside)
        assert network.b.run("ip", "link", "show", hub.name, check=False).returncode != 0
        for spoke in (four, six):
            assert ping(network.a, spoke.gateway_inner[0]).received == 1
        for program in ("tun", "conn", "key", "device"):
            kill_and_wait(hub, program)
            for spoke in (four, six):
                until(lambda: ping(inside, spoke.inner[0]).received, 10, f"the tunnel after {program}")  # noqa: B023
                assert ping(network.a, spoke.gateway_inner[1]).received == 1
        assert hub.wg("show", hub.name, "dump").stdout.count("\n") == 3
        inside.run("ip", "link", "delete", hub.name)
        until(hub.bare.gone, 10, "it to clean up after its device")
