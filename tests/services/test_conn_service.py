"""conn-service as a process: its UDP sockets in a namespace, and the test at the other ends of its pipes."""

import json
import os
import select
import socket
import time
from contextlib import closing
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.services.conn import PORT, V4, V6, Conn, HostStandIn, Links, client, initiation, transport

from conn_service import udp
from conn_service.egress import Egress
from conn_service.handshakes import Handshakes
from lab.namespaces import add_addresses
from lab.wait import until
from stagewire.control.chains import Chain, ChainsChanged, Nested
from stagewire.control.messages import (
    Applied,
    SnapshotEnd,
)
from stagewire.control.socket_door import TUNNEL, UDP4
from stagewire.loop import Loop, Source, boot_time
from stagewire.pipe import trains
from stagewire.proto.admission import SOURCE_ALLOWANCE
from stagewire.proto.endpoint import Endpoint, unpack_untrusted

UDP_SEGMENT = 103

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


def test_a_datagram_goes_to_the_worker_its_receiver_names(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    before = conn.counters.wait_for().get("unknown_worker", 0)
    for worker in (0, 1, 2, 255):
        peer.sendto(transport(worker), (V4[0], PORT))
    for worker in (0, 1):
        ((_, datagrams),) = conn.runs(worker)
        assert datagrams == [transport(worker)]
    conn.counters.wait_for(unknown_worker=before + 2)


def test_handshakes_are_read_while_nobody_reads_transport_messages(conn: Conn) -> None:
    """And a flood of what no handshake awaits neither reaches key-service nor holds up transport messages."""
    peer = client(conn.namespace, V4[0])
    for number in range(3000):
        peer.sendto(transport(1, number, 1400), (V4[0], PORT))
    sent = initiation()
    peer.sendto(sent, (V4[0], PORT))
    assert conn.handshakes.poll(5000)
    assert conn.handshakes.recv().endswith(sent)
    while conn.workers[1].poll(300):
        conn.workers[1].recv()


def test_a_flood_is_answered_by_cookies_from_the_address_that_it_reached(conn: Conn) -> None:
    for address in (*V4, *V6):
        peer = client(conn.namespace, address)
        for _ in range(400):
            peer.sendto(initiation(), (address, PORT))
        reply, source = peer.recvfrom(2048)
        assert (reply[:8], len(reply)) == (b"\3\0\0\0\7\0\0\0", 64)
        assert source[:2] == (address, PORT)
        passed = 0
        while conn.handshakes.poll(100):
            conn.handshakes.recv()
            passed += 1
        assert SOURCE_ALLOWANCE <= passed < 200


def test_what_has_waited_too_long_is_dropped_and_a_handshake_is_not(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    before = conn.counters.wait_for().get("datagram_too_old", 0)
    with conn.program.paused():
        for counter in range(10):
            peer.sendto(transport(counter=counter), (V4[0], PORT))
        peer.sendto(initiation(), (V4[0], PORT))
        sent = time.monotonic()
        until(lambda: time.monotonic() > sent + trains.MAX_AGE, 5, "the datagrams to be old")
        peer.sendto(transport(counter=10), (V4[0], PORT))
    ((_, datagrams),) = conn.runs()
    assert datagrams == [transport(counter=10)]
    assert conn.handshakes.poll(5000)
    conn.handshakes.recv()
    conn.counters.wait_for(datagram_too_old=before + 10)


def test_a_train_is_as_old_as_its_oldest_datagram_in_the_kernels_queue(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])

    def came() -> bytes:
        with conn.program.paused():
            began = boot_time()
            peer.sendto(transport(counter=1), (V4[0], PORT))
            until(lambda: boot_time() > began + 0.1, 5, "the datagram to wait")
            peer.sendto(transport(counter=2), (V4[0], PORT))
        frame = conn.workers[0].recv() if conn.workers[0].poll(500) else b""
        return frame if trains.born_of(frame or bytes(16), 0) <= began + 0.09 else b""  # else it was too late

    frame = until(came, 20, "a train with a datagram that has waited")
    assert frame is not None
    assert 0.08 <= trains.sent_of(frame, 0) - trains.born_of(frame, 0) <= trains.MAX_AGE + 0.1


class NoWays:
    def interface(self, _endpoint: Endpoint, _mark: int, _port: int) -> int | None:
        return None

    def room(self, interface: int, limit: int, *, cut: bool) -> int | None:  # noqa: ARG002
        return None


def test_what_has_waited_for_a_take_over_counts_as_fresh() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        closing(udp.Sockets({UDP4: os.dup(bound.fileno())}, NoWays())) as former,
    ):
        bound.bind(("127.0.0.1", 0))
        bound.settimeout(5)

        def sent(sockets: udp.Sockets) -> float:
            peer.sendto(b"one", bound.getsockname())
            time.sleep(0.02)
            sockets.receive(sockets.all[0], memoryview(bytearray(100)))
            return sockets.waited(time.time())

        until(lambda: sent(former) >= 0.02, 5, "the kernel to say when a datagram came")
        peer.sendto(b"one", bound.getsockname())
        with closing(udp.Sockets({UDP4: os.dup(bound.fileno())}, NoWays())) as latter:
            latter.receive(latter.all[0], memoryview(bytearray(100)))
            assert latter.waited(time.time() + 1) == 0
            assert sent(latter) >= 0.02


