"""The conn-service that its tests share: a process, and the test at the other ends of its pipes."""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from threading import Thread

import pytest
from tests.services.surroundings import CountersStandIn, KeyStandIn, Program, Surroundings, surroundings

from host_service import udp
from lab.namespaces import Namespace, add_addresses
from lab.wait import until
from stagewire.config import public_key
from stagewire.control.messages import ConnSettings
from stagewire.control.socket_door import Door
from stagewire.loop import Loop, boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CIPHER_IN, CIPHER_OUT, HANDSHAKE_IN, HANDSHAKE_OUT, SOCKETS
from stagewire.proto import messages
from stagewire.proto.cookie import MacSealer
from stagewire.proto.endpoint import Endpoint

OURS = public_key(bytes(range(32)))
PORT = 51820
V4, V6 = ("127.0.0.1", "127.0.0.2"), ("fd00::1", "fd00::2")


class HostStandIn:
    """host-service's place at the socket door, served by a thread."""

    def __init__(self, around: Surroundings, port: int | None = PORT) -> None:
        """Without a port, it takes the sockets that it is offered."""
        self._namespace = around.namespace
        self._loop = Loop()
        self.pair: udp.Pair | None = None
        before = os.umask(0)
        try:
            self._door = Door(
                self._loop, around.pipes.path(SOCKETS), self._on_offer, self._on_ask, around.pipes.admission(SOCKETS, 8)
            )
        finally:
            os.umask(before)
        self._stopped = False
        if port is not None:
            self.open(port)
        self._thread = Thread(target=self._turn, daemon=True)
        self._thread.start()

    def open(self, port: int) -> None:
        """Hands the sockets of a port over, in place of those before."""
        standing, self.pair = self.pair, self._namespace.call(lambda: udp.Pair.open(port, 0))
        self._door.give(self.pair.descriptors)
        if standing is not None:
            standing.close()

    def close(self) -> None:
        """As the death of host-service does."""
        self._stopped = True
        self._thread.join()
        self._door.close()
        if self.pair is not None:
            self.pair.close()

    def _on_offer(self, descriptors: dict[str, int], _now: float) -> None:
        offered = udp.Pair.adopt(descriptors)
        if self.pair is None and offered is not None:
            self.pair = offered
            self._door.give(offered.descriptors)
        elif offered is not None:
            offered.close()

    def _on_ask(self, kinds: Iterable[str]) -> dict[str, socket.socket]:
        return self._namespace.call(lambda: udp.fresh(kinds, 0))

    def _turn(self) -> None:
        while not self._stopped:
            with suppress(OSError):
                self._loop._turn()


class Conn:
    """The service, configured and listening."""

    def __init__(self, around: Surroundings) -> None:
        self.around, self.namespace = around, around.namespace
        for address in V6:
            self.namespace.run("ip", "address", "add", f"{address}/128", "dev", "lo", "nodad")
        self.key = KeyStandIn(around)
        self.counters = CountersStandIn(around)
        self.workers = [around.bind(CIPHER_IN, number) for number in range(2)]
        self.handshakes = around.bind(HANDSHAKE_IN)
        self.host = HostStandIn(around)
        self.program: Program = around.start("conn-service")
        self.key.welcome(settings())
        self.out = around.connect(CIPHER_OUT)
        self.handshakes_out = around.connect(HANDSHAKE_OUT)

    def runs(self, worker: int = 0) -> list[trains.Run]:
        assert self.workers[worker].poll(5000), "no train came"
        return trains.unpack_cipher_untrusted(self.workers[worker].recv(), boot_time())

    def send(self, place: bytes, *datagrams: bytes) -> None:
        self.out.send(trains.pack_cipher([(place, list(datagrams))], boot_time()))


def settings(workers: int = 2) -> ConnSettings:
    return ConnSettings(OURS, workers, stamped=False)


def transport(worker: int = 0, counter: int = 0, size: int = 32) -> bytes:
    return struct.pack("<IIQ", 4, 0xABCDEF00 | worker, counter).ljust(size, b"\7")


def initiation() -> bytes:
    """Another one each time."""
    return MacSealer(OURS).seal(messages.pack_initiation(7, os.urandom(32), bytes(48), bytes(28)), 1.0)


@pytest.fixture(scope="module")
def conn() -> Iterator[Conn]:
    with surroundings("conn") as around:
        made = Conn(around)
        yield made
        made.host.close()


def client(namespace: Namespace, address: str) -> socket.socket:
    made = namespace.udp_socket(address)
    made.settimeout(5)
    return made


class Links:
    """Two links between the service's namespace and another, each with both families on it."""

    NAMES = ("first", "second")

    def __init__(self, ours: Namespace, theirs: Namespace) -> None:
        self.ours, self.theirs = ours, theirs
        for number, name in enumerate(self.NAMES):
            ours.run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", theirs.name)
            for side, end in ((ours, 1), (theirs, 2)):
                for key in ("rp_filter", "arp_ignore"):  # each link answers for its own addresses alone
                    side.sysctl(f"net.ipv4.conf.{name}.{key}", 0 if key == "rp_filter" else 1)
                add_addresses(side, name, [f"192.0.{number}.{end}/24", f"2001:db8:{number}::{end}/64"])
        for side in (theirs, ours):
            for name in self.NAMES:
                side.run("ip", "link", "set", name, "up")
        until(self._up, 5, "both links to be up")

    def _up(self) -> bool:
        return all(self.ours.run("ip", "-o", "link", "show", n).stdout.count("state UP") for n in self.NAMES)

    def route(self, action: str, destination: str, number: int, metric: int = 10) -> None:
        via = f"2001:db8:{number}::2" if ":" in destination else f"192.0.{number}.2"
        self.ours.run("ip", "route", action, destination, "via", via, "metric", str(metric))


@pytest.fixture
def links(conn: Conn) -> Iterator[Links]:
    conn.namespace.sysctl("net.ipv4.conf.all.rp_filter", 0)
    with Namespace("far") as far:
        far.sysctl("net.ipv4.conf.all.rp_filter", 0)
        try:
            yield Links(conn.namespace, far)
        finally:  # at once; with their namespace, they would go some time later
            for name in Links.NAMES:
                conn.namespace.run("ip", "link", "delete", name, check=False)


def far_client(links: Links, conn: Conn, address: str, contacts: str) -> tuple[socket.socket, bytes]:
    """Somebody at `address` who has just sent to one of ours, and where the service says that it is."""
    add_addresses(links.theirs, "lo", [f"{address}/{128 if ':' in address else 32}"])
    links.route("add", address, 0)
    peer = client(links.theirs, address)
    peer.sendto(transport(), (contacts, PORT))
    ((place, _),) = conn.runs()
    return peer, place


class NoWays:
    """Finds no interface to any endpoint, and so bounds no datagram."""

    def interface(self, _endpoint: Endpoint, _mark: int, _port: int) -> int | None:
        return None

    def room(self, interface: int, limit: int, *, cut: bool) -> int | None:  # noqa: ARG002
        return None
