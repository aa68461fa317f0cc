"""The conn-service that its tests share: a process, and the test at the other ends of its pipes."""

import socket
import struct
from collections.abc import Iterator

import pytest
import zmq
from tests.services.surroundings import CountersStandIn, KeyStandIn, Program, Surroundings, surroundings

from lab.namespaces import Namespace, add_addresses
from lab.wait import until
from stagewire.config import public_key
from stagewire.ipc import endpoints, trains
from stagewire.ipc.control import ConnSettings
from stagewire.ipc.loop import boot_time
from stagewire.proto import messages
from stagewire.proto.cookie import MacSealer

OURS = public_key(bytes(range(32)))
PORT = 51820
V4, V6 = ("127.0.0.1", "127.0.0.2"), ("fd00::1", "fd00::2")


class Conn:
    """The service, configured and listening."""

    def __init__(self, around: Surroundings) -> None:
        self.around, self.namespace = around, around.namespace
        for address in V6:
            self.namespace.run("ip", "address", "add", f"{address}/128", "dev", "lo", "nodad")
        self.key = KeyStandIn(around)
        self.counters = CountersStandIn(around)
        self.workers = [around.bind(zmq.PULL, endpoints.CIPHER_IN, number) for number in range(2)]
        self.handshakes = around.bind(zmq.PULL, endpoints.HANDSHAKE_IN)
        self.program: Program = around.start("conn-service")
        self.key.welcome(settings())
        self.out = around.connect(zmq.PUSH, endpoints.CIPHER_OUT)
        self.handshakes_out = around.connect(zmq.PUSH, endpoints.HANDSHAKE_OUT)

    def runs(self, worker: int = 0) -> list[trains.Run]:
        assert self.workers[worker].poll(5000), "no train came"
        return trains.unpack_cipher_untrusted(self.workers[worker].recv(), boot_time())

    def send(self, place: bytes, *datagrams: bytes) -> None:
        self.out.send(trains.pack_cipher([(place, list(datagrams))], boot_time()))


def settings(port: int = PORT, workers: int = 2, fwmark: int = 0) -> ConnSettings:
    return ConnSettings(OURS, port, fwmark, workers, stamped=False)


def transport(worker: int = 0, counter: int = 0, size: int = 32) -> bytes:
    return struct.pack("<IIQ", 4, 0xABCDEF00 | worker, counter).ljust(size, b"\7")


def initiation() -> bytes:
    return MacSealer(OURS).seal(messages.pack_initiation(7, bytes(32), bytes(48), bytes(28)), 1.0)


@pytest.fixture(scope="module")
def conn() -> Iterator[Conn]:
    with surroundings("conn") as around:
        yield Conn(around)


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
