"""How a datagram leaves conn-service: from which address of ours, by which link, and not into our own tunnel."""

import json
import os
import select
import socket
from functools import partial
from ipaddress import ip_address

import pytest
from tests.services.conn import PORT, V4, V6, Conn, Links, client, initiation, transport

from conn_service.egress import Egress
from lab.namespaces import add_addresses
from lab.wait import until
from stagewire.control.chains import Chain, ChainsChanged, Nested
from stagewire.control.messages import (
    Applied,
    SnapshotEnd,
)
from stagewire.loop import Loop, Source, boot_time
from stagewire.pipe import trains
from stagewire.proto.endpoint import Endpoint, unpack_untrusted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs a service in a network namespace")


@pytest.mark.parametrize("address", [*V4, *V6])
def test_an_answer_leaves_from_the_address_that_was_contacted(conn: Conn, address: str) -> None:
    peer = client(conn.namespace, address)
    peer.sendto(transport(), (address, PORT))
    ((place, datagrams),) = conn.runs()
    assert datagrams == [transport()]
    found = unpack_untrusted(place)
    assert found.port == peer.getsockname()[1]
    conn.send(place, b"an answer")
    assert peer.recvfrom(2048)[:1] == (b"an answer",)
    conn.send(place, b"one more")
    assert peer.recvfrom(2048)[1][:2] == (address, PORT)

    sent = initiation()
    peer.sendto(sent, (address, PORT))
    assert conn.handshakes.poll(5000)
    place, message = trains.unpack_handshake_untrusted(conn.handshakes.recv(), boot_time())
    assert message == sent
    conn.handshakes_out.send(trains.pack_handshake(place, b"a response", boot_time()))
    answer, source = peer.recvfrom(2048)
    assert (answer, source[:2]) == (b"a response", (address, PORT))


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_an_answer_from_an_address_that_is_gone_leaves_from_another(conn: Conn, address: str) -> None:
    peer = client(conn.namespace, address)
    gone = "198.51.100.77" if "." in address else "2001:db8::77"
    family = socket.AF_INET if "." in address else socket.AF_INET6
    place = Endpoint(
        socket.inet_pton(family, address), peer.getsockname()[1], source=socket.inet_pton(family, gone)
    ).pack()
    conn.send(place, b"one", b"two")
    assert [peer.recvfrom(100)[0] for _ in range(2)] == [b"one", b"two"]
    conn.handshakes_out.send(trains.pack_handshake(place, b"three", boot_time()))
    assert peer.recvfrom(100)[0] == b"three"


def far_client(links: Links, conn: Conn, address: str, contacts: str) -> tuple[socket.socket, bytes]:
    """Somebody at `address` who has just sent to one of ours, and where the service says that it is."""
    add_addresses(links.theirs, "lo", [f"{address}/{128 if ':' in address else 32}"])
    links.route("add", address, 0)
    peer = client(links.theirs, address)
    peer.sendto(transport(), (contacts, PORT))
    ((place, _),) = conn.runs()
    return peer, place


def answered_from(conn: Conn, peer: socket.socket, place: bytes) -> str:
    conn.send(place, b"an answer")
    return str(peer.recvfrom(100)[1][0])


FAR = [("203.0.113.9", "192.0.0.1", "192.0.1.1"), ("2001:db8:f::9", "2001:db8:0::1", "2001:db8:1::1")]


def compressed(address: str) -> str:
    return str(ip_address(address))


@pytest.mark.parametrize(("far", "first", "second"), FAR)
def test_a_better_route_takes_the_answers_and_gives_them_back(
    conn: Conn, links: Links, far: str, first: str, second: str
) -> None:
    peer, place = far_client(links, conn, far, first)
    assert answered_from(conn, peer, place) == compressed(first)
    links.route("add", far, 1, metric=1)
    until(lambda: answered_from(conn, peer, place) == compressed(second), 5, "the better route's address")
    links.route("del", far, 1, metric=1)
    until(lambda: answered_from(conn, peer, place) == compressed(first), 5, "the address that was contacted")
    # A link that goes says nothing of its IPv4 routes.
    links.route("add", far, 1, metric=20)
    conn.namespace.run("ip", "link", "set", "first", "down")
    until(lambda: answered_from(conn, peer, place) == compressed(second), 5, "what is left")


@pytest.mark.parametrize(("far", "first", "second"), FAR)
def test_who_contacts_the_other_links_address_is_answered_from_it(
    conn: Conn, links: Links, far: str, first: str, second: str
) -> None:
    """Though the route back leads by the first link."""
    family = "-6" if ":" in far else "-4"
    links.theirs.run("ip", family, "route", "add", second, "dev", "second")
    peer, place = far_client(links, conn, far, second)
    for _ in range(3):
        assert answered_from(conn, peer, place) == compressed(second)
    # What changes elsewhere changes nothing.
    links.route("add", "2001:db8:e::/64" if ":" in far else "203.0.113.128/25", 1)
    for _ in range(3):
        assert answered_from(conn, peer, place) == compressed(second)


