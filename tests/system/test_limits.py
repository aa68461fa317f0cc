"""Limits of peers, by real traffic: rates to within 5 % for UDP and TCP and over a kill, a quota over every restart."""

import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from tests.far_peer import FarPeer, packet
from tests.system.passing import SNAP, Flow, Passing, carried, passing
from tests.system.test_peers import Client, Single

from lab.capture import Capture
from lab.hub import PORT
from lab.namespaces import Namespace, Topology
from lab.traffic import NumberedStream, ping
from lab.wait import NeverHappened, until
from lab.wg import WgHub
from lab.wireguard_go import Peer, new_key_pair
from stagewire.config import decode_key, values
from stagewire.control import usage
from stagewire.proto import constants as c
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.messages import BadMessage
from stagewire.proto.shaping import HELD

pytestmark = pytest.mark.system

RATE = 2_000_000
"""Bits/s, of which any machine is capable."""
SIZE = 996
"""Bytes of UDP payload. Inside are 28 more, which WireGuard then pads by nothing."""
INNER = SIZE + 28
QUOTA = 3_000_000
SLOWLY = 40
"""Packets/s."""
STEADILY, KILLS = 100, 3
"""Packets/s, of which a killed worker has not reported up to 0.7 % of the quota, and how often that happens."""
STAYS = Single(1)
GATEWAY = STAYS.gateway_inner[0]
CROWD = 50
CROWDED = 200_000
"""Bits/s for each of many peers."""
OFFERED = 1.6
"""Share of the rate that comes."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("l") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    line = f"# stagewire: ClientEndpoint = {Topology.B4}:{PORT}"
    with WgHub(network.b, shared_directory / "l", {"stays": STAYS}, line, spares=1) as gateway:
        yield gateway


def peer(hub: WgHub, *words: str) -> str:
    return hub.gateway.command("peer", *words, "-i", hub.name).stdout


@pytest.fixture(scope="module")
def client(network: Topology, hub: WgHub) -> Iterator[Client]:
    client = Client.read(peer(hub, "add", "phone", "--rate", "2M"))
    with client.runs(network):
        until(lambda: ping(network.c, GATEWAY, timeout=1).received, 10, "the tunnel")
        yield client


def port_of(hub: WgHub, client: Client) -> int:
    """The port from which the client speaks."""
    states = hub.dump().peers.values()
    [place] = [each.endpoint for each in states if f"{client.address}/32" in each.allowed_ips and each.endpoint]
    return int(place.rpartition(":")[2])


class Transfer:
    """Sends TCP from one namespace to another as fast as it goes."""

    def __init__(self, sender: Namespace, receiver: Namespace, address: str) -> None:
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
            while self._in.recv(65536):
                pass

    def close(self) -> None:
        for each in (self._out, self._in):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def measured(network: Topology, hub: WgHub, *flows: int | str, rate: int = RATE) -> Iterator[Passing]:
    """Measures these directions of peers."""
    with measured_each(network, hub, dict.fromkeys(flows, rate)) as found:
        yield found


@contextmanager
def measured_each(network: Topology, hub: WgHub, rates: Mapping[int | str, int]) -> Iterator[Passing]:
    """Measures directions of peers, each with its rate."""
    flows = {each: Flow(rate) for each, rate in rates.items()}
    with passing(network.b, hub.name, network.link_b.a_interface, flows) as found:
        yield found


def test_udp_to_a_peer_has_its_rate(network: Topology, hub: WgHub, client: Client) -> None:
    with (
        measured(network, hub, port_of(hub, client)) as found,
        NumberedStream(network.b, network.c, client.address, rate=500, size=SIZE),
    ):
        found.hold_their_rates()
    said = hub.gateway.command("why", "phone", hub.name, "--no-try", check=False)
    assert "faster than the peer's Rate allows" in said.stdout
    assert said.returncode == 0, "a limit is no trouble"


def test_tcp_has_its_rate_both_ways_at_once(network: Topology, hub: WgHub, client: Client) -> None:
    with measured(network, hub, port_of(hub, client), client.address) as found, ExitStack() as stack:
        for sender, receiver, address in ((network.c, network.b, GATEWAY), (network.b, network.c, client.address)):
            stack.callback(Transfer(sender, receiver, address).close)
        found.hold_their_rates()


@pytest.fixture
def both_ways(network: Topology, client: Client) -> Iterator[None]:
    with ExitStack() as stack:
        for sender, receiver, address in ((network.c, network.b, GATEWAY), (network.b, network.c, client.address)):
            stack.callback(Transfer(sender, receiver, address).close)
        yield


@pytest.mark.usefixtures("both_ways")
def test_the_narrow_way_slows_neither_the_wide_one_nor_a_ping(network: Topology, hub: WgHub, client: Client) -> None:
    """Acknowledgements that waited behind a stream would halve the other stream."""
    peer(hub, "set", "phone", "--rate", "5M/1M")
    try:
        with measured_each(network, hub, {port_of(hub, client): 5_000_000, client.address: 1_000_000}) as found:
            found.hold_their_rates()
            until(lambda: round_trip(network.c) < HELD / 4, 20, "a quick answer beside full streams")
    finally:
        peer(hub, "set", "phone", "--rate", "2M")


def round_trip(namespace: Namespace) -> float:
    """How long the gateway's answer takes (s)."""
    found = re.search(r"time=([0-9.]+) ms", ping(namespace, GATEWAY).output)
    return float(found[1]) / 1000 if found else math.inf


