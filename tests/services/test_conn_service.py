"""conn-service as a process: its UDP sockets in a namespace, and the test at the other ends of its pipes."""

import os
import select
import socket
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest
from tests.services.conn import OURS, PORT, V4, V6, Conn, Links, client, initiation, settings, transport

from conn_service.egress import Egress
from lab.namespaces import add_addresses
from lab.wait import until
from stagewire.ipc import trains
from stagewire.ipc.control import Applied, Resolve, Resolved
from stagewire.ipc.loop import Handler, Loop, Source, boot_time
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

    peer.sendto(initiation(), (address, PORT))
    assert conn.handshakes.poll(5000)
    place, message = trains.unpack_handshake_untrusted(conn.handshakes.recv(), boot_time())
    assert message == initiation()
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
    """A loop that is turned by hand, for one source."""

    def add(self, source: Source, handler: Handler, *, pipe: bool = False, along: int | None = None) -> None:
        assert not pipe
        assert along is None
        self._served = source, handler

    def turn(self) -> None:
        """Serves what is there."""
        source, handler = self._served
        while select.select([source], [], [], 0)[0]:
            handler(0.0)


def test_the_routing_table_is_asked_anew_for_others_routes_and_not_for_the_tunnels(conn: Conn, links: Links) -> None:
    loop, changes = Turned(), list[bool]()
    egress = links.ours.call(lambda: Egress(loop, "second", lambda: changes.append(True)))
    ask = partial(egress.interface, mark=0, port=PORT)
    assert ask(Endpoint(bytes([192, 0, 0, 2]), 9)) == links.ours.call(lambda: socket.if_nametoindex("first"))
    assert ask(Endpoint(bytes([203, 0, 113, 1]), 9)) is None
    with pytest.raises(OSError, match="in the tunnel itself"):
        links.ours.call(lambda: ask(Endpoint(bytes([192, 0, 1, 2]), 9)))
    loop.turn()
    changes.clear()
    links.ours.run("ip", "route", "add", "10.5.0.0/16", "dev", "first", "proto", "87")
    loop.turn()
    assert changes == []
    links.ours.run("ip", "route", "add", "10.6.0.0/16", "dev", "first")
    loop.turn()
    assert changes
    egress.close()


