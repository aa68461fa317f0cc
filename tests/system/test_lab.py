"""The lab itself, tried with wireguard-go at both ends, so that what it finds about Stagewire can be believed."""

import contextlib
import hashlib
import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture
from lab.decode import decode_all
from lab.machine import Machine
from lab.namespaces import Namespace, Topology, masquerade, veth
from lab.traffic import NumberedStream, ping, tcp_fetch
from lab.udp_proxy import Faults, UdpProxy
from lab.wait import NeverHappened, until
from lab.wireguard_go import (
    SOCKETS,
    KeyPair,
    Peer,
    WireguardGo,
    new_key_pair,
    new_preshared_key,
)

pytestmark = pytest.mark.system

PORT = 51820
A_INNER = ("10.66.0.1", "fd66::1")
B_INNER = ("10.66.0.2", "fd66::2")
UDP_SEGMENT = 103
TRANSPORT = 4


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    """One A - C - B for all tests that leave it as it was."""
    with Topology() as topology:
        yield topology


@contextlib.contextmanager
def tunnel(
    a: Namespace, b: Namespace, endpoint: str, b_endpoint: str | None = None
) -> Iterator[tuple[WireguardGo, WireguardGo]]:
    """A's wireguard-go, which knows `endpoint` for B, and B's, which learns where A is unless told."""
    keys: tuple[KeyPair, KeyPair] = new_key_pair(), new_key_pair()
    psk = new_preshared_key()
    to_b = Peer(keys[1].public, [f"{B_INNER[0]}/32", f"{B_INNER[1]}/128"], endpoint, psk)
    to_a = Peer(keys[0].public, [f"{A_INNER[0]}/32", f"{A_INNER[1]}/128"], b_endpoint, psk)
    with (
        WireguardGo(b, keys[1], [f"{B_INNER[0]}/32", f"{B_INNER[1]}/128"], [to_a], PORT) as at_b,
        WireguardGo(a, keys[0], [f"{A_INNER[0]}/32", f"{A_INNER[1]}/128"], [to_b], PORT) as at_a,
    ):
        yield at_a, at_b


def test_two_peers_ping_each_other_in_both_families(network: Topology) -> None:
    with tunnel(network.a, network.b, f"[{Topology.B6}]:{PORT}") as (at_a, at_b):
        for there, back in zip(B_INNER, A_INNER, strict=True):
            assert ping(network.a, there, count=3).received == 3
            assert ping(network.b, back, count=3, size=1300).received == 3
        state = at_a.dump().peers[at_b.keys.public]
        assert state.latest_handshake > 0
        assert state.received > 3 * 1300
        assert state.endpoint == f"[{Topology.B6}]:{PORT}"
        assert at_b.dump().listen_port == PORT
        assert "Received handshake response" in at_a.logs()

        at_a.set("peer", at_b.keys.public, "persistent-keepalive", "7", "preshared-key", "/dev/null")
        changed = at_a.dump().peers[at_b.keys.public]
        assert (changed.persistent_keepalive, changed.preshared_key) == (7, None)


def test_a_faulty_and_replaying_network_lets_no_packet_through_twice(network: Topology) -> None:
    proxy = UdpProxy(network.c, (Topology.CA4, 0), (Topology.B4, PORT), seed=1)
    with proxy, tunnel(network.a, network.b, f"{Topology.CA4}:{proxy.listen[1]}"):
        assert ping(network.a, B_INNER[0]).received == 1
        proxy.set_faults(Faults(loss=0.05, duplicate=0.3, reorder=0.2, reorder_by=50, corrupt=0.01, truncate=0.01))
        with NumberedStream(network.a, network.b, B_INNER[0], rate=2000) as stream:
            until(lambda: stream.sent >= 3000, 10, "3000 packets to be sent")
            faulty = stream.finish()
        counts = proxy.forward.counts
        for fault in ("lost", "duplicated", "reordered", "corrupted", "truncated"):
            assert counts[fault] > 10, fault
        assert faulty.duplicates == faulty.foreign == 0
        assert faulty.out_of_order > 10
        # The handshake came before the faults, so what was lost or damaged (or both) was the stream's.
        damaged = counts["lost"] + counts["corrupted"] + counts["truncated"]
        assert 0.5 * damaged < faulty.lost <= damaged

        proxy.set_faults(Faults())
        with NumberedStream(network.a, network.b, B_INNER[0], rate=2000) as stream:
            until(lambda: stream.received >= 500, 10, "500 packets to arrive")
            overflowed = network.b.udp_overflows()
            proxy.replay(proxy.recorded("forward")[-400:], rate=1000)
            proxy.replay(proxy.recorded("forward")[-400:], port=0, rate=1000)
            at = stream.received
            until(lambda: stream.received > at + 200, 10, "the stream to go on")
            replayed = stream.finish()
        assert network.b.udp_overflows() == overflowed  # the replays did reach wireguard-go
        assert replayed.duplicates == replayed.foreign == replayed.lost == 0