@pytest.mark.usefixtures("both_ways")
def test_a_rate_that_changes_under_a_stream_holds_at_once(network: Topology, hub: WgHub, client: Client) -> None:
    port = port_of(hub, client)
    try:
        for rate in (4_000_000, 1_000_000):
            peer(hub, "set", "phone", "--rate", str(rate))
            with measured(network, hub, port, client.address, rate=rate) as found:
                found.hold_their_rates()
        peer(hub, "set", "phone", "--rate", "none")
        with measured(network, hub, port, client.address) as found:
            until(lambda: found.least_share() > 3, 20, "the streams to go on without a rate")
    finally:
        peer(hub, "set", "phone", "--rate", "2M")
    with measured(network, hub, port, client.address) as found:
        found.hold_their_rates()


def test_a_killed_worker_gives_at_most_one_burst(network: Topology, hub: WgHub, client: Client) -> None:
    with (
        measured(network, hub, port_of(hub, client)) as found,
        NumberedStream(network.b, network.c, client.address, rate=500, size=SIZE) as stream,
    ):
        until(lambda: stream.received > 50, 10, "the stream")
        for number in (0, 1):  # one of both is its home
            hub.gateway.kill("device", 9, number)
        had = stream.received
        until(lambda: stream.received > had + 50, 10, "the stream after the kill")
        found.hold_their_rates(bursts=2)


class Metered:
    """Watches a peer's quota: what is stored, and what has passed on the wire."""

    def __init__(self, network: Topology, hub: WgHub) -> None:
        self.link = Capture(network.b, network.link_b.a_interface, snap=SNAP)
        self._network, self._hub = network, hub
        self._state, self._month = hub.gateway.state_directory / hub.name, usage.month_of(time.time())

    @property
    def stored(self) -> int:
        return sum(each.in_month(self._month) for each in usage.read(self._state).values())

    @property
    def carried(self) -> int:
        return carried(self.link, STAYS.port)

    @contextmanager
    def stream(self, rate: int) -> Iterator[None]:
        """Sends to a peer that has just begun to work: only it knows where the gateway is."""
        a = self._network.a
        with self._hub.wireguard_go(STAYS, a, Topology.B4):
            until(lambda: ping(a, GATEWAY, timeout=1).received, 20, "the tunnel")
            with NumberedStream(self._network.b, a, STAYS.inner[0], rate=rate, size=SIZE):
                yield

    def waits_for(self, more: float, what: str) -> None:
        """Waits until so many more bytes have passed."""
        enough = self.carried + more
        self.waits(lambda: self.carried > enough, what)

    def waits(self, condition: Callable[[], bool], what: str) -> None:
        try:
            until(condition, 20, what)
        except NeverHappened as never:
            raise NeverHappened(f"{never}: {self.carried} bytes carried, {self.stored} stored") from None


