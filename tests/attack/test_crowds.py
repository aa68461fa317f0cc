"""Attacks that need many peers, many datagrams or minutes: on a real gateway, so `make attack` alone runs them."""

import base64
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.attack.crowd import TRIES
from tests.attack.floods import MOST, Datagrams
from tests.attack.marks import Figure
from tests.bench import loads
from tests.bench.contestants import short_directory, stagewire_end
from tests.bench.handshake_load import SOURCES, private_key, write_pool
from tests.far_peer import packet
from tests.services.house import OURS, THEIRS, House
from tests.services.surroundings import surroundings

from lab.capture import Capture
from lab.hub import Hub, Spoke, configuration
from lab.namespaces import Namespace, Topology, veth
from lab.stagewire import Gateway
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto import constants as c

pytestmark = [pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(800)]

CROWD = 10_000
ALL_WITHIN = 30.0
GATEWAY, PEERS = "192.0.2.1", "192.0.2.2"
PORT = 51820
INNER = ("10.9.0.1", "10.9.0.2")
MILLION = 1_000_000
RATE = 20_000.0
CAPTURED = 50_000
"""Datagrams that are replayed again and again."""


# --- many peers --------------------------------------------------------------------------------------------


@contextmanager
def wire() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace("crowdn") as near, Namespace("crowdf") as far:
        veth(near, far, [f"{GATEWAY}/24"], [f"{PEERS}/24"])
        yield near, far


@pytest.mark.attack("F7")
def test_ten_thousand_peers_initiate_within_a_second(figure: Figure, luck: random.Random) -> None:
    seed = luck.randbytes(32)
    key = X25519PrivateKey.from_private_bytes(luck.randbytes(32))
    target = key.public_key().public_bytes_raw()
    keys = KeyPair(*(base64.b64encode(each).decode() for each in (key.private_bytes_raw(), target)))
    publics = (
        X25519PrivateKey.from_private_bytes(private_key(seed, number)).public_key().public_bytes_raw()
        for number in range(CROWD)
    )
    peers = [
        Peer(base64.b64encode(public).decode(), [f"10.200.{number >> 8}.{number & 255}/32"])
        for number, public in enumerate(publics)
    ]
    text = configuration(keys, PORT, [f"{INNER[0]}/24"], peers)
    with short_directory() as directory, wire() as (near, far):
        far.run("ip", "route", "add", "local", f"{SOURCES}/16", "dev", "lo")
        near.run("ip", "route", "add", f"{SOURCES}/16", "via", PEERS)
        pool = directory / "initiations"
        write_pool(pool, target, seed, CROWD, CROWD * TRIES)
        with stagewire_end(near, directory / "gateway", text) as gateway:
            until(lambda: gateway.status()["ready"], 60, "the gateway to be ready")
            how = (pool, target.hex(), GATEWAY, PORT, CROWD, 2 * ALL_WITHIN)
            said = json.loads(loads.run(far, "tests.attack.crowd", *how, seconds=2 * ALL_WITHIN))
            until(lambda: gateway.status()["ready"], 10, "the gateway to be ready still")
    figure("peers with a session", said["answered"], least=CROWD)
    figure("initiations sent", said["sent"])
    figure("cookies", said["cookies"])
    figure("last session", said["last"], "s", most=ALL_WITHIN)


# --- many datagrams ----------------------------------------------------------------------------------------

SPOKE = Spoke(1, Topology.A4)


class Watched:
    """A gateway with an honest peer, all of whose datagrams are captured, and an attacker at the peer's machine."""

    def __init__(self, network: Topology, hub: Hub, capture: Capture) -> None:
        self.network, self.hub, self._capture = network, hub, capture
        self.attacker = network.a.udp_socket(Topology.A4)
        self.attacker.connect((Topology.B4, hub.port))
        self.place = self.attacker.getsockname()

    @property
    def gateway(self) -> Gateway:
        return self.hub.gateway

    def captured(self) -> list[bytes]:
        """Returns what the peer has sent."""
        to = (Topology.B4, self.hub.port)
        return [each.payload for each in self._capture.datagrams(self.hub.port) if each.destination == to]

    def send(self, datagrams: list[bytes], count: int) -> None:
        """Sends so many from the attacker's own port, again and again, at RATE."""
        ready = Datagrams(datagrams, (Topology.B4, self.hub.port))
        begun, sent = time.monotonic(), 0
        while sent < count:
            owed = min(count, int((time.monotonic() - begun) * RATE)) - sent
            if owed > MOST:
                begun += (owed - MOST) / RATE  # it got no processor: skip
            sent += ready.send(self.attacker, min(owed, MOST)) if owed > 0 else 0
            time.sleep(0.001)

    def answers(self) -> list[bytes]:
        """Returns what has left for the attacker."""
        self.attacker.setblocking(False)
        found = []
        while True:
            try:
                found.append(self.attacker.recv(2000))
            except (BlockingIOError, ConnectionRefusedError):
                return found

    def works(self) -> bool:
        return ping(self.network.a, SPOKE.gateway_inner[0], timeout=1).received == 1

    def endpoint(self) -> str:
        return str(self.hub.peer(SPOKE)["endpoint"])

    def resident(self) -> int:
        """Returns the bytes in memory of all processes."""
        sizes = (Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self.gateway.held().values())
        return sum(map(int, sizes)) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def watched() -> Iterator[Watched]:
    with (
        short_directory() as directory,
        Topology("crowd") as network,
        Capture(network.a, network.link_a.a_interface, snap=2000) as capture,
    ):
        hub = Hub(network.b, directory, {"honest": SPOKE})
        hub.gateway = Gateway(network.b, hub.name, directory, hub.config, workers=2, spares=1)
        with hub, hub.wireguard_go(SPOKE, network.a, Topology.B4):
            made = Watched(network, hub, capture)
            until(made.works, 20, "the tunnel")
            yield made
            made.attacker.close()


