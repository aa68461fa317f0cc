"""conn-service as a process: its UDP sockets in a namespace, and the test at the other ends of its pipes."""

import os
import socket
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.services.conn import PORT, V4, V6, Conn, HostStandIn, NoWays, client, initiation, transport

from conn_service import udp
from conn_service.handshakes import Handshakes
from lab.wait import until
from stagewire.control.socket_door import TUNNEL, UDP4
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto.admission import SOURCE_ALLOWANCE
from stagewire.proto.endpoint import Endpoint

UDP_SEGMENT = 103

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs a service in a network namespace")


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