def test_a_datagram_goes_to_the_worker_its_receiver_names(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    before = conn.counters.wait_for(datagrams_in=1).get("unknown_worker", 0)
    for worker in (0, 1, 2, 255):
        peer.sendto(transport(worker), (V4[0], PORT))
    for worker in (0, 1):
        ((_, datagrams),) = conn.runs(worker)
        assert datagrams == [transport(worker)]
    conn.counters.wait_for(unknown_worker=before + 2)


def test_what_is_neither_goes_nowhere_and_is_counted(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    before = dict(conn.counters.wait_for(datagrams_in=1))
    for nonsense in (
        b"",
        b"\1\0\0",
        bytes(148),
        b"\4\0\0\0" + bytes(27),
        b"\4\1\0\0" + bytes(60),
        b"\1\0\0\0",
        bytes(9000),
    ):
        peer.sendto(nonsense, (V4[0], PORT))
    peer.sendto(initiation()[:-17] + bytes(17), (V4[0], PORT))
    conn.counters.wait_for(bad_mac1=before.get("bad_mac1", 0) + 1, too_short=before.get("too_short", 0) + 2)
    counted = {name: value - before.get(name, 0) for name, value in conn.counters.latest.items()}
    assert counted["bad_type"] + counted["bad_length"] + counted["too_short"] == 7
    assert not any(pipe.poll(20) for pipe in (*conn.workers, conn.handshakes))


UNREACHABLE = [
    bytes(44),
    b"\xff" * 44,
    Endpoint(bytes([127, 0, 0, 1]), 0).pack(),
    Endpoint(b"\xff" * 4, 9).pack(),  # broadcast, which isn't allowed
    Endpoint(bytes([192, 0, 2, 1]), 9).pack(),  # no route
    Endpoint(b"\xfe\x80" + bytes(14), 9, scope=0xFFFFFFFF).pack(),
    Endpoint(bytes([127, 0, 0, 1]), 9, source=b"\xe0\0\0\1", source_interface=0xFFFFFFFF).pack(),
]


def test_a_place_that_cannot_be_reached_is_counted_and_the_next_is_served(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    good = Endpoint(bytes([127, 0, 0, 1]), peer.getsockname()[1]).pack()
    before = conn.counters.wait_for().get("send_failed", 0)
    for place in UNREACHABLE:
        conn.send(place, b"lost", b"lost too")
        conn.handshakes_out.send(trains.pack_handshake(place, b"lost as well", boot_time()))
        conn.send(good, b"arrives")
        assert peer.recvfrom(100)[0] == b"arrives"
    conn.send(good, bytes(65507 + 20))  # more than a datagram may have
    # The last one is reached after all, from another address of ours.
    conn.counters.wait_for(send_failed=before + 3 * (len(UNREACHABLE) - 1) + 1)
    assert conn.program.alive()


def test_garbage_on_its_pipes_is_counted(conn: Conn) -> None:
    names = ("train_malformed", "train_of_unknown_version")
    before = sum(conn.counters.wait_for().get(name, 0) for name in names)
    for garbage in (b"", b"\1", bytes(200), b"\xff" * 200):
        conn.out.send(garbage)
        conn.handshakes_out.send(garbage)
    until(lambda: sum(conn.counters.wait_for().get(name, 0) for name in names) == before + 8, 5, "all to be counted")
    assert conn.program.alive()


def test_names_are_looked_up_and_those_that_are_none_explained(conn: Conn) -> None:
    conn.key.tell(Resolve(OURS, "127.0.0.9", 7), Resolve(OURS, "no-such-host.invalid", 7), Resolve(OURS, "fd00::9", 8))
    answers = [conn.key.wait_for(Resolved) for _ in range(3)]
    assert unpack_untrusted(answers[0].endpoint) == Endpoint(bytes([127, 0, 0, 9]), 7)
    assert (answers[1].endpoint, answers[1].error != "") == (b"", True)
    assert "no-such-host.invalid" in answers[1].error
    assert unpack_untrusted(answers[2].endpoint).port == 8


def listens(conn: Conn, port: int) -> bool:
    """In both families."""
    listed = conn.namespace.run("ss", "-Hulpn", f"sport = :{port}").stdout.splitlines()
    return len(listed) == 2


def test_a_port_that_is_taken_is_explained_and_tried_again(conn: Conn) -> None:
    other = conn.namespace.udp_socket("0.0.0.0", 4000)
    conn.key.configure(settings(4000), version=2)
    fault = conn.key.wait_for_fault("4000")
    assert fault == "UDP port 4000 is taken by another program; choose another ListenPort or stop it"
    other.close()
    assert conn.key.wait_for(Applied).version == 2
    assert listens(conn, 4000)
    assert not listens(conn, PORT)
    conn.key.configure(settings(), version=3)
    assert conn.key.wait_for(Applied).version == 3
    assert listens(conn, PORT)


def test_port_0_is_one_port_in_both_families(conn: Conn) -> None:
    conn.key.configure(settings(0), version=4)
    conn.key.wait_for(Applied)
    listed = conn.namespace.run("ss", "-Hulnp").stdout.splitlines()
    ports = [line.split()[3].rpartition(":")[2] for line in listed if f"pid={conn.program.process.pid}," in line]
    assert len(ports) == 2
    assert len(set(ports)) == 1
    conn.key.configure(settings(), version=5)
    conn.key.wait_for(Applied)


def test_a_socket_that_was_paused_when_the_port_changed_is_read_at_the_new_one(conn: Conn) -> None:
    """Worker 1 takes nothing, so its pipe fills and the sockets are left unread for a while: in that while."""
    peer = client(conn.namespace, V4[0])
    drained = conn.counters.wait_for().get("worker_full", 0)
    for port in (4001, PORT):
        for counter in range(3000):
            peer.sendto(transport(1, counter, 1400), (V4[0], PORT if port == 4001 else 4001))
        conn.key.configure(settings(port), version=port)
        conn.key.wait_for(Applied, lambda applied, port=port: applied.version == port)  # type: ignore[misc]

        def comes_through(port: int = port) -> Any:
            peer.sendto(transport(0), (V4[0], port))
            return conn.workers[0].poll(20)

        until(comes_through, 5, "a datagram at the new port")
        while conn.workers[0].poll(50):
            conn.workers[0].recv()
        while conn.workers[1].poll(50):
            conn.workers[1].recv()
    assert conn.counters.wait_for().get("worker_full", 0) >= drained


def test_it_stops_when_told_to(conn: Conn) -> None:
    assert conn.program.stop() == 0
    assert "event=stopped" in conn.program.log
    assert "Traceback" not in conn.program.log