def mutated(luck: random.Random, captured: list[bytes], count: int) -> Iterator[bytes]:
    """Yields captured datagrams with bits flipped, cut, extended, joined, of another type, or of chance alone."""
    for number in range(count):
        data = bytearray(luck.choice(captured))
        match number % 6:
            case 0:
                for _ in range(luck.randrange(1, 9)):
                    data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
            case 1:
                del data[luck.randrange(len(data)) :]
            case 2:
                data += luck.randbytes(luck.randrange(1, 200))
            case 3:
                other = luck.choice(captured)
                data[luck.randrange(len(data)) :] = other[luck.randrange(len(other)) :]
            case 4:
                data[:4] = bytes([luck.randrange(7), *luck.choices((0, 0, 0, 255), k=3)])
            case _:
                data = bytearray(luck.randbytes(luck.randrange(1400)))
        yield bytes(data[:1472])


@pytest.mark.attack("M25")
def test_a_million_mutated_datagrams_on_the_wire(watched: Watched, luck: random.Random, figure: Figure) -> None:
    assert ping(watched.network.a, SPOKE.gateway_inner[0], count=20, size=500).received == 20
    before, endpoint, memory = watched.gateway.held(), watched.endpoint(), watched.resident()
    made = list(mutated(luck, watched.captured(), 1 << 16))
    with NumberedStream(watched.network.a, watched.network.b, SPOKE.gateway_inner[0], 500) as stream:
        watched.send(made, MILLION)
        report = stream.finish()
    answers = watched.answers()
    figure("answers that are no cookie", sum(each[:4] != b"\3\0\0\0" for each in answers), most=0)
    figure("cookies", len(answers))
    figure("lost of the honest stream", report.lost / report.sent, "of 1", most=0.01)
    assert report.duplicates == report.foreign == 0
    figure("more memory", (watched.resident() - memory) / 2**20, "MiB", most=16)
    assert watched.gateway.held() == before
    assert watched.endpoint() == endpoint
    assert watched.works()
    for name, text in watched.gateway.logs().items():
        assert "Traceback" not in text, name


def kill(stage: str) -> Callable[[Watched], None]:
    def done(watched: Watched) -> None:
        pid = watched.gateway.kill(stage, signal.SIGKILL)
        until(lambda: watched.gateway.held().get((stage, 0), pid) != pid, 20, f"another {stage}-service")
        until(watched.works, 20, "the tunnel")

    return done


def rekey(watched: Watched) -> None:
    """The gateway's worker dies, whatever its number: its peers get new sessions."""
    number = watched.hub.peer(SPOKE)["worker"]
    pid = watched.gateway.kill("device", signal.SIGKILL, number)
    until(lambda: watched.gateway.held().get(("device", number), pid) != pid, 20, "another worker")
    until(watched.works, 20, "the tunnel")


@pytest.mark.attack("A5")
def test_a_million_replays_at_once_and_after_deaths_deliver_nothing(watched: Watched, figure: Figure) -> None:
    place = watched.endpoint()
    with NumberedStream(watched.network.a, watched.network.b, SPOKE.gateway_inner[0], 4000) as stream:
        until(lambda: stream.sent >= CAPTURED, 60, "datagrams to replay")
        captured = [each for each in watched.captured() if each[:4] == b"\4\0\0\0"][-CAPTURED:]
        moments: list[Callable[[Watched], None]] = [lambda _: None, rekey, kill("tun"), kill("conn"), kill("key")]
        for moment in moments:
            moment(watched)
            watched.send(captured, MILLION // len(moments))
        report = stream.finish()
    figure("replayed", MILLION)
    figure("delivered twice", report.duplicates, most=0)
    assert report.foreign == 0
    assert watched.answers() == []
    assert watched.endpoint() == place
    assert watched.works()


# --- minutes -----------------------------------------------------------------------------------------------


@pytest.mark.attack("A6")
def test_a_peer_that_goes_on_with_a_session_of_180_s(figure: Figure) -> None:
    """Its clock stands, so it never rekeys. key-service and the worker are real, and so are the minutes."""
    with surroundings("a6") as around:
        house = House(around)
        house.shake_hands()
        begun, frozen, numbers = time.monotonic(), boot_time(), itertools.count()

        def delivered() -> bool:
            body = packet(THEIRS, OURS, next(numbers).to_bytes(8))
            for _, datagrams in house.far.worker.outbound([body], frozen).runs:
                house.send(datagrams)
            return bool(house.plain.poll(1000)) and house.received() == [body]

        def until_it_is(age: float) -> None:
            until(lambda: time.monotonic() >= begun + age, 2 * c.REJECT_AFTER_TIME, f"the session to be {age:g} s old")

        assert delivered()
        until_it_is(c.REJECT_AFTER_TIME - 10)
        assert delivered(), "a session of 170 s still serves"
        until_it_is(c.REJECT_AFTER_TIME + 1)
        figure("age of the session", time.monotonic() - begun, "s", least=c.REJECT_AFTER_TIME)
        assert not delivered()
        for pipe in (house.cipher, house.handshakes):
            while pipe.poll(0):
                pipe.recv()
        house.plain_out.send(trains.pack_plain([packet(OURS, THEIRS)], boot_time()))
        assert house.handshakes.poll(5000), "the worker wants another session"
        message = trains.unpack_handshake_untrusted(house.handshakes.recv(), boot_time())[1]
        assert message[0] == c.TYPE_INITIATION
        assert not house.cipher.poll(500), "nothing leaves under the old one"
