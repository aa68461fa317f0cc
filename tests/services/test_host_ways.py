"""The way to an endpoint, from which the MTU derives."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest

from host_service.route_messages import RouteSocket
from lab.namespaces import Namespace, veth
from lab.wait import until
from stagewire.limits import ROUTE_PROTOCOL
from stagewire.proto.packets import checksum

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")

HERE, PEER = "192.0.2.1", "192.0.2.2"
HERE6, PEER6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def host() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace("wayh") as near, Namespace("wayp") as far:
        veth(near, far, [f"{HERE}/24", f"{HERE6}/64"], [f"{PEER}/24", f"{PEER6}/64"])
        yield near, far


def way(near: Namespace, peer: str = PEER) -> tuple[int, int]:
    def ask() -> tuple[int, int]:
        with closing(RouteSocket(ROUTE_PROTOCOL)) as routes:
            return routes.way(ip_address(peer).packed, 0)

    return near.call(ask)


def fragmentation_needed(quoted_port: int, port: int) -> bytes:
    """An ICMP message that quotes a datagram of ours: anybody can make one who guesses the two ports."""
    udp = struct.pack("!HHHH", quoted_port, port, 1400, 0)
    addresses = socket.inet_aton(HERE) + socket.inet_aton(PEER)
    quote = struct.pack("!BBHHHBBH", 0x45, 0, 1420, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + addresses + udp
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 600) + quote
    return body[:2] + checksum.of(checksum.remainder(body)).to_bytes(2) + body[4:]


def test_a_forged_icmp_message_narrows_no_way(host: tuple[Namespace, Namespace]) -> None:
    near, far = host
    before = way(near)
    ours = near.udp_socket(HERE, 51820)
    ours.sendto(b"hello", (PEER, 51820))
    with closing(far.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))) as forger:
        forger.sendto(fragmentation_needed(51820, 51820), (HERE, 0))
    learnt = lambda: "mtu 600" in near.run("ip", "route", "get", PEER).stdout  # noqa: E731
    until(learnt, 5, "the kernel to take the forged message for true")
    assert way(near) == before


@pytest.mark.parametrize("peer", [PEER, PEER6])
def test_a_way_has_the_mtu_of_its_route(host: tuple[Namespace, Namespace], peer: str) -> None:
    near, _ = host
    link, mtu = way(near, peer)
    assert mtu == 0
    found = near.run("ip", "-o", "route", "get", peer).stdout.split()
    near.run("ip", "route", "add", peer, "dev", found[found.index("dev") + 1], "mtu", "1300")
    assert way(near, peer) == (link, 1300)
