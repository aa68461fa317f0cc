"""key-service and two workers as processes: a peer moves from one to the other, and its session goes with it."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest
from tests.far_peer import packet
from tests.services.house import EVER, OURS, PLACE, THEIRS, House, stamp
from tests.services.surroundings import PATIENCE, Program, Surroundings, surroundings

from key_service.homes import home_of
from lab.wait import until
from stagewire.control import messages, query
from stagewire.control.confirm import Confirm, Confirmed
from stagewire.control.questions import Scale, Scaled
from stagewire.control.status import GatewayStatus, WorkersStatus
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CIPHER_IN, CONTROL, PLAIN_OUT
from stagewire.process import worker_count
from stagewire.proto import constants as c
from stagewire.proto.events import InstallSession, SendHandshake
from stagewire.proto.index import worker_of_datagram

Told = TypeVar("Told")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs services as users of their own")


class TwoRooms(House):
    """A house whose peer belongs into worker 1 as soon as there are two."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around, lambda key: home_of(key, 2) == 1)
        self.rooms: dict[int, Program] = {0: self.device}
        self.pipes = {0: self.cipher_in}
        self.plain_outs = {0: self.plain_out}

    def send(self, datagrams: Sequence[bytes]) -> None:
        """From the network to the worker whose session it is, as conn-service does."""
        for datagram in datagrams:
            self.pipes[worker_of_datagram(datagram)].send(trains.pack_cipher([(PLACE, [datagram])], stamp()))

    def open(self) -> None:
        """Worker 1 comes to life."""
        self.rooms[1] = self.around.start("device-service", "--number", "1")
        self.pipes[1] = self.around.connect(CIPHER_IN, 1)
        self.plain_outs[1] = self.around.connect(PLAIN_OUT, 1)

    def scale(self, workers: int) -> Scaled:
        """As the command line does."""
        line = self.around.connect(CONTROL)
        line.send(messages.FROM_STAGE.pack(Scale(workers)))
        assert line.poll(PATIENCE * 1000)
        answer = messages.FROM_KEY.unpack_untrusted(line.recv())
        assert isinstance(answer, Scaled)
        return answer

    def status(self) -> GatewayStatus:
        answer = until(lambda: query.key_service(self.environment), PATIENCE, "key-service's answer")
        assert answer is not None
        return answer

    def worker(self) -> int:
        """Where the peer's new sessions go."""
        return self.status().peers[0].worker

    def wait_until(self, wanted: int, up: list[int]) -> None:
        workers = WorkersStatus(wanted, tuple(up), 0)
        until(lambda: self.status().workers == workers, PATIENCE, f"{workers}, {self.key.log}")

    def theirs(self) -> bytes:
        """The next initiation of key-service's."""

        def initiation() -> bytes:
            if not self.handshakes.poll(20):
                return b""
            message = trains.unpack_handshake_untrusted(self.handshakes.recv(), EVER)[1]
            return message if message[0] == c.TYPE_INITIATION else b""

        return until(initiation, PATIENCE, "an initiation")

    def respond(self, initiation: bytes) -> None:
        """The far peer answers, and has both sessions as soon as the first packet, an empty one, confirms the new one."""
        handshaker = self.far.handshaker
        for effect in handshaker.receive_untrusted(initiation, PLACE, boot_time(), time.time_ns()):
            if isinstance(effect, InstallSession):
                self.far._install(effect)
                for sent in handshaker.installed(effect.index, boot_time()):
                    assert isinstance(sent, SendHandshake)
                    self.say(sent.data)
        until(lambda: self.cipher.poll(20) and self.empty_packets(), PATIENCE, "a packet under the new session")

    def empty_packets(self) -> bool:
        """The far peer gets a train, which has none but these; tells whether it has any."""
        runs = self.datagrams()
        for datagrams in runs:
            assert self.far.opened(datagrams) == []
        return bool(runs)

    def to_us(self) -> None:
        """A packet from the far peer arrives, by whatever session it sends with."""
        body = os.urandom(16)
        assert self.inbound(packet(THEIRS, OURS, body)) == [packet(THEIRS, OURS, body)]

    def to_them(self, worker: int) -> None:
        """A packet that tun-service gives this worker arrives."""
        self.plain_out = self.plain_outs[worker]
        while self.cipher.poll(0):
            self.empty_packets()
        body = os.urandom(16)
        assert self.outbound(packet(OURS, THEIRS, body)) == [packet(OURS, THEIRS, body)]


@pytest.fixture
def rooms() -> Iterator[TwoRooms]:
    with surroundings("rooms") as around:
        made = TwoRooms(around)
        made.shake_hands()
        made.works()
        made.open()
        yield made


def moved(rooms: TwoRooms) -> None:
    """From worker 0 to worker 1, and all that must be so meanwhile."""
    assert rooms.scale(2) == Scaled("", 1)
    initiation = rooms.theirs()
    assert initiation[4] == 1
    assert rooms.status().workers == WorkersStatus(2, (0, 1), 1)
    rooms.to_them(0)  # nothing has changed for anybody yet
    rooms.to_us()
    old = rooms.far.sealed(packet(THEIRS, OURS, b"under way"))
    rooms.respond(initiation)
    rooms.to_them(1)
    rooms.send(old)  # what was on its way is still taken
    assert rooms.received() == [packet(THEIRS, OURS, b"under way")]
    rooms.to_us()
    rooms.wait_until(2, [0, 1])
    assert rooms.worker() == 1
    rooms.to_them(1)
    rooms.to_us()