def test_handshakes_merged_with_transport_messages_take_little_of_their_time(conn: Conn) -> None:
    """The kernel delivers such a run by its first datagram."""
    peer = client(conn.namespace, V4[0])
    peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 148)
    before = conn.counters.wait_for().get("handshake_merged", 0)
    for _ in range(50):
        peer.sendto(transport(size=148) + b"".join(initiation() for _ in range(39)), (V4[0], PORT))
    conn.counters.wait_for(handshake_merged=before + 1000)
    while conn.handshakes.poll(100) or conn.workers[0].poll(0):
        for pipe in (conn.handshakes, conn.workers[0]):
            if pipe.poll(0):
                pipe.recv()


def test_what_the_kernel_drops_from_a_full_queue_is_counted(conn: Conn) -> None:
    """Each datagram counts once, dropped there or here."""
    names = ("handshake_overflow", "bad_type")
    peer = client(conn.namespace, V4[0])
    before = sum(conn.counters.wait_for().get(name, 0) for name in names)
    with conn.program.paused():
        for _ in range(5000):
            peer.sendto(bytes(148), (V4[0], PORT))
    conn.counters.wait_for(handshake_overflow=1000)
    until(
        lambda: sum(conn.counters.wait_for().get(name, 0) for name in names) == before + 5000, 10, "all to be counted"
    )


def test_what_is_neither_goes_nowhere_and_is_counted(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    was = conn.counters.latest.get("too_short", 0)
    peer.sendto(b"\1", (V4[0], PORT))
    before = dict(conn.counters.wait_for(too_short=was + 1))
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


def ports(conn: Conn) -> list[str]:
    """Those that the process has open."""
    listed = conn.namespace.run("ss", "-Hulnp").stdout.splitlines()
    return [line.split()[3].rpartition(":")[2] for line in listed if f"pid={conn.program.process.pid}," in line]


def comes_through(conn: Conn, peer: socket.socket, port: int) -> Any:
    peer.sendto(transport(0), (V4[0], port))
    return conn.workers[0].poll(20)


def test_it_holds_no_capability(conn: Conn) -> None:
    status = Path(f"/proc/{conn.program.process.pid}/status").read_text()
    held = {line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith("Cap")}
    assert {held[name] for name in ("CapInh:", "CapPrm:", "CapEff:", "CapAmb:")} == {"0" * 16}


def test_other_sockets_take_the_place_of_those_before(conn: Conn) -> None:
    """Also while the old ones were left unread, because a pipe was full: worker 1 takes nothing."""
    peer = client(conn.namespace, V4[0])
    for port in (4001, PORT):
        for counter in range(3000):
            peer.sendto(transport(1, counter, 1400), (V4[0], PORT if port == 4001 else 4001))
        conn.host.open(port)
        until(lambda port=port: comes_through(conn, peer, port), 5, "a datagram at the new port")  # type: ignore[misc]
        assert set(ports(conn)) == {str(port)}
        for worker in conn.workers:
            while worker.poll(50):
                worker.recv()


def test_a_new_host_service_is_offered_the_sockets(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    conn.host.close()
    assert comes_through(conn, peer, PORT)
    conn.runs()
    conn.host = host = HostStandIn(conn.around, None)
    until(lambda: host.pair, 5, "the sockets")
    assert host.pair is not None
    assert host.pair.port == PORT
    assert comes_through(conn, peer, PORT)
    conn.runs()
    assert len(ports(conn)) == len(TUNNEL)


def test_it_stops_when_told_to(conn: Conn) -> None:
    assert conn.program.stop() == 0
    assert "event=stopped" in conn.program.log
    assert "Traceback" not in conn.program.log


def test_the_gate_hears_how_far_visits_wait_for_a_processor() -> None:
    heard: list[float] = []
    handshakes = object.__new__(Handshakes)
    handshakes._gate = cast("Any", SimpleNamespace(note_wait=lambda part, _now: heard.append(part)))
    handshakes._worked, handshakes._took = 0.02, 0.08
    handshakes._note_wait(7.0)
    handshakes._note_wait(7.1)  # no visit since
    assert heard == [0.75]
