"""Changes of a running interface by `wg set`: keys, endpoints, ports, marks, keepalives; wireguard-go at the other end."""

import base64
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab.capture import Capture
from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import GATEWAY, INNER, WgHub, hexadecimal, say
from lab.wireguard_go import Peer, WireguardGo, new_key_pair

pytestmark = pytest.mark.system

OTHER = {4: 6, 6: 4}
INITIATION, KEEPALIVE = 148, 32


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("l") as topology:
        yield topology


@pytest.fixture(params=["up", "bare"])
def hub(request: pytest.FixtureRequest, both: dict[str, WgHub]) -> Iterator[WgHub]:
    """One of them; afterwards it is again as it was configured."""
    hub = both[request.param]
    yield hub
    hub.set("fwmark", "off")
    hub.wg("setconf", hub.name, "/dev/stdin", data=hub.stripped())
    for spoke in hub.spokes.values():  # also without a session and without what was counted
        hub.set("peer", spoke.keys.public, "remove")
    hub.wg("setconf", hub.name, "/dev/stdin", data=hub.stripped())


def host(spoke: Spoke) -> str:
    assert spoke.host is not None
    return spoke.host


@pytest.mark.parametrize("family", [4, 6])
def test_private_key(network: Topology, hub: WgHub, family: int) -> None:
    """The next handshake is under the new key, and isn't kept waiting by the one before."""
    spoke, fresh = hub.over(family), new_key_pair()
    with hub.wireguard_go(spoke, network.a) as peer:
        assert ping(network.b, spoke.inner[0]).received == 1
        hub.set("peer", fresh.public, "allowed-ips", "10.99.0.0/16")
        assert fresh.public in hub.dump().peers
        begun = time.monotonic()
        hub.set("private-key", "/dev/stdin", data=fresh.private)
        assert hub.show("public-key").strip() == fresh.public
        assert fresh.public not in hub.dump().peers, "a peer with our own key"
        inner = ",".join([f"{spoke.gateway_inner[0]}/32", f"{spoke.gateway_inner[1]}/128"])
        # What they still send under the old session is let in; what we send waits for the new one.
        before = hub.dump().peers[spoke.keys.public].received
        assert ping(network.a, spoke.gateway_inner[0], timeout=0.3).received == 0
        until(lambda: hub.dump().peers[spoke.keys.public].received > before, 3, "their packet to be counted")
        peer.set("peer", hub.keys.public, "remove", "peer", fresh.public, "allowed-ips", inner)
        hub.set("private-key", "/dev/stdin", data=new_key_pair().private)
        hub.set("private-key", "/dev/stdin", data=fresh.private)
        assert ping(network.b, spoke.inner[1]).received == 1
        assert time.monotonic() - begun < 4.5, "it waited for the interval between two initiations"


@pytest.mark.parametrize("family", [4, 6])
def test_private_key_is_clamped_and_can_be_taken_away(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)
    hub.set("private-key", "/dev/stdin", data="/" * 42 + "8=")
    clamped = base64.b64decode(hub.show("private-key"))
    assert (clamped[0] & 7, clamped[31] & 192) == (0, 64)
    hub.set("private-key", "/dev/null")
    assert hub.show("private-key") == "(none)\n"
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]):
        assert ping(network.b, spoke.inner[INNER[family]], timeout=0.3).received == 0
        assert ping(network.a, spoke.gateway_inner[INNER[family]], timeout=0.3).received == 0
        hub.set("private-key", "/dev/stdin", data=hub.keys.private)
        assert ping(network.b, spoke.inner[INNER[family]]).received == 1


@pytest.mark.parametrize("family", [4, 6])
def test_preshared_key_holds_from_the_next_handshake(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)
    shared = replace(spoke, psk=True)
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]):
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1
        hub.set("peer", spoke.keys.public, "preshared-key", "/dev/stdin", data=spoke.preshared_key)
        assert ping(network.a, spoke.gateway_inner[INNER[family]], count=2).received == 2
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]):
        assert ping(network.a, spoke.gateway_inner[INNER[family]], timeout=0.3).received == 0
    with hub.wireguard_go(shared, network.a, GATEWAY[family]):
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1
        hub.set("peer", spoke.keys.public, "preshared-key", "/dev/null")
        assert ping(network.a, spoke.gateway_inner[INNER[family]], count=2).received == 2
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]):
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1