def test_a_worker_gets_a_peer_only_once_tun_service_takes_the_peers_packets_from_it(rooms: TwoRooms) -> None:
    tun = rooms.around.connect_as(CONTROL, "tun")
    tun.send(messages.FROM_STAGE.pack(messages.Hello("tun", 0, 7, os.getpid())))

    def told(kind: type[Told]) -> Told:
        while tun.poll(PATIENCE * 1000):
            if isinstance(message := messages.FROM_KEY.unpack_untrusted(tun.recv()), kind):
                return message
        raise AssertionError(kind)

    told(messages.SnapshotEnd)
    rooms.scale(2)
    assert told(messages.RoutesSet).also == (1,)
    applied = told(Confirm)
    assert not rooms.handshakes.poll(300), "the move has begun"
    tun.send(messages.FROM_STAGE.pack(Confirmed(applied.number)))
    assert rooms.theirs()[4] == 1


def test_a_peer_moves_with_its_session_and_back_and_who_is_left_goes(rooms: TwoRooms) -> None:
    moved(rooms)
    before = rooms.status().peers[0]
    assert before.tx_bytes > 6 * 64
    assert before.rx_bytes > 6 * 64
    rooms.scale(1)
    rooms.respond(rooms.theirs())
    rooms.to_them(0)
    rooms.wait_until(1, [0])
    assert rooms.rooms[1].process.wait(PATIENCE) == 0
    assert "ends, as fewer workers are wanted" in rooms.rooms[1].log
    rooms.to_us()
    after = rooms.status().peers[0]
    assert after.tx_bytes > before.tx_bytes
    assert after.rx_bytes > before.rx_bytes


def test_a_key_service_waits_for_no_worker_that_went_long_ago(rooms: TwoRooms) -> None:
    """Each kill within a minute of `scale` once cost handshakes a second."""
    moved(rooms)
    rooms.scale(1)
    rooms.respond(rooms.theirs())
    rooms.wait_until(1, [0])
    where = rooms.environment.run, rooms.environment.workers
    until(lambda: worker_count.earlier(*where) == (), PATIENCE, "the former number to be forgotten")
    rooms.key.kill()
    rooms.key = rooms.around.start("key-service")
    rooms.wait_for_worker()
    rooms.to_us()


def test_the_count_of_bytes_is_that_of_both_workers(rooms: TwoRooms) -> None:
    def counts() -> tuple[int, int]:
        peer = rooms.status().peers[0]
        return peer.tx_bytes, peer.rx_bytes

    # Our initiation, three empty packets, three others; the response, four packets, one of them shorter.
    first = (92 + 80, 148 + 32 + 80)
    until(lambda: counts() == first, PATIENCE, "the first report")
    moved(rooms)
    until(
        lambda: counts() == (first[0] + 148 + 3 * 32 + 3 * 80, first[1] + 92 + 3 * 80 + 64),
        PATIENCE,
        f"{first}, {counts()}",
    )


def test_a_new_worker_that_dies_in_the_middle_costs_the_peer_nothing(rooms: TwoRooms) -> None:
    rooms.scale(2)
    initiation = rooms.theirs()
    rooms.rooms[1].kill()
    until(lambda: rooms.status().workers.up == (0,), PATIENCE, "its end to be known")
    assert rooms.worker() == 0
    rooms.to_them(0)
    rooms.to_us()
    rooms.open()
    again = rooms.theirs()
    assert again[4] == 1
    assert again != initiation
    rooms.respond(again)
    rooms.wait_until(2, [0, 1])
    rooms.to_them(1)


def test_an_old_worker_that_dies_in_the_middle_hastens_the_move(rooms: TwoRooms) -> None:
    rooms.scale(2)
    initiation = rooms.theirs()
    rooms.rooms[0].kill()
    rooms.wait_until(2, [1])
    rooms.respond(initiation)
    rooms.to_them(1)
    rooms.to_us()


@pytest.mark.parametrize("late", [0, 1])
def test_a_key_service_that_dies_in_the_middle_leaves_the_peer_where_its_session_is(rooms: TwoRooms, late: int) -> None:
    rooms.scale(2)
    rooms.theirs()
    rooms.key.kill()
    rooms.to_them(0)
    before = len(rooms.key.log)
    with rooms.rooms[late].paused():
        rooms.key = rooms.around.start("key-service")
        until(lambda: f"number={1 - late}" in rooms.key.log[before:], PATIENCE, "the hello of the other worker")
    rooms.wait_for_worker()
    initiation = rooms.theirs()
    assert rooms.status().workers.wanted == 2
    assert initiation[4] == 1
    rooms.to_them(0)
    rooms.to_us()
    rooms.respond(initiation)
    rooms.wait_until(2, [0, 1])
    rooms.to_them(1)
    rooms.to_us()


def test_a_number_out_of_bounds_changes_nothing(rooms: TwoRooms) -> None:
    for workers in (0, -1, 65):
        assert "1 to 64" in rooms.scale(workers).error
    assert rooms.status().workers.wanted == 1