def test_a_quota_holds_over_every_restart(network: Topology, hub: WgHub) -> None:
    key = STAYS.keys.public
    peer(hub, "set", key, "--quota", str(QUOTA))
    meter = Metered(network, hub)
    with meter.link:
        with meter.stream(SLOWLY):  # a busy machine needs long for these steps
            meter.waits_for(QUOTA / 100, "the stream")
            hub.gateway.kill("key", 9)
            hub.gateway.command("restart", "all", hub.name)
            for workers in ("1", "2"):
                hub.gateway.command("scale", workers, "-i", hub.name)
            meter.waits_for(QUOTA / 100, "the stream after the restarts")
        with meter.stream(STEADILY):
            for _ in range(KILLS):
                meter.waits_for(QUOTA / 20, "the stream before a kill")
                for number in (0, 1):  # one of both is its home
                    hub.gateway.kill("device", 9, number)
            meter.waits_for(QUOTA / 50, "the stream after the kills")
            hub.gateway.down()
        assert abs(meter.stored - meter.carried) <= QUOTA / 100
        hub.gateway.up()
        with meter.stream(500):
            meter.waits(lambda: meter.stored >= QUOTA, "the quota to be used up")
            assert not ping(network.a, GATEWAY, timeout=0.5).received
        assert abs(meter.carried / QUOTA - 1) <= 0.01
        assert not meter.link.dropped
    for kind in ("quota_near", "quota_reached"):
        told = ("events", hub.name, "--json", "--kind", kind)
        until(lambda told=told: key in hub.gateway.command(*told).stdout, 10, f"the event {kind}")  # type: ignore[misc]
    until(lambda: "peer has used up its quota" in "".join(hub.gateway.logs().values()), 10, "a warning in the log")
    assert re.search(rf"used 10[01]% of {values.as_quota(QUOTA)}", peer(hub, "list")), "a train may exceed it"

    def why() -> str:
        return hub.gateway.command("why", key, hub.name, "--no-try", check=False).stdout

    # A worker reports what it drops each second.
    until(lambda: "has used up its Quota" in why(), 10, "why to name the quota")
    peer(hub, "set", key, "--quota", "none")
    with meter.stream(STEADILY):
        pass


class Crowd:
    """Many peers without a kernel, which send and are sent to faster than their rates."""

    def __init__(self, network: Topology, hub: WgHub) -> None:
        self.addresses = [f"10.66.1.{100 + number}" for number in range(CROWD)]
        place = Endpoint(socket.inet_aton(Topology.B4), hub.port).pack()
        keys = [new_key_pair() for _ in self.addresses]
        self.sections = "".join(
            f"\n{Peer(key.public, [f'{address}/32']).section()}\n# stagewire: Rate = {CROWDED}\n"
            for key, address in zip(keys, self.addresses, strict=True)
        )
        ours = decode_key(hub.keys.public)
        self._fars = [FarPeer(ours, decode_key(key.private), place) for key in keys]
        self._sockets = [network.a.udp_socket(Topology.A4, buffer=4096) for _ in self._fars]
        self._inside = network.b.udp_socket(GATEWAY)
        self._to = (Topology.B4, hub.port)
        self._stop = threading.Event()

    @property
    def ports(self) -> list[int]:
        return [each.getsockname()[1] for each in self._sockets]

    def shake_hands(self) -> None:
        for far, opened in zip(self._fars, self._sockets, strict=True):
            until(lambda far=far, opened=opened: self._answered(far, opened), 10, "a response")  # type: ignore[misc]

    def _answered(self, far: FarPeer, opened: socket.socket) -> bool:
        opened.settimeout(0.5)
        opened.sendto(far.initiation(), self._to)
        with suppress(TimeoutError, BadMessage):
            while (data := opened.recv(2048))[0] != c.TYPE_RESPONSE:
                pass
            for _, datagrams in far.take(data).runs:
                for each in datagrams:
                    opened.sendto(each, self._to)
            return True
        return False

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._paced, args=(each,)) for each in (self._from_all, self._to_all)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for opened in (*self._sockets, self._inside):
            opened.close()

    def _paced(self, one_of_each: Callable[[], None]) -> None:
        pause, due = INNER * 8 / (CROWDED * OFFERED), time.monotonic()
        while not self._stop.is_set():
            one_of_each()
            due = max(due + pause, time.monotonic() - pause)
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _from_all(self) -> None:
        for far, opened, address in zip(self._fars, self._sockets, self.addresses, strict=True):
            for each in far.sealed(packet(address, GATEWAY, bytes(INNER - 20))):
                opened.sendto(each, self._to)

    def _to_all(self) -> None:
        for address in self.addresses:
            self._inside.sendto(bytes(SIZE), (address, PORT))


def test_many_limited_peers_have_their_rates_at_once(network: Topology, hub: WgHub) -> None:
    crowd = Crowd(network, hub)
    hub.gateway.write_config(hub.gateway.config_path.read_text() + crowd.sections)
    hub.gateway.command("reload", hub.name)
    crowd.shake_hands()
    with measured(network, hub, *crowd.ports, *crowd.addresses, rate=CROWDED) as found, crowd:
        found.hold_their_rates()
