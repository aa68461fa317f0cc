"""`stagewire capture` at a real gateway, read by Debian's tshark."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.whys import works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.traffic import ping, tcp_fetch
from lab.wait import until
from stagewire.control import capture

pytestmark = pytest.mark.system

ANNA, OTHER = Spoke(1, name="anna"), Spoke(2)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("q") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with (
        Hub(network.b, shared_directory, {"anna": ANNA, "other": OTHER}) as gateway,
        gateway.wireguard_go(ANNA, network.a, Topology.B4),
        gateway.wireguard_go(OTHER, network.a, Topology.B4),
    ):
        assert works(network.a, ANNA.gateway_inner[0])
        assert works(network.a, OTHER.gateway_inner[0])
        yield gateway


class Capture:
    """Runs the command."""

    def __init__(self, hub: Hub, *options: str, stdout: int = subprocess.PIPE) -> None:
        argv = hub.namespace.entering([executable("stagewire"), "capture", "anna", *options])
        environment = {**os.environ, **hub.gateway.env, "SUDO_USER": "martin\x1b[2J"}
        until(lambda: not hub.gateway.status()["captures"], 10, "status to forget an earlier capture")
        self.process = subprocess.Popen(argv, env=environment, stdout=stdout, stderr=subprocess.PIPE)
        self._hub = hub

    def begun(self) -> "Capture":
        def shown() -> bool:
            assert self.process.poll() is None, self.said()
            return bool(self._hub.gateway.status()["captures"])

        until(shown, 10, "the capture to be in status")
        return self

    def end(self) -> str:
        """Ends the command as Ctrl-C does; returns what it says."""
        self.process.send_signal(signal.SIGINT)
        return self.said()

    def said(self, status: int = 0) -> str:
        _, told = self.process.communicate(timeout=30)
        assert self.process.returncode == status, told
        return told.decode()


def logged(hub: Hub) -> set[str]:
    """Returns all lines that the workers have logged."""
    texts = (text for name, text in hub.gateway.logs().items() if "device" in name)
    return {line for text in texts for line in text.splitlines()}


def read(file: Path, *options: str) -> list[list[str]]:
    """What tshark reads in a capture: a list of the fields for each packet."""
    fields = ["ip.src", "ip.dst", "ipv6.src", "frame.len", "frame.cap_len", "frame.packet_flags_direction"]
    told = subprocess.run(
        ["tshark", "-r", file, "-T", "fields", *(word for field in fields for word in ("-e", field)), *options],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "cut short" not in told.stderr
    assert "appears to be damaged" not in told.stderr
    return [line.split("\t") for line in told.stdout.splitlines()]


def test_a_peers_packets_and_no_others_in_both_directions_without_payload(
    network: Topology, hub: Hub, shared_directory: Path
) -> None:
    file, earlier = shared_directory / "anna.pcapng", logged(hub)
    running = Capture(hub, "-w", str(file)).begun()
    [shown] = hub.gateway.status()["captures"]
    assert (shown["public_key"], shown["takes"]) == (ANNA.keys.public, "headers")
    assert shown["by"].startswith("martin")
    assert "\x1b" not in shown["by"]
    assert "  capture of anna (" in hub.gateway.command("status", hub.name).stdout
    for spoke in (ANNA, OTHER):
        assert ping(network.a, spoke.gateway_inner[0], count=3, size=500).received == 3
    assert ping(network.a, ANNA.gateway_inner[1], count=1).received == 1
    told = running.end()
    assert told.startswith("stagewire: anna (")
    assert "missed 0; ended as you ended it" in told
    packets = read(file, "-Y", "icmp")
    assert [packet[:2] for packet in packets] == [
        [ANNA.inner[0], ANNA.gateway_inner[0]],
        [ANNA.gateway_inner[0], ANNA.inner[0]],
    ] * 3
    assert all(packet[3:5] == ["528", "28"] for packet in packets)
    assert [int(packet[5], 16) for packet in packets] == [1, 2] * 3
    assert len(read(file, "-Y", "icmpv6.type == 128 || icmpv6.type == 129")) == 2
    assert file.stat().st_mode & 0o777 == 0o600
    log = logged(hub) - earlier
    for event in ("begins", "ends"):
        [line] = [line for line in log if f'event="capture {event}"' in line]
        assert f'of="anna ({ANNA.keys.public[:10]}' in line
        assert 'by="martin' in line or "by=martin" in line
    until(lambda: not hub.gateway.status()["captures"], 10, "status to show no capture")


def test_whole_packets_of_a_tcp_stream_by_port_through_a_pipe(
    network: Topology, hub: Hub, shared_directory: Path
) -> None:
    file = shared_directory / "tcp.pcapng"
    with file.open("wb") as taken:
        running = Capture(
            hub, "-w", "-", "--whole", "--protocol", "tcp", "--host", ANNA.inner[0], stdout=taken.fileno()
        ).begun()
        tcp_fetch(network.a, hub.namespace, ANNA.inner[0], 300_000, seed=7)
        assert works(network.a, ANNA.gateway_inner[0])
        running.end()
    assert read(file, "-Y", "icmp") == []
    # The stream as tshark puts it together: nothing is missed, and super-packets are taken apart.
    lengths = [int(packet[3]) for packet in read(file)]
    assert max(lengths) <= 1420
    assert sum(lengths) > 300_000


def test_a_size_ends_it_and_a_port_chooses_and_tshark_reads_the_pipe(network: Topology, hub: Hub) -> None:
    """The command writes into a pipe, whose reader is tshark itself."""
    reader = subprocess.Popen(
        ["tshark", "-r", "-", "-T", "fields", "-e", "udp.dstport", "-e", "icmp.type"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdin is not None
    options = ("-w", "-", "--whole", "--port", "4711", "--size", "1")
    running = Capture(hub, *options, stdout=reader.stdin.fileno()).begun()
    reader.stdin.close()
    reader.stdin = None  # the command alone has it now
    assert works(network.a, ANNA.gateway_inner[0])

    def sent() -> bool:
        with network.a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as line:
            for port in (4711, 4712) * 100:
                line.sendto(bytes(1000), (ANNA.gateway_inner[0], port))
        return running.process.poll() is not None

    until(sent, 30, "the capture to end by its size")
    assert re.search(r"ended as it has 1,0\d\d,\d\d\d bytes", running.said())
    found, complaint = reader.communicate(timeout=30)
    assert b"cut short" not in complaint
    lines = found.decode().splitlines()
    assert {line.split("\t")[0] for line in lines} == {"4711"}
    assert 900 <= len(lines) <= 1000


def test_limits_end_it_and_a_worker_that_dies_does_not(network: Topology, hub: Hub, shared_directory: Path) -> None:
    file = shared_directory / "limits.pcapng"
    running = Capture(hub, "-w", str(file), "--for", "6").begun()
    home = hub.peer(ANNA)["worker"]
    hub.gateway.kill("device", signal.SIGKILL, home)

    def over() -> bool:
        ping(network.a, ANNA.gateway_inner[0], timeout=0.5)
        return running.process.poll() is not None

    until(over, 30, "the capture to end while pings go on")
    told = running.said()
    assert "ended as its time is over" in told
    found = re.search(
        r"captured (\d+) packets, missed \d+, and what passed in (\d+\.\d) s while the peer had no worker;", told
    )
    assert found is not None, told
    assert int(found[1]) == len(read(file))
    assert float(found[2]) < 10
    assert read(file, "-Y", "icmp") != []


def test_a_reader_that_goes_away_ends_it(hub: Hub) -> None:
    running = Capture(hub, "-w", "-").begun()
    assert running.process.stdout is not None
    running.process.stdout.close()
    running.process.stdout = None
    assert "its reader is gone" in running.said()
    until(lambda: not hub.gateway.status()["captures"], 10, "status to show no capture")


def test_a_full_disk_and_bad_operands_get_one_line(network: Topology, hub: Hub, shared_directory: Path) -> None:
    full = Capture(hub, "-w", "/dev/full")
    assert full.said(1) == "stagewire: wg0: /dev/full: No space left on device; what was captured before is whole\n"
    assert works(network.a, ANNA.gateway_inner[0])
    there = shared_directory / "there"
    there.write_text("mine")
    assert "exists already, and stays as it is; nothing is captured" in Capture(hub, "-w", str(there)).said(1)
    assert there.read_text() == "mine"
    assert "--protocol xyz" in Capture(hub, "-w", str(there), "--protocol", "xyz").said(1)
    told = hub.gateway.command("capture", "nobody", "-w", str(shared_directory / "n"), check=False)
    assert (told.returncode, told.stderr.count("\n")) == (1, 1)


def test_nobody_but_root_can_order_one(hub: Hub) -> None:
    home = hub.peer(ANNA)["worker"]
    path = hub.gateway.run_directory / hub.name / f"device/capture.{home}"
    order = capture.Order(b"\1" * 32, True, (), (), (), 1000, 9.0, "x")
    as_conn = path.parent.parent.joinpath("conn").stat()
    code = (
        "import os, socket, sys\n"
        f"os.setgid({as_conn.st_gid}); os.setuid({as_conn.st_uid})\n"
        "line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); line.settimeout(5)\n"
        f"line.connect({str(path)!r}); line.send({capture.TO_WORKER.pack(order)!r}); print(line.recv(4096))"
    )
    told = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert told.stdout in ("b''\n", "")
    assert any(word in told.stdout + told.stderr for word in ("b''", "Permission", "Broken", "reset"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:  # root may, but not without sense
        line.settimeout(10)
        line.connect(str(path))
        line.send(b"nonsense")
        assert line.recv(4096) == b""
    assert hub.gateway.status()["captures"] == []
