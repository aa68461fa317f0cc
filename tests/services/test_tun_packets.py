"""What one visit to the device takes, with a socket of packets in its place."""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import cast

import pytest
from tests.far_peer import packet
from tests.services.house import OURS, THEIRS

from stagewire.loop import Loop
from stagewire.pipe.names import PLAIN_OUT
from stagewire.pipe.pipes import Pipes
from stagewire.pipe.send_queue import SendQueue
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import PlainBuilder
from stagewire.pipe.trains import REST
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.reasons import Reasons, shown
from tun_service.packets import Packets


class Worker:
    """Takes everything."""

    def __init__(self) -> None:
        self.trains: list[int] = []

    def offer(self, _frame: memoryview, weight: int, _now: float) -> None:
        self.trains.append(weight)


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.mark.parametrize(
    ("turn", "taken"),
    [(REST / 2, [1, 9, 5, 5, 5, 5]), (REST * 1.5, [1, 9, 1, 9, 1, 9])],
    ids=["quick turns", "slow turns"],
)
def test_the_first_packet_after_a_rest_goes_on_alone(
    device: tuple[socket.socket, socket.socket], turn: float, taken: list[int]
) -> None:
    """But not the first of every turn, however long turns are: others would wait for ever."""
    worker, owners = Worker(), AllowedIps[int]()
    owners.insert(IPv4Network("0.0.0.0/0"), 0)
    workers = ToWorkers(Loop(), cast("Pipes", None), PLAIN_OUT, PlainBuilder, Reasons())
    workers._queues.append(cast("SendQueue", worker))
    packets = Packets(device[0].fileno(), workers, owners, Reasons(), lambda _: None, lambda _: None)
    for number in range(len(taken)):
        for _ in range(5):
            device[1].send(packet(OURS, THEIRS))
        packets.on_tun(1000 + number * turn)
    assert worker.trains == taken


def test_what_every_host_sends_to_many_is_no_fault_and_other_packets_tell_where_they_went(
    device: tuple[socket.socket, socket.socket],
) -> None:
    workers = ToWorkers(Loop(), cast("Pipes", None), PLAIN_OUT, PlainBuilder, Reasons())
    workers._queues.append(cast("SendQueue", Worker()))
    counters = Reasons()
    packets = Packets(device[0].fileno(), workers, AllowedIps[int](), counters, lambda _: None, lambda _: None)
    for destination in ("224.0.0.22", "255.255.255.255", THEIRS):
        device[1].send(packet(OURS, destination))
    for step in range(3):
        packets.on_tun(1000.0 + step)
    assert (counters["for_many_unrouted"], counters["no_peer"]) == (2, 1)
    [incident] = counters.take_changed()
    assert (incident.reason, shown(incident.place), incident.size) == ("no_peer", THEIRS, len(packet(OURS, THEIRS)))
