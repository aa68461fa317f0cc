"""Limits of a peer, by real traffic: the rate holds for UDP and TCP and over a kill, the quota over every restart."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.system.test_peers import Client, Single

from lab.hub import PORT
from lab.namespaces import Namespace, Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import WgHub
from stagewire.config import values
from stagewire.control import usage

pytestmark = pytest.mark.system

RATE = 2_000_000
"""Bits/s, of which any machine is capable."""
BURST = RATE / 8 * 0.1
SIZE = 1000
"""Bytes of UDP payload. Inside are 28 more, outside 72 more: padding to 16, 32 of WireGuard."""
INNER, OUTER = SIZE + 28, SIZE + 72
QUOTA = 2_000_000
GATEWAY = Single(1).gateway_inner[0]


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("l") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    line = f"# stagewire: ClientEndpoint = {Topology.B4}:{PORT}"
    with WgHub(network.b, shared_directory / "l", {"stays": Single(1)}, line, spares=1) as gateway:
        yield gateway


def peer(hub: WgHub, *words: str) -> str:
    return hub.gateway.command("peer", *words, "-i", hub.name).stdout


@pytest.fixture(scope="module")
def client(network: Topology, hub: WgHub) -> Iterator[Client]:
    client = Client.read(peer(hub, "add", "phone", "--rate", "2M"))
    with client.runs(network):
        until(lambda: ping(network.c, GATEWAY, timeout=1).received, 10, "the tunnel")
        yield client


class Upload:
    """Sends TCP from one namespace to another as fast as it goes, and counts what arrives."""

    def __init__(self, sender: Namespace, receiver: Namespace, address: str) -> None:
        self.received = 0
        listener = receiver.call(lambda: socket.create_server((address, 0)))
        self._out = sender.call(lambda: socket.create_connection(listener.getsockname(), timeout=10))
        self._in, _ = listener.accept()
        listener.close()
        for run in (self._send, self._receive):
            threading.Thread(target=run, daemon=True).start()

    def _send(self) -> None:
        with suppress(OSError):
            while True:
                self._out.sendall(bytes(16384))

    def _receive(self) -> None:
        with suppress(OSError):
            while data := self._in.recv(65536):
                self.received += len(data)

    @property
    def bytes(self) -> int:
        return self.received

    def close(self) -> None:
        for each in (self._out, self._in):
            each.close()


@contextmanager
def uploading(network: Topology) -> Iterator[Upload]:
    upload = Upload(network.c, network.b, GATEWAY)
    try:
        yield upload
    finally:
        upload.close()


class Window:
    """Counts the bytes of a growing number over a time."""

    def __init__(self, counts: "Upload | Counted") -> None:
        self._counts, self._began, self._before = counts, time.monotonic(), counts.bytes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def bits(self) -> int:
        """Returns the bits since the beginning. Read before `seconds`, they are never too many for them."""
        return 8 * (self._counts.bytes - self._before)


class Counted:
    """Counts the inner bytes of a stream."""

    def __init__(self, stream: NumberedStream) -> None:
        self._stream = stream

    @property
    def bytes(self) -> int:
        return self._stream.received * INNER


def holds_the_rate(counts: "Upload | Counted", bursts: int = 1) -> None:
    """Looks at windows of 2 s: none has more than the rate with a burst, and one comes near to it."""

    def near() -> bool:
        window = Window(counts)
        time.sleep(2)
        bits, seconds = window.bits, window.seconds
        assert bits <= RATE * seconds * 1.05 + bursts * 8 * BURST, f"{bits} bits in {seconds:.2f} s"
        return bits >= RATE * seconds * 0.8

    until(near, 20, "a window with the rate")


def test_udp_to_a_peer_has_its_rate(network: Topology, hub: WgHub, client: Client) -> None:
    with NumberedStream(network.b, network.c, client.address, rate=500, size=SIZE) as stream:
        until(lambda: stream.received > 50, 10, "the stream")
        holds_the_rate(Counted(stream))
    said = hub.gateway.command("why", "phone", hub.name, "--no-try", check=False)
    assert "faster than the peer's Rate allows" in said.stdout
    assert said.returncode == 0, "a limit is no trouble"


def test_tcp_from_a_peer_has_its_rate(network: Topology, client: Client) -> None:
    assert client.address
    with uploading(network) as upload:
        until(lambda: upload.bytes > BURST, 10, "the upload")
        holds_the_rate(upload)


def test_a_killed_worker_gives_at_most_one_burst(network: Topology, hub: WgHub, client: Client) -> None:
    with NumberedStream(network.b, network.c, client.address, rate=500, size=SIZE) as stream:
        until(lambda: stream.received > 50, 10, "the stream")
        counted = Counted(stream)
        window = Window(counted)
        for number in (0, 1):  # one of both is its home
            hub.gateway.kill("device", 9, number)
        had = stream.received
        until(lambda: stream.received > had + 50, 10, "the stream after the kill")
        bits, seconds = window.bits, window.seconds
        assert bits <= RATE * seconds * 1.05 + 2 * 8 * BURST
        holds_the_rate(counted)


def test_a_quota_holds_over_every_restart(network: Topology, hub: WgHub, client: Client) -> None:
    peer(hub, "set", "phone", "--rate", "none", "--quota", str(QUOTA))
    state, month = hub.gateway.state_directory / hub.name, usage.month_of(time.time())

    def used() -> int:
        """Returns what is stored."""
        return sum(each.in_month(month) for each in usage.read(state).values())

    def stored(expected: int) -> None:
        """Waits for the last bytes: a kill forgets what was not reported, and `down` what was not stored."""
        until(lambda: used() >= expected, 15, f"{expected} bytes to be stored")

    def carried(least: int) -> int:
        """Sends until so much is carried or the quota is used up; returns the bytes that arrived."""
        # The gateway has forgotten where the peer is after a `down`: the peer speaks first.
        until(lambda: ping(network.c, GATEWAY, timeout=1).received, 20, "the tunnel")
        with NumberedStream(network.b, network.c, client.address, rate=500, size=SIZE) as stream:
            until(lambda: stream.received * OUTER >= least or used() >= QUOTA, 40, "the traffic")
        return stream.received * OUTER

    assert used() < QUOTA / 100, "what it had before it had a quota doesn't count"
    delivered = carried(QUOTA // 5)
    stored(delivered)
    hub.gateway.kill("key", 9)
    delivered += carried(QUOTA // 5)
    stored(delivered)
    for number in (0, 1):  # one of both is its home
        hub.gateway.kill("device", 9, number)
    delivered += carried(QUOTA // 5)
    stored(delivered)
    hub.gateway.down()
    hub.gateway.up()
    delivered += carried(QUOTA)
    stored(QUOTA)
    assert used() <= QUOTA * 1.01
    # Pings and the upload's end are in it, too, and what a busy machine has lost behind the gateway.
    assert QUOTA * 0.9 <= delivered <= QUOTA * 1.01
    until(lambda: "peer has used up its quota" in "".join(hub.gateway.logs().values()), 10, "a warning in the log")
    assert f"used 100% of {values.as_quota(QUOTA)}" in peer(hub, "list")

    def why() -> str:
        return hub.gateway.command("why", "phone", hub.name, "--no-try", check=False).stdout

    # A worker reports what it drops each second.
    until(lambda: "has used up its Quota" in why(), 10, "why to name the quota")
    peer(hub, "set", "phone", "--quota", "none")
    until(lambda: ping(network.c, GATEWAY, timeout=1).received, 10, "traffic without a quota")
