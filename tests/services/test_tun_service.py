"""tun-service as a process: the kernel's own packets and super-packets at one end, the test at its pipes."""

import hashlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network

import pytest
from tests.proto.packets.flows import ACK, TCP, UDP, Shape, summed, sums_are_right
from tests.services.surroundings import CountersStandIn, KeyStandIn, Program, Surroundings, surroundings

from lab.wait import until
from stagewire.control.confirm import Cleared
from stagewire.control.messages import Hello, RoutesSet, TunSettings
from stagewire.linux import privileges
from stagewire.linux import tun as devices
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import PLAIN_IN, PLAIN_OUT
from stagewire.proto import prefix
from stagewire.proto.packets import merge, split
from stagewire.proto.packets.merge import Item, Merged
from stagewire.proto.packets.split import SuperPacket

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs a service in a network namespace")

BOTH = merge.TAKES_TCP | merge.TAKES_UDP
OURS = "10.9.9.9"
MOVING = "10.0.3.0/24"
"""Prefix of a peer at home in worker 0 and in worker 1."""


def make_device(*, offload: bool) -> None:
    """As host-service does."""
    clone = devices.open_clone()
    devices.attach(clone, "wg0", privileges.uid_of("tun"), offload=offload)
    os.close(clone)


class Tun:
    """The service with 10.0.1.0/24 at worker 0, 10.0.2.0/24 at worker 1, and 10.9.9.9 as its own address."""

    def __init__(self, around: Surroundings, *, offload: bool) -> None:
        self.namespace, self.offload = around.namespace, offload
        self.key = KeyStandIn(around)
        self.counters = CountersStandIn(around)
        self.workers = [around.bind(PLAIN_OUT, number) for number in range(2)]
        self.namespace.call(lambda: make_device(offload=offload))
        for command in (f"address add {OURS}/8", "address add fd00::9/16"):
            self.namespace.run("ip", *command.split(), "dev", "wg0")
        self.namespace.run("ip", "link", "set", "wg0", "up")
        for network in ("10.0.0.0/23", "10.0.2.0/24"):
            self.namespace.run("ip", "route", "add", network, "dev", "wg0")
        self.program: Program = around.start("tun-service", STAGEWIRE_OFFLOAD=str(int(offload)))
        routes = [
            RoutesSet(worker, tuple(prefix.pack(ip_network(each)) for each in prefixes))
            for worker, prefixes in enumerate((["10.0.0.0/23", "fd00::/16"], ["10.0.2.0/24"]))
        ]
        routes.append(RoutesSet(0, (prefix.pack(ip_network(MOVING)),), (1,)))
        self.key.welcome(TunSettings(2), *routes)
        self.plain_in = around.connect(PLAIN_IN)
        self.as_worker = [around.connect_as(PLAIN_IN, "device", number) for number in range(2)]

    def train(self, worker: int = 0) -> tuple[list[Item], int]:
        """The next one, and what the device is said to take."""
        assert self.workers[worker].poll(5000), "no train came"
        frame = self.workers[worker].recv()
        return trains.unpack_plain_untrusted(frame, 0.0), trains.takes_of(frame)  # however long we took

    def write(self, *items: Item) -> None:
        """To the OS."""
        self.plain_in.send(trains.pack_plain(items, boot_time()))

    def counted(self, **least: int) -> dict[str, int]:
        return self.counters.wait_for(**least)


@contextmanager
def tun_service(*, offload: bool, label: str = "tun") -> Iterator[Tun]:
    with surroundings(label) as around:
        yield Tun(around, offload=offload)


@pytest.fixture(scope="module", params=[True, False], ids=["offload", "plain"])
def tun(request: pytest.FixtureRequest) -> Iterator[Tun]:
    with tun_service(offload=request.param) as made:
        yield made


def apart(items: list[Item]) -> list[bytes]:
    """As a worker opens them."""
    found = []
    for item in items:
        if isinstance(item, Merged):
            opened = split.open_untrusted(item.header, item.packet)
            found += split.split(opened) if isinstance(opened, SuperPacket) else [opened]
        else:
            found.append(item)
    return found


def is_ours(packet: bytes) -> bool:
    """No router solicitation or the like."""
    return packet[0] >> 4 == 4


def sender(tun: Tun) -> socket.socket:
    return tun.namespace.udp_socket(OURS)


def test_a_packet_goes_to_the_worker_of_its_destination(tun: Tun) -> None:
    with sender(tun) as opened:
        for worker, host in ((0, "10.0.0.7"), (1, "10.0.2.7"), (0, "10.0.1.7"), (1, "10.0.2.8")):
            opened.sendto(b"hello" + host.encode(), (host, 9))
            items, takes = tun.train(worker)
            (packet,) = filter(is_ours, apart(items))
            assert packet[28:] == b"hello" + host.encode()
            assert socket.inet_ntoa(packet[16:20]) == host
            assert sums_are_right(packet)  # also of one that the kernel left to the device
            assert takes == (BOTH if tun.offload else 0)