def test_the_proxy_does_the_same_again_with_the_same_seed(network: Topology) -> None:
    def outcome(seed: int) -> list[bytes]:
        target = network.b.udp_socket(Topology.B4)
        target.settimeout(0.3)
        client = network.a.udp_socket(Topology.A4)
        proxy = UdpProxy(network.c, (Topology.CA4, 0), target.getsockname(), seed=seed)
        with proxy:
            proxy.forward.faults = Faults(0.2, 0.2, 0.2, 5, 0.2, 0.2)
            for number in range(300):
                client.sendto(struct.pack("!Q", number) * 8, proxy.listen)
            arrived = []
            with contextlib.suppress(TimeoutError):
                while True:
                    arrived.append(target.recv(2048))
            # The way back, to the client that has spoken, is not touched.
            target.sendto(b"answer", (Topology.CB4, proxy.back_port))
            client.settimeout(2)
            assert client.recv(2048) == b"answer"

            proxy.replay(proxy.recorded("forward")[3:4], port=0)
            again, source = target.recvfrom(2048)
            assert again == struct.pack("!Q", 3) * 8
            assert source[0] == Topology.CB4
            assert source[1] != proxy.back_port
        return arrived

    first = outcome(7)
    assert outcome(7) == first
    assert outcome(8) != first


def test_a_capture_agrees_with_scapy_and_sees_nothing_plain(network: Topology, tmp_path: Path) -> None:
    with (
        Capture(network.a, network.link_a.a_interface) as outer,
        tunnel(network.a, network.b, f"{Topology.B4}:{PORT}") as (at_a, _),
        Capture(network.a, at_a.interface) as inner,
        NumberedStream(network.a, network.b, B_INNER[1], rate=1000) as stream,
    ):
        until(lambda: stream.received >= 300, 10, "300 packets to arrive")
        stream.finish()
        assert inner.contains(stream.marker)
        assert not outer.contains(stream.marker)

        datagrams = outer.datagrams(PORT)
        decoded = decode_all(datagrams)
        assert [each.type for each in decoded[:3]] == [1, 2, TRANSPORT]
        assert all(each.trailing == b"" for each in decoded)
        assert len(decoded) >= stream.received
        for datagram, (kind, fields, _) in zip(datagrams, decoded, strict=True):
            if kind == TRANSPORT:
                ours = struct.unpack_from("<IQ", datagram.payload, 4)
                assert ours == (fields["receiver_index"], fields["counter"])
        outer.assert_no_duplicate_counters(PORT)
        outer.write_pcap(tmp_path / "outer.pcap")
    assert (tmp_path / "outer.pcap").stat().st_size > 24 + 300 * (16 + 200)
    assert outer.dropped == 0


def test_the_nonce_oracle_tells_a_replay_from_a_reused_nonce(network: Topology) -> None:
    sender = network.a.udp_socket()
    with Capture(network.c, network.link_a.b_interface) as capture:
        for counter, text in ((0, b"one"), (1, b"two"), (1, b"two"), (2, b"three"), (2, b"other")):
            sender.sendto(struct.pack("<IIQ", TRANSPORT, 9, counter) + text, (Topology.B4, 9))
        found = until(capture.duplicate_counters, 2, "the oracle to speak")
        assert [(each.counter, each.times, each.identical) for each in found] == [(1, 2, True), (2, 2, False)]
        assert found[0].destination == (Topology.B4, 9)
        assert capture.duplicate_counters(source=Topology.B4) == []
        with pytest.raises(AssertionError, match="2 nonces"):
            capture.assert_no_duplicate_counters()


@pytest.mark.parametrize("destination", [Topology.B4, Topology.B6])
def test_a_capture_cuts_up_a_train_of_datagrams(network: Topology, destination: str, tmp_path: Path) -> None:
    payload = random.Random(3).randbytes(4500)
    sender = network.a.udp_socket("::" if ":" in destination else "0.0.0.0")
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    receiver = network.b.udp_socket(destination)
    receiver.settimeout(2)
    with Capture(network.c, network.link_b.b_interface) as capture:
        port = receiver.getsockname()[1]
        sender.sendto(payload, (destination, port))
        arrived = [receiver.recv(65535) for _ in range(5)]
        seen = capture.datagrams(port)
        assert [each.payload for each in seen] == arrived
        assert [len(each.payload) for each in seen] == [1000, 1000, 1000, 1000, 500]
        capture.write_pcap(tmp_path / "cut.pcap")
        capture.assert_no_duplicate_counters()


def test_a_rebound_nat_moves_the_endpoint() -> None:
    with Topology("n") as network:
        nat = masquerade(network.c, network.link_b.b_interface)
        with tunnel(network.a, network.b, f"{Topology.B4}:{PORT}") as (at_a, at_b):
            for port in (40001, 40002):
                nat.rebind(port)
                assert ping(network.a, B_INNER[0], count=2).received == 2
                assert at_b.dump().peers[at_a.keys.public].endpoint == f"{Topology.CB4}:{port}"
            nat.forget()
            assert ping(network.a, B_INNER[0]).received == 1


