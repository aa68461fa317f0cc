"""What wireguard-go does where Stagewire does something else: the other half of COMPATIBILITY.md's second table."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY, WgHub, hexadecimal, say
from lab.wireguard_go import SOCKETS, WireguardGo

pytestmark = pytest.mark.system

SPOKE = Spoke(1, Topology.A4)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("y") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    with WgHub(network.b, shared_directory, {"it": SPOKE}) as hub:
        yield hub


@pytest.fixture
def other(request: pytest.FixtureRequest, network: Topology, hub: WgHub) -> Iterator[WireguardGo]:
    with hub.wireguard_go(SPOKE, network.a, GATEWAY[getattr(request, "param", 4)]) as other:
        yield other


def test_a_set_with_a_mistake(hub: WgHub, other: WireguardGo) -> None:
    text = "set=1\nfwmark=77\nrabbit=1\n\n"
    assert say(hub.name, text) == b"errno=-22\n\n"
    assert b"fwmark" not in say(hub.name, "get=1\n\n")
    assert say(other.interface, text) == b"errno=-22\n\n"
    assert b"fwmark=77\n" in say(other.interface, "get=1\n\n")


def test_a_set_without_its_empty_line(hub: WgHub, other: WireguardGo) -> None:
    text = "set=1\nfwmark=77\n"
    assert say(hub.name, text) == b"errno=-71\n\n"
    assert b"fwmark" not in say(hub.name, "get=1\n\n")
    assert say(other.interface, text) == b"errno=0\n\n"
    assert b"fwmark=77\n" in say(other.interface, "get=1\n\n")


@pytest.mark.parametrize("other", [4, 6], indirect=True)
def test_a_peer_that_is_replaced_by_itself(network: Topology, hub: WgHub, other: WireguardGo) -> None:
    """`wg setconf` with what is in force already: our side keeps the session, theirs begins anew."""
    assert ping(network.a, SPOKE.gateway_inner[0]).received == 1
    hub.wg("setconf", hub.name, "/dev/stdin", data=hub.wg("showconf", hub.name).stdout)
    assert hub.dump().peers[SPOKE.keys.public].latest_handshake > 0
    assert ping(network.b, SPOKE.inner[0]).received == 1
    shown = network.a.run("wg", "showconf", other.interface).stdout
    network.a.run("wg", "setconf", other.interface, "/dev/stdin", input=shown)
    assert other.dump().peers[hub.keys.public].latest_handshake == 0


def test_a_zone_of_an_endpoint(hub: WgHub, other: WireguardGo) -> None:
    """Both take names and numbers of interfaces, and theirs is gone from what is shown, and so from what is saved."""
    for interface, key, shown in (
        (other.interface, hub.keys.public, b"[fe80::1]:1"),
        (hub.name, SPOKE.keys.public, b"[fe80::1%1]:1"),
    ):
        for zone, answer in (("lo", b"errno=0\n\n"), ("1", b"errno=0\n\n"), ("nowhere", b"errno=-22\n\n")):
            text = f"set=1\npublic_key={hexadecimal(key)}\nendpoint=[fe80::1%{zone}]:1\n\n"
            assert say(interface, text) == answer
            assert b"endpoint=" + shown + b"\n" in say(interface, "get=1\n\n")


def test_the_private_key_is_in_the_answer(hub: WgHub, other: WireguardGo) -> None:
    for interface in (hub.name, other.interface):
        assert b"private_key=" in say(interface, "get=1\n\n")


def test_it_ends_at_once_with_its_socket(network: Topology, other: WireguardGo) -> None:
    (SOCKETS / f"{other.interface}.sock").unlink()

    def gone() -> bool:
        return network.a.run("ip", "link", "show", other.interface, check=False).returncode != 0

    until(gone, 1, "it to end", promptly=True)
