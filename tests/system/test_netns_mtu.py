"""The interface's MTU, changed while traffic flows: what is padded, and packets as large as UDP can carry.

wireguard-go in A and the gateway in B, one wire of 1500 bytes between each and C.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.hub import Hub, Spoke
from lab.namespaces import Namespace, Topology
from lab.traffic import NumberedStream, ping, tcp_fetch
from lab.wait import until

pytestmark = pytest.mark.system

V4, V6 = Spoke(1, Topology.A4), Spoke(2, f"[{Topology.A6}]")
LIVE = {4: Spoke(3, Topology.A4), 6: Spoke(4, f"[{Topology.A6}]")}
TOO_LARGE = {4: Spoke(5, Topology.A4), 6: Spoke(6, f"[{Topology.A6}]")}
OVERHEAD = 32
HEADERS = {4: 20 + 8, 6: 40 + 8}
"""Of an echo request."""
LARGE = 65_000
LARGEST = 65_507 - OVERHEAD


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("u") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    spokes = [V4, V6, *LIVE.values(), *TOO_LARGE.values()]
    with Hub(network.b, shared_directory, {str(spoke.number): spoke for spoke in spokes}) as hub:
        yield hub
        set_mtu(network.b, "wg0", 1420)


def set_mtu(namespace: Namespace, interface: str, mtu: int) -> None:
    namespace.run("ip", "link", "set", interface, "mtu", str(mtu))


def echo(namespace: Namespace, address: str, size: int, timeout: float = 2) -> int:
    """Whether an inner packet of this size comes back."""
    return ping(
        namespace, address, size=size - HEADERS[6 if ":" in address else 4], cut=False, timeout=timeout
    ).received


@pytest.mark.parametrize("family", [4, 6])
def test_padding_follows_the_mtu_as_it_changes(network: Topology, hub: Hub, family: int) -> None:
    """At an MTU of 1300, a packet of 1299 bytes is padded by one, not to 1312."""
    live, inner, outer_address = LIVE[family], LIVE[family].inner[family == 6], (Topology.B4, Topology.B6)[family == 6]
    with hub.wireguard_go(live, network.a), Capture(network.b, network.link_b.a_interface) as outer:
        assert ping(network.b, inner).received == 1

        def sealed(size: int) -> int:
            """The length of the datagram that a packet of ours becomes."""
            before = len(outer.datagrams(live.port))
            assert echo(network.b, inner, size) == 1
            ours = [each for each in outer.datagrams(live.port)[before:] if each.source[0] == outer_address]
            return max(len(each.payload) for each in ours)

        for mtu in (1300, 1420, 1281, 1300):
            set_mtu(network.b, "wg0", mtu)
            size = mtu - 1
            until(lambda: sealed(size) == min(mtu, (size + 15) & ~15) + OVERHEAD, 5, f"the padding of {mtu}")  # noqa: B023
            assert sealed(mtu) == mtu + OVERHEAD
            assert sealed(1281) == min(mtu, 1296) + OVERHEAD
        # What is set by hand outlives the service that says what the file says.
        hub.gateway.supervisorctl("restart", "key-service:*")
        until(lambda: hub.gateway.status()["ready"], 10, "key-service to be back")
        assert "mtu 1300 " in network.b.run("ip", "link", "show", "wg0").stdout


@pytest.mark.parametrize("spoke", [V4, V6], ids=["ipv4", "ipv6"])
def test_packets_of_65000_bytes_pass_whole_both_ways(network: Topology, hub: Hub, spoke: Spoke) -> None:
    with hub.wireguard_go(spoke, network.a, mtu=LARGE) as peer:
        set_mtu(network.b, "wg0", LARGE)
        assert ping(network.b, spoke.inner[0]).received == 1
        until(lambda: echo(network.b, spoke.inner[0], LARGE, timeout=0.5), 5, "the workers to know")
        for namespace, addresses in ((network.b, spoke.inner), (network.a, spoke.gateway_inner)):
            for address in addresses:
                for size in (LARGE - 1, LARGE):
                    assert echo(namespace, address, size) == 1, (address, size)
        # Several at a time, in one train: more than a pipe takes at once, were it not for the limits on a train.
        for sender, receiver, destination in (
            (network.b, network.a, spoke.inner[0]),
            (network.a, network.b, spoke.gateway_inner[1]),
        ):
            with NumberedStream(sender, receiver, destination, rate=300, size=LARGE - 48) as stream:
                until(lambda: stream.sent >= 60, 10, "packets to be sent")
                report = stream.finish()
            assert report.duplicates == report.foreign == 0
            assert report.received > report.sent // 2
        tcp_fetch(network.b, network.a, spoke.gateway_inner[0], 8 << 20, seed=1)
        tcp_fetch(network.a, network.b, spoke.inner[1], 8 << 20, seed=2)
        assert peer.dump().peers[hub.keys.public].latest_handshake
        counters = hub.counters()
        assert not counters["train_malformed"]


@pytest.mark.parametrize("family", [4, 6])
def test_what_no_datagram_can_carry_is_dropped_and_counted(network: Topology, hub: Hub, family: int) -> None:
    """The device takes an MTU of 65,535 all the same."""
    too_large = TOO_LARGE[family]
    with hub.wireguard_go(too_large, network.a, mtu=LARGE):
        set_mtu(network.b, "wg0", 65535)
        assert ping(network.b, too_large.inner[0]).received == 1
        before = dict(hub.counters())
        out = network.b.udp_socket()
        out.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        for size in (65535, LARGEST + 1):
            out.sendto(bytes(size - 28), (too_large.inner[0], 9))
        until(lambda: hub.counters()["outbound_too_large"] == before.get("outbound_too_large", 0) + 2, 5, "the count")
        left = hub.peer(too_large)["tx_bytes"]
        out.sendto(bytes(LARGEST - 28), (too_large.inner[0], 9))  # it leaves, whatever the other side makes of it
        until(lambda: hub.peer(too_large)["tx_bytes"] >= left + LARGEST, 5, "it to leave")
        seen = hub.counters()["tun_packets_in"]
        assert ping(network.b, too_large.inner[0]).received == 1
        until(lambda: hub.counters()["tun_packets_in"] > seen, 5, "counters that know of it")
        assert hub.counters()["send_failed"] == before.get("send_failed", 0)