@pytest.mark.alone
def test_a_download_arrives_whole_and_a_cut_one_is_noticed(network: Topology) -> None:
    steps: list[int] = []
    report = tcp_fetch(network.b, network.a, Topology.B6, 100 << 20, seed=5, progress=steps.append)
    assert report.size == steps[-1] == 100 << 20
    assert report.sha256 != hashlib.sha256().hexdigest()
    assert report.seconds < 5  # or it would be what limits the tunnels that it is to measure
    with tunnel(network.a, network.b, f"{Topology.B4}:{PORT}"):
        assert tcp_fetch(network.b, network.a, B_INNER[0], 5 << 20, seed=6).size == 5 << 20

    def fail(_: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        tcp_fetch(network.b, network.a, Topology.B4, 10 << 20, seed=5, progress=fail)


@pytest.mark.alone
def test_a_stream_reports_an_outage(network: Topology) -> None:
    with NumberedStream(network.a, network.b, Topology.B4, rate=2000) as stream:
        until(lambda: stream.received > 200, 5, "the stream to flow")
        network.c.sysctl("net.ipv4.ip_forward", 0)
        at = stream.sent
        until(lambda: stream.sent > at + 200, 5, "a tenth of a second to pass")
        network.c.sysctl("net.ipv4.ip_forward", 1)
        at = stream.received
        until(lambda: stream.received > at + 200, 5, "the stream to flow again")
        report = stream.finish()
    assert report.lost >= 190
    assert report.duplicates == report.out_of_order == 0
    assert report.longest_gap == max(gap.seconds for gap in report.gaps)
    assert 0.08 < report.longest_gap < 1


def test_a_function_called_in_a_namespace_leaves_the_caller_where_it_was(network: Topology) -> None:
    here = Path("/proc/thread-self/ns/net")
    before = here.readlink()
    assert network.a.call(here.readlink) != before
    assert here.readlink() == before
    with pytest.raises(ZeroDivisionError):
        network.a.call(lambda: 1 // 0)


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(NeverHappened, match="for Godot"):
        until(lambda: False, 0.05, "Godot")


def test_nothing_is_left_behind_by_a_failed_test() -> None:
    class Failed(Exception):  # noqa: N818 - the test's own
        pass

    namespaces, pids, names = [], [], []
    with contextlib.suppress(Failed), Namespace("x") as x, Namespace("y") as y:
        namespaces += [x, y]
        first, second = (veth(x, y, [f"192.0.2.{n}/30"], [f"192.0.2.{n + 1}/30"]) for n in (1, 5))
        assert (first.a_interface, second.a_interface) == ("to-y", "to-y2")
        assert ping(x, "192.0.2.6").received == 1
        # A daemon that nobody tracks, deaf to SIGTERM, whose supervisor starts it anew.
        x.run("sh", "-c", "(trap '' TERM; while true; do sleep 1000; done) >/dev/null 2>&1 &")
        with tunnel(x, y, f"192.0.2.2:{PORT}") as (at_a, at_b):
            until(lambda: len(x.pids()) >= 3, 5, "the daemon to start")
            pids += x.pids() + y.pids()
            names += [at_a.interface, at_b.interface]
            assert {at_a.pid, at_b.pid} <= set(pids)
            assert all((SOCKETS / f"{name}.sock").exists() for name in names)
            raise Failed
    assert len(pids) >= 4
    assert not [pid for pid in pids if alive(pid)]
    assert not [name for name in names if (SOCKETS / f"{name}.sock").exists()]
    assert not [each for each in namespaces if each.exists()]


def alive(pid: int) -> bool:
    """A zombie is not: whoever has inherited an orphan reaps it when it pleases."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_lab_directory_is_short_enough_for_sockets(lab_directory: Path) -> None:
    assert len(os.fsencode(lab_directory)) < 20
    assert list(lab_directory.iterdir()) == []


def test_a_machine_boots_a_systemd_of_its_own_and_ends_whole() -> None:
    """Its network is the namespace's, its cgroups and its processes are its own, and what it writes stays inside."""
    with Namespace("machine") as namespace:
        with Machine(namespace) as machine:
            assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
            assert (
                machine.run("readlink", "/proc/1/ns/net").stdout
                == namespace.run("readlink", "/proc/self/ns/net").stdout
            )
            machine.run("systemd-run", "--unit=marked", "--wait", "sh", "-c", "echo here > /etc/lab-mark; echo said")
            assert machine.path("/etc/lab-mark").read_text() == "here\n"
            assert machine.journal("-u", "marked", "-o", "cat").count("said\n") == 1
            assert machine.run("touch", "/usr/mark", check=False).returncode != 0
            pid, cgroup = machine.pid, machine.cgroup
        assert not Path("/etc/lab-mark").exists()
        assert not Path(f"/proc/{pid}").exists()
        assert not cgroup.exists()
        assert namespace.pids() == []