@pytest.mark.parametrize("family", [4, 6])
def test_endpoint(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)
    with hub.wireguard_go(spoke, network.a) as peer:
        assert ping(network.b, spoke.inner[INNER[family]]).received == 1
        peer.set("listen-port", str(spoke.port + 1000))
        assert ping(network.b, spoke.inner[INNER[family]], timeout=0.3).received == 0
        where = f"{host(spoke)}:{spoke.port + 1000}"
        hub.set("peer", spoke.keys.public, "endpoint", where)
        assert hub.dump().peers[spoke.keys.public].endpoint == where
        assert ping(network.b, spoke.inner[INNER[family]]).received == 1


@pytest.mark.parametrize("family", [4, 6])
def test_keepalive_is_sent_at_once(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)

    def set_and_see(outer: Capture, length: int) -> None:
        seen = len(outer.datagrams(spoke.port))
        hub.set("peer", spoke.keys.public, "persistent-keepalive", "300")
        lengths = until(lambda: [len(each.payload) for each in outer.datagrams(spoke.port)[seen:]], 2, "a packet")
        assert lengths[0] == length
        hub.set("peer", spoke.keys.public, "persistent-keepalive", "off")

    with Capture(network.b, network.link_b.a_interface) as outer:
        set_and_see(outer, INITIATION)
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]), Capture(network.b, network.link_b.a_interface) as outer:
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1
        set_and_see(outer, KEEPALIVE)


@pytest.mark.parametrize("family", [4, 6])
def test_listen_port(network: Topology, hub: WgHub, family: int) -> None:
    """A new one, any one, and one that is taken: then nothing of that set holds."""
    spoke, port = hub.over(family), hub.port + 2000
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]) as peer, contextlib.ExitStack() as sockets:
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1
        for wanted in (port, 0):
            hub.set("listen-port", str(wanted))
            standing = hub.dump().listen_port
            assert standing == wanted or (wanted == 0 and standing not in {0, port})
            assert ping(network.b, spoke.inner[INNER[family]]).received == 1
            seen = peer.dump().peers[hub.keys.public].endpoint
            assert seen == f"{GATEWAY[family]}:{standing}"
        taken = sockets.enter_context(network.b.udp_socket("::" if family == 6 else "0.0.0.0"))
        number = taken.getsockname()[1]
        refused = hub.wg("set", hub.name, "fwmark", "7", "listen-port", str(number), check=False)
        assert refused.returncode != 0
        assert refused.stderr == "Unable to modify interface: Address already in use\n"
        assert (hub.dump().listen_port, hub.show("fwmark")) == (standing, "off\n")
        assert ping(network.b, spoke.inner[INNER[family]]).received == 1
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1


def test_a_port_that_is_taken_right_after_another_change(network: Topology, hub: WgHub) -> None:
    """What conn-service says of the one isn't taken for its answer to the other."""
    private = base64.b64decode(hub.keys.private).hex()
    other = base64.b64decode(new_key_pair().private).hex()
    with network.b.udp_socket() as taken:
        port = taken.getsockname()[1]
        for _ in range(3):
            answer = say(
                hub.name,
                f"set=1\nprivate_key={other}\n\nset=1\nlisten_port={port}\n\nset=1\nprivate_key={private}\n\n",
            )
            assert answer == b"errno=0\n\nerrno=-98\n\nerrno=0\n\n"
            assert hub.dump().listen_port == hub.port


@pytest.mark.parametrize("family", [4, 6])
def test_fwmark(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)
    rules = "add table inet m\nadd chain inet m o { type filter hook output priority 0; }\n"
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]):
        assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1
        network.b.run("nft", "-f", "-", input=f"{rules}add rule inet m o meta mark 0x1234 drop\n")
        try:
            hub.set("fwmark", "0x1234")
            assert hub.show("fwmark") == "0x1234\n"
            assert ping(network.a, spoke.gateway_inner[INNER[family]], timeout=0.3).received == 0
            hub.set("fwmark", "off")
            assert ping(network.a, spoke.gateway_inner[INNER[family]]).received == 1
        finally:
            network.b.run("nft", "delete", "table", "inet", "m")