def test_several_workers_packets_in_one_visit_are_told_apart(tun: Tun) -> None:
    with sender(tun) as opened:
        for number in range(40):
            opened.sendto(bytes([number]), (f"10.0.{1 + number % 2}.7", 9))
        found: list[list[int]] = [[], []]

        def all_there() -> bool:
            for worker in (0, 1):
                if tun.workers[worker].poll(10):
                    found[worker] += [packet[28] for packet in apart(tun.train(worker)[0]) if is_ours(packet)]
            return len(found[0]) + len(found[1]) >= 40

        until(all_there, 5, "all 40")
        assert found == [list(range(0, 40, 2)), list(range(1, 40, 2))]


def test_a_stream_of_the_kernels_is_whole_and_its_super_packets_stay_so(tun: Tun) -> None:
    """To a TCP that the test plays by hand: it answers the handshake, then acknowledges all that comes."""
    content = random.Random(5).randbytes(400_000)
    with tun.namespace.call(socket.socket) as client:
        client.bind((OURS, 0))
        client.settimeout(10)
        threading.Thread(target=lambda: connect_and_send(client, content), daemon=True).start()
        received, largest = play_tcp(tun, len(content))
    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()
    # How large they get, the kernel's TCP decides by how fast its packets are acknowledged.
    assert largest > 2 * 1420 if tun.offload else largest <= 1420


def connect_and_send(client: socket.socket, content: bytes) -> None:
    client.connect(("10.0.1.7", 80))
    client.sendall(content)


def play_tcp(tun: Tun, size: int) -> tuple[bytes, int]:
    received, largest, base = bytearray(), 0, None
    while len(received) < size:
        for item in tun.train()[0]:
            raw = item.packet if isinstance(item, Merged) else item
            for packet in apart([item]):
                if not is_ours(packet) or packet[9] != TCP:
                    continue
                assert sums_are_right(packet)
                largest = max(largest, len(raw))
                sequence = int.from_bytes(packet[24:28])
                payload = packet[20 + (packet[32] >> 4) * 4 :]
                if packet[33] & 2:
                    base = (sequence + 1) & 0xFFFFFFFF
                    tun.write(answer(packet, base, flags=ACK | 2))
                    continue
                assert base is not None
                if (sequence - base) & 0xFFFFFFFF == len(received):
                    received += payload
                if payload:
                    tun.write(answer(packet, base + len(received), flags=ACK))
    return bytes(received), largest


def answer(packet: bytes, acknowledged: int, flags: int) -> bytes:
    """From where it went to where it came from."""
    scale = bytes([2, 4, 5, 0x64, 3, 3, 7, 1]) if flags & 2 else b""  # an MSS of 1,380, windows times 128
    shape = Shape(
        flags=flags, acknowledged=acknowledged & 0xFFFFFFFF, window=60000, options=scale, sequence=0 if flags & 2 else 1
    )
    made = bytearray(shape.packet())
    made[12:16], made[16:20], made[20:22], made[22:24] = packet[16:20], packet[12:16], packet[22:24], packet[20:22]
    return with_sums(bytes(made))


def with_sums(packet: bytes) -> bytes:
    header = packet[:10] + bytes(2) + packet[12:20]
    header = header[:10] + (0xFFFF - summed(header)).to_bytes(2) + header[12:]
    body = packet[20:36] + bytes(2) + packet[38:]
    pseudo = packet[12:20] + bytes([0, TCP]) + len(body).to_bytes(2)
    return header + body[:16] + (0xFFFF - summed(pseudo + body)).to_bytes(2) + body[18:]


def test_a_super_packet_reaches_a_socket_as_what_it_stands_for(tun: Tun) -> None:
    """Also where the device takes none: then it is cut before."""
    with tun.namespace.udp_socket(OURS, 53) as opened:
        opened.settimeout(5)
        shape = Shape(protocol=UDP, size=1200, payload=random.Random(6).randbytes(20 * 1200 + 5))
        (merged,) = merge.merge(shape.train(), BOTH)
        assert isinstance(merged, Merged)
        before = tun.counted().get("tun_packets_out", 0)
        tun.write(merged, *shape.train()[:2])
        expected = [shape.payload[at : at + 1200] for at in range(0, len(shape.payload), 1200)]
        assert [opened.recv(2000) for _ in range(23)] == expected + expected[:2]
        tun.counted(tun_packets_out=before + 23)