@pytest.mark.parametrize(("far", "first", "_second"), FAR)
def test_an_address_that_goes_is_replaced_and_taken_again_when_it_is_back(
    conn: Conn, links: Links, far: str, first: str, _second: str
) -> None:
    other = f"{first}1"
    length = 64 if ":" in far else 24
    add_addresses(conn.namespace, "first", [f"{other}/{length}"])
    peer, place = far_client(links, conn, far, other)
    assert answered_from(conn, peer, place) == compressed(other)
    conn.namespace.run("ip", "address", "del", f"{other}/{length}", "dev", "first")
    for _ in range(3):
        assert answered_from(conn, peer, place) == compressed(first)
    add_addresses(conn.namespace, "first", [f"{other}/{length}"])
    until(lambda: answered_from(conn, peer, place) == compressed(other), 5, "the address that was contacted")


class Turned(Loop):
    """A loop that is turned by hand, and whose time is told."""

    def __init__(self) -> None:
        super().__init__()
        self._rests: set[Source] = set()

    def pause(self, source: Source) -> None:
        self._rests.add(source)

    def resume(self, source: Source) -> None:
        self._rests.discard(source)

    def look(self) -> None:
        """What is due at any time."""
        for timed in self._timed:
            if timed.next_deadline() is not None:
                timed.act(0.0)

    def turn(self) -> None:
        """Serves what is there."""
        while ready := select.select([each for each in self._handlers if each not in self._rests], [], [], 0)[0]:
            for source in ready:
                self._handlers[source](0.0)


def test_the_routing_table_is_asked_anew_for_others_routes_and_not_for_the_tunnels(conn: Conn, links: Links) -> None:
    loop, changes = Turned(), list[bool]()
    egress = links.ours.call(lambda: Egress(loop, "second", lambda: changes.append(True)))
    ask = partial(egress.interface, mark=0, port=PORT)
    assert ask(Endpoint(bytes([192, 0, 0, 2]), 9)) == links.ours.call(lambda: socket.if_nametoindex("first"))
    assert ask(Endpoint(bytes([203, 0, 113, 1]), 9)) is None
    assert links.ours.call(lambda: ask(Endpoint(bytes([192, 0, 1, 2]), 9)) == egress.tunnel() is not None)
    loop.turn()
    changes.clear()
    links.ours.run("ip", "route", "add", "10.5.0.0/16", "dev", "first", "proto", "87")
    loop.turn()
    assert changes == []
    loop.look()  # those count a while later, as one
    loop.look()
    assert changes == [True]
    links.ours.run("ip", "route", "add", "10.7.0.0/16", "dev", "first", "proto", "87")
    loop.turn()
    loop.look()
    assert changes == [True, True]
    changes.clear()
    links.ours.run("ip", "route", "add", "10.6.0.0/16", "dev", "first")
    loop.turn()
    assert changes
    egress.close()


def test_what_leads_into_the_tunnel_waits_until_it_is_known_to_leave_it_again(conn: Conn) -> None:
    """The interface's own name is that of a link here, which takes everything."""
    inside, outside = Endpoint(bytes([198, 51, 100, 1]), 9).pack(), Endpoint(bytes([127, 0, 0, 9]), 9).pack()
    conn.namespace.run("ip", "link", "add", "wg0", "arp", "off", "type", "veth", "peer", "name", "sink")
    for name in ("wg0", "sink"):
        conn.namespace.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", 1)  # which would send by itself
        conn.namespace.run("ip", "link", "set", name, "up")
    conn.namespace.run("ip", "route", "add", "198.51.100.0/24", "dev", "wg0")

    def sent() -> int:
        told = conn.namespace.run("ip", "-s", "-j", "link", "show", "wg0").stdout
        return int(json.loads(told)[0]["stats64"]["tx"]["packets"])

    try:
        before, refused = sent(), conn.counters.wait_for().get("endpoint_in_own_tunnel", 0)
        conn.send(inside, b"one")
        assert conn.key.wait_for(Nested).endpoint == inside
        for datagram in (b"two", b"three"):
            conn.send(inside, datagram)
        assert sent() == before
        conn.key.tell(Chain(inside, (outside,)))
        until(lambda: sent() == before + 3, 5, "what has waited to be sent, once")
        # Another word of key-service's, and there is no end of it: refused without another question.
        conn.key.tell(ChainsChanged(), SnapshotEnd(9))
        conn.key.wait_for(Applied)
        conn.send(inside, b"four")
        conn.key.wait_for(Nested)
        conn.key.tell(Chain(inside, (Endpoint(bytes([198, 51, 100, 2]), 9).pack(),)))
        conn.send(inside, *[b"more"] * 9)
        conn.counters.wait_for(endpoint_in_own_tunnel=refused + 10)
        conn.key.pump()
        assert not [message for message in conn.key.heard if isinstance(message, Nested)]
        assert sent() == before + 3
    finally:
        conn.namespace.run("ip", "link", "delete", "wg0")