def link_local(network: Topology) -> str:
    """C's own address on its link with B."""
    shown = network.c.run(
        "ip", "-o", "-6", "address", "show", "dev", network.link_b.b_interface, "scope", "link"
    ).stdout
    return shown.split()[3].partition("/")[0]


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by number"])
def test_link_local_endpoint(network: Topology, hub: WgHub, named: bool) -> None:
    """`wg` sends the zone's name, other tools its number; what is answered, `wg` shows as a name."""
    spoke, interface = hub.over(6), network.link_b.a_interface
    number = network.b.run("ip", "-o", "link", "show", interface).stdout.partition(":")[0]
    place = f"[{link_local(network)}%{{}}]:{spoke.port}"
    with hub.wireguard_go(spoke, network.c):
        if named:
            hub.set("peer", spoke.keys.public, "endpoint", place.format(interface))
        else:
            text = f"set=1\npublic_key={hexadecimal(spoke.keys.public)}\nendpoint={place.format(number)}\n\n"
            assert say(hub.name, text) == b"errno=0\n\n"
        assert f"endpoint={place.format(number)}\n".encode() in say(hub.name, "get=1\n\n")
        for address in spoke.inner:
            assert ping(network.b, address).received == 1
        shown = hub.wg("showconf", hub.name).stdout
        assert f"Endpoint = {place.format(interface)}\n" in shown
        hub.wg("setconf", hub.name, "/dev/stdin", data=shown)
        assert hub.wg("showconf", hub.name).stdout == shown
        assert ping(network.b, spoke.inner[1]).received == 1


@pytest.mark.parametrize("family", [4, 6])
def test_peers_come_and_go_beside_a_stream(network: Topology, hub: WgHub, family: int) -> None:
    """Another peer's packets, both ways, while peers are added, given prefixes, and removed again."""
    steady, other = hub.over(family), hub.over(OTHER[family])
    with (
        hub.wireguard_go(steady, network.a, GATEWAY[family]),
        hub.wireguard_go(other, network.a, GATEWAY[OTHER[family]]),
    ):
        assert ping(network.a, steady.gateway_inner[0]).received == 1
        with (
            NumberedStream(network.a, network.b, steady.gateway_inner[INNER[family]], rate=300) as inward,
            NumberedStream(network.b, network.a, steady.inner[INNER[family]], rate=300) as outward,
        ):
            until(lambda: outward.received > 30, 5, "the streams")
            for number in range(10):
                hub.set("peer", other.keys.public, "remove")
                made = ["peer", other.keys.public, "endpoint", f"{host(other)}:{other.port}"]
                hub.set(*made, "allowed-ips", ",".join([*other.networks, f"10.98.{number}.0/24"]))
                hub.set("peer", new_key_pair().public, "allowed-ips", f"10.97.{number}.0/24")
            assert ping(network.b, other.inner[0]).received == 1
            hub.expect_whole(inward.finish(), outward.finish())


@pytest.mark.parametrize("family", [4, 6])
def test_low_order_key_is_never_spoken_to(network: Topology, hub: WgHub, family: int) -> None:
    zeros, place = base64.b64encode(bytes(32)).decode(), f"{host(hub.over(family))}:9999"
    inner, prefix = (("10.96.0.1", "10.96.0.1/32"), ("fd96::1", "fd96::1/128"))[INNER[family]]
    with Capture(network.b, network.link_b.a_interface) as outer:
        hub.set("peer", zeros, "endpoint", place, "persistent-keepalive", "1", "allowed-ips", prefix)
        network.b.run("ip", "route", "replace", prefix, "dev", hub.name)
        assert ping(network.b, inner, timeout=0.5).received == 0
        assert outer.datagrams(9999) == []
    hub.set("peer", zeros, "remove")


@pytest.mark.parametrize("family", [4, 6])
def test_a_peer_with_the_keys_of_one_that_left_begins_anew(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)
    inner = [f"{spoke.gateway_inner[0]}/32", f"{spoke.gateway_inner[1]}/128"]
    to_us = Peer(hub.keys.public, inner, f"{GATEWAY[family]}:{hub.port}")
    with WireguardGo(network.a, spoke.keys, [f"{spoke.inner[0]}/32", f"{spoke.inner[1]}/128"], [to_us], spoke.port):
        assert ping(network.a, spoke.gateway_inner[INNER[family]], count=3, size=1000).received == 3
        until(lambda: hub.dump().peers[spoke.keys.public].received > 3000, 3, "the counters")
        hub.set("peer", spoke.keys.public, "remove")
        hub.set("peer", spoke.keys.public, "allowed-ips", ",".join(spoke.networks))
        state = hub.dump().peers[spoke.keys.public]
        assert (state.received, state.sent, state.latest_handshake, state.endpoint) == (0, 0, 0, None)
