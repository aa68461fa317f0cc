"""Packets of all sizes: the least MTU of IPv6, jumbo frames, and an outer path that has to cut datagrams in pieces.

P ---9080--- Q           P: wg0 with MTU 1280, wg1 with MTU 9000, wg2 with MTU 1420
P -1500- C -576- D -1500- R
"""

from collections.abc import Iterator
from pathlib import Path
from socket import inet_aton
from typing import NamedTuple

import pytest

from lab.capture import Capture
from lab.hub import PORT, Hub, Spoke, together
from lab.namespaces import Namespace, veth
from lab.traffic import NumberedStream, ping
from lab.wait import until

pytestmark = pytest.mark.system

P4, P6, Q4, Q6 = "192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"
R4 = "198.51.100.1"
OVERHEAD = 32
ETHERTYPE_IPV4, DONT_FRAGMENT = b"\x08\0", 0x40
SMALL4, SMALL6, CUT_SMALL = Spoke(1, Q4), Spoke(2, f"[{Q6}]"), Spoke(3, R4)
LARGE4, LARGE6, CUT_LARGE = Spoke(4, Q4), Spoke(5, f"[{Q6}]"), Spoke(6, R4)
HEADERS = {4: 20 + 8, 6: 40 + 8}
"""Of an echo request."""


class Hosts(NamedTuple):
    p: Namespace
    q: Namespace
    r: Namespace
    cut: Namespace
    """The router before the narrow link, seen from P."""


class Hubs(NamedTuple):
    small: Hub
    large: Hub


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Namespace("p") as p, Namespace("q") as q, Namespace("c") as c, Namespace("d") as d, Namespace("r") as r:
        veth(p, q, [f"{P4}/24", f"{P6}/64"], [f"{Q4}/24", f"{Q6}/64"], mtu=9080)
        veth(p, c, ["203.0.113.1/30"], ["203.0.113.2/30"])
        veth(c, d, ["203.0.113.5/30"], ["203.0.113.6/30"], mtu=576)
        veth(d, r, ["198.51.100.254/24"], [f"{R4}/24"])
        for router, prefix, via in ((c, "198.51.100.0/24", "203.0.113.6"), (d, "203.0.113.0/30", "203.0.113.5")):
            router.sysctl("net.ipv4.ip_forward", 1)
            router.run("ip", "route", "add", prefix, "via", via)
        p.run("ip", "route", "add", "198.51.100.0/24", "via", "203.0.113.2")
        r.run("ip", "route", "add", "default", "via", "198.51.100.254")
        yield Hosts(p, q, r, c)


@pytest.fixture(scope="module")
def hubs(hosts: Hosts, shared_directory: Path) -> Iterator[Hubs]:
    small = Hub(hosts.p, shared_directory, {"4": SMALL4, "6": SMALL6, "cut": CUT_SMALL}, "MTU = 1280")
    large = Hub(
        hosts.p,
        shared_directory,
        {"4": LARGE4, "6": LARGE6, "cut": CUT_LARGE},
        "MTU = 9000",
        name="wg1",
        port=PORT + 99,
    )
    with together(small, large):
        yield Hubs(small, large)


@pytest.mark.parametrize(("spoke", "mtu"), [(SMALL4, 1280), (SMALL6, 1280), (LARGE4, 9000), (LARGE6, 9000)])
def test_packets_of_exactly_the_mtu_pass_whole(hosts: Hosts, hubs: Hubs, spoke: Spoke, mtu: int) -> None:
    hub = hubs.small if mtu == 1280 else hubs.large
    with hub.wireguard_go(spoke, hosts.q, mtu=mtu), Capture(hosts.p, "to-q") as outer:
        assert ping(hosts.p, spoke.inner[0]).received == 1
        for namespace, addresses in ((hosts.p, spoke.inner), (hosts.q, spoke.gateway_inner)):
            for family, address in zip((4, 6), addresses, strict=True):
                for size in (mtu - 17, mtu - 16, mtu - 15, mtu - 1, mtu):
                    whole = ping(namespace, address, size=size - HEADERS[family], cut=False)
                    assert whole.received == 1, (address, size)
                too_large = ping(namespace, address, size=mtu + 1 - HEADERS[family], cut=False, timeout=0.2)
                assert too_large.received == 0
                assert "message too long" in too_large.output.lower()
                # Cut by its sender, it arrives all the same.
                assert ping(namespace, address, size=mtu + 1 - HEADERS[family], cut=True).received == 1
        lengths = [len(datagram.payload) for datagram in outer.datagrams(spoke.port)]
        assert max(lengths) == mtu + OVERHEAD
        assert outer.dropped == 0


@pytest.mark.parametrize(("spoke", "mtu"), [(CUT_SMALL, 1280), (CUT_LARGE, 9000)])
def test_datagrams_cut_on_their_way_arrive(hosts: Hosts, hubs: Hubs, spoke: Spoke, mtu: int) -> None:
    """A router halfway makes pieces of 576 bytes, of what P's own link has cut to 1500 already where that is needed."""
    hub = hubs.small if mtu == 1280 else hubs.large
    with hub.wireguard_go(spoke, hosts.r, mtu=mtu), Capture(hosts.cut, "to-d") as narrow:
        # wireguard-go forbids routers to cut its datagrams, and loses those from which it learns the path's MTU.
        until(lambda: ping(hosts.p, spoke.inner[0], size=576, timeout=0.5).received, 10, "wireguard-go to learn")
        for address in spoke.inner:
            family = 6 if ":" in address else 4
            for size in (100, 576, mtu):
                assert ping(hosts.p, address, size=size - HEADERS[family], cut=False).received == 1
        with (
            NumberedStream(hosts.p, hosts.r, spoke.inner[0], rate=200, size=mtu - 28) as there,
            NumberedStream(hosts.r, hosts.p, spoke.gateway_inner[1], rate=200, size=mtu - 48) as back,
        ):
            until(lambda: min(there.received, back.received) >= 100, 10, "full packets to flow both ways")
            hub.expect_whole(there.finish(), back.finish())
        packets = [frame.data[14:] for frame in narrow.frames() if frame.data[12:14] == ETHERTYPE_IPV4]
        assert max(map(len, packets)) <= 576
        assert sum(len(packet) > 500 for packet in packets) > 2 * 200
        ours = [packet for packet in packets if packet[12:16] == inet_aton("203.0.113.1")]
        assert len(ours) > 200
        assert not any(packet[6] & DONT_FRAGMENT for packet in ours)
