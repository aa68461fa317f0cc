"""Runs of datagrams: left and received in one call where the kernel can, and apart where it can't."""

import os
import signal
import socket
import time
from collections import deque
from contextlib import closing

import pytest
from tests.services.conn import PORT, V4, V6, Conn, Links, NoWays, client, initiation, transport

from conn_service import udp
from conn_service.outbound import Outbound
from stagewire.control.socket_door import UDP4
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto.endpoint import Endpoint, unpack_untrusted
from stagewire.proto.packets.block import Block
from stagewire.proto.packets.carried import CUT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs a service in a network namespace")

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def run_of(count: int, size: int = 200, last: int = 100, worker: int = 0) -> list[bytes]:
    """Transport messages of one size, the last one shorter."""
    return [transport(worker, number, size if number < count - 1 else last) for number in range(count)]


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_a_run_leaves_as_one_and_arrives_as_what_it_was(conn: Conn, address: str) -> None:
    peer = client(conn.namespace, address)
    peer.setsockopt(SOL_UDP, UDP_GRO, 1)
    family = socket.AF_INET if "." in address else socket.AF_INET6
    place = Endpoint(socket.inet_pton(family, address), peer.getsockname()[1]).pack()
    train = run_of(64)
    conn.send(place, *train)
    data, notes, _, _ = peer.recvmsg(65535, 100)
    if offload():
        assert notes == [(SOL_UDP, UDP_GRO, (200).to_bytes(4, "little"))]
        assert data == b"".join(train)
    else:
        assert data == train[0]
        assert [peer.recv(2000) for _ in train[1:]] == train[1:]


@pytest.mark.parametrize(
    ("address", "asked", "told"),
    [
        (V4[0], (socket.IPPROTO_IP, 12), (socket.IPPROTO_IP, socket.IP_TTL)),
        (V6[0], (socket.IPPROTO_IPV6, 51), (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)),
    ],
    ids=["IP_RECVTTL", "IPV6_RECVHOPLIMIT"],
)
def test_a_limit_of_hops_leaves_with_each_datagram_and_run(
    conn: Conn, address: str, asked: tuple[int, int], told: tuple[int, int]
) -> None:
    peer = client(conn.namespace, address)
    peer.setsockopt(*asked, 1)
    family = socket.AF_INET if "." in address else socket.AF_INET6
    place = Endpoint(socket.inet_pton(family, address), peer.getsockname()[1])
    for limit in (0, 56, 48, 8 | CUT, 0):
        for train in (run_of(1), run_of(3)):
            conn.send(place._replace(limit=limit).pack(), *train)
            for datagram in train:
                data, notes, _, _ = peer.recvmsg(65535, 100)
                assert data == datagram
                assert notes == [(*told, (limit & ~CUT or 64).to_bytes(4, "little"))]


def offload() -> bool:
    return os.environ.get("STAGEWIRE_OFFLOAD") != "0"


@pytest.mark.parametrize("address", [V4[0], V6[0]])
def test_a_run_that_the_kernel_put_together_is_for_the_worker_it_names(conn: Conn, address: str) -> None:
    peer = client(conn.namespace, address)
    peer.setsockopt(SOL_UDP, UDP_SEGMENT, 200)
    for worker in (0, 1):
        train = run_of(30, worker=worker)
        peer.sendto(b"".join(train), (address, PORT))
        ((place, datagrams),) = conn.runs(worker)
        assert datagrams == train
        assert unpack_untrusted(place).port == peer.getsockname()[1]


def test_a_run_for_several_is_sorted(conn: Conn) -> None:
    peer = client(conn.namespace, V4[0])
    peer.setsockopt(SOL_UDP, UDP_SEGMENT, 148)
    before = conn.counters.wait_for().get("unknown_worker", 0)
    train = [transport(0, 1, 148), transport(1, 2, 148), initiation(), transport(9, 3, 148), transport(0, 4, 148)]
    peer.sendto(b"".join(train), (V4[0], PORT))
    assert [datagram for _, run in conn.runs(0) for datagram in run] == [train[0], train[4]]
    assert [datagram for _, run in conn.runs(1) for datagram in run] == [train[1]]
    assert conn.handshakes.poll(5000)
    assert trains.unpack_handshake_untrusted(conn.handshakes.recv(), boot_time())[1] == train[2]
    conn.counters.wait_for(unknown_worker=before + 1)


def test_single_datagrams_of_one_size_become_a_run(conn: Conn) -> None:
    """Those of somebody who sends one by one, too; but the first after a rest may go on by itself."""
    os.kill(conn.program.process.pid, signal.SIGSTOP)
    peer = client(conn.namespace, V4[0])
    train = run_of(20)
    for datagram in train:
        peer.sendto(datagram, (V4[0], PORT))
    os.kill(conn.program.process.pid, signal.SIGCONT)
    ((_, datagrams),) = conn.runs()
    if len(datagrams) == 1:
        assert datagrams == train[:1]
        del train[0]
        ((_, datagrams),) = conn.runs()
    assert datagrams == train


def test_what_the_link_cannot_take_by_the_run_goes_one_by_one(conn: Conn, links: Links) -> None:
    """Datagrams larger than its MTU: the kernel cuts each in pieces, but not a run of them."""
    links.ours.run("ip", "link", "set", "first", "mtu", "1300")
    before = conn.counters.wait_for().get("runs_in_pieces", 0)
    peer = client(links.theirs, "192.0.0.2")
    place = Endpoint(socket.inet_aton("192.0.0.2"), peer.getsockname()[1]).pack()
    train = run_of(5, 1452, 1000)
    for _ in range(2):
        conn.send(place, *train)
        assert [peer.recv(2000) for _ in train] == train
    small = run_of(5)
    conn.send(place, *small)
    assert [peer.recv(2000) for _ in small] == small
    conn.counters.wait_for(runs_in_pieces=before + (1 if offload() else 0))
    assert conn.counters.latest.get("runs_in_pieces", 0) == before + (1 if offload() else 0)


def test_what_the_kernel_has_no_room_for_is_kept_as_it_was() -> None:
    """A train's memory is its sender's again while what is in it still waits. No link here is slow enough to show it."""
    outbound = object.__new__(Outbound)
    outbound._blocked = deque()
    outbound._born = 7.0
    memory = bytearray(b"a" * 300)
    outbound._keep(b"place", Block(memoryview(memory)[:200], 100))
    outbound._send(b"place", Block(memoryview(memory)[100:], 100))
    memory[:] = b"b" * 300
    assert list(outbound._blocked) == [(b"place", [b"a" * 100, b"a" * 100], 7.0)] * 2


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_what_came_before_the_wall_clock_jumped_counts_as_fresh(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        closing(udp.Sockets({UDP4: os.dup(bound.fileno())}, NoWays())) as sockets,
    ):
        ahead = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + ahead)

        def waited(since: float) -> float:
            """How long a datagram has waited that came when the wall clock said `since`."""
            sockets._arrived = udp._ARRIVED.pack(int(since), int(since % 1 * 1e9))
            return sockets.waited(sockets.wall_clock())

        sockets.begun -= 10
        came = time.time() - 1
        assert waited(came) == pytest.approx(1, abs=0.2)
        ahead = jump
        assert waited(came) <= 0
        sockets.begun -= 10  # some s later
        assert waited(time.time() - 1) == pytest.approx(1, abs=0.2)