def test_nobodys_packets_are_answered_and_counted_one_by_one(tun: Tun) -> None:
    before = tun.counted().get("no_peer", 0)
    with sender(tun) as opened:
        opened.settimeout(5)
        opened.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: an ICMP unreachable is an error of the socket's
        opened.connect(("10.200.0.1", 9))
        opened.send(b"hello")
        with pytest.raises(OSError, match="No route to host"):
            opened.recv(100)
        tun.counted(no_peer=before + 1)
        if tun.offload:
            opened.setsockopt(17, 103, 1000)
            opened.send(bytes(5500))
            tun.counted(no_peer=before + 7)


def test_what_the_os_refuses_is_counted(tun: Tun) -> None:
    before = tun.counted().get("tun_write_failed", 0)
    tun.write(b"\x15" * 60)
    tun.counted(tun_write_failed=before + 1)
    nonsense = Merged(b"\1\1" + bytes(8), bytes(100), 1)
    tun.write(nonsense)
    tun.counted(tun_write_failed=before + 2)
    assert tun.program.alive()


def test_without_offloads_there_is_no_header_and_with_them_there_is(tun: Tun) -> None:
    described = tun.namespace.run("ip", "-details", "link", "show", "dev", "wg0").stdout
    assert f"vnet_hdr {'on' if tun.offload else 'off'}" in described
    assert not tun.offload or "gso_max_size 60000" in described


def test_a_worker_delivers_the_packets_of_its_own_peers_and_no_others(tun: Tun) -> None:
    """Nor a super-packet, nor a packet of no peer; a peer that moves has two homes."""
    before = tun.counted().get("inner_source_of_another_worker", 0)
    with tun.namespace.udp_socket(OURS, 53) as opened:
        opened.settimeout(5)
        for worker, source, delivered in (
            (0, "10.0.2.7", False), (0, "10.0.1.7", True), (1, "10.0.1.7", False), (1, "10.0.2.7", True),
            (0, "10.77.0.1", False), (0, "10.0.3.7", True), (1, "10.0.3.7", True), (0, "10.0.0.8", True),
        ):  # fmt: skip
            shape = Shape(protocol=UDP, payload=f"{worker} {source}".encode() * 30, size=100)
            items = merge.merge([sent_by(source, packet) for packet in shape.train()], BOTH)
            tun.as_worker[worker].send(trains.pack_plain(items, boot_time()))
            if delivered:
                found = b"".join(opened.recv(2000) for _ in shape.train())
                assert found == shape.payload
            else:
                before += len(shape.train())
                tun.counted(inner_source_of_another_worker=before)


def sent_by(source: str, packet: bytes) -> bytes:
    """The same packet from another source, with sums that are right."""
    made = bytearray(packet)
    made[12:16] = socket.inet_aton(source)
    made[16:20] = socket.inet_aton(OURS)
    made[10:12] = made[26:28] = bytes(2)
    made[10:12] = (0xFFFF - summed(bytes(made[:20]))).to_bytes(2)
    pseudo = bytes(made[12:20]) + bytes([0, UDP]) + (len(made) - 20).to_bytes(2)
    made[26:28] = ((0xFFFF - summed(pseudo + bytes(made[20:]))) or 0xFFFF).to_bytes(2)
    return bytes(made)


def test_a_worker_sets_its_own_mark_and_no_other(tun: Tun) -> None:
    tun.as_worker[0].send(trains.pack_mark(1, 8, boot_time()))
    tun.as_worker[1].send(trains.pack_mark(1, 9, boot_time()))
    assert tun.key.wait_for(Cleared) == Cleared(1, 9)


def test_packets_wait_until_their_workers_are_known() -> None:
    """A process without its predecessor's table delivers nothing before key-service has spoken."""
    with surroundings("blind") as around:
        key, counters = KeyStandIn(around), CountersStandIn(around)
        around.namespace.call(lambda: make_device(offload=True))
        around.namespace.run("ip", "address", "add", f"{OURS}/8", "dev", "wg0")
        around.namespace.run("ip", "link", "set", "wg0", "up")
        around.start("tun-service", STAGEWIRE_OFFLOAD="1")
        key.wait_for(Hello)
        worker = around.connect_as(PLAIN_IN, "device", 0)
        with around.namespace.udp_socket(OURS, 53) as opened:
            opened.settimeout(5)
            packet = sent_by("10.0.1.7", Shape(protocol=UDP, payload=b"hello", size=100).packet())
            worker.send(trains.pack_plain([packet], boot_time() + 60))  # no train is too old here
            assert "inner_source_of_another_worker" not in counters.wait_for()
            key.configure(TunSettings(1), RoutesSet(0, (prefix.pack(ip_network("10.0.0.0/8")),)))
            assert opened.recv(100) == b"hello"
