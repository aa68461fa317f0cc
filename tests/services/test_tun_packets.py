"""What one visit to the device takes, with a socket of packets in its place."""

import socket
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import cast

import pytest
from tests.services.house import OURS, THEIRS, packet

from stagewire.ipc.outlet import Outlet
from stagewire.ipc.trains import REST
from stagewire.proto.allowed_ips import AllowedIps
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
    packets = Packets(device[0].fileno(), [cast("Outlet", worker)], owners, Counter(), lambda _: None, lambda _: None)
    for number in range(len(taken)):
        for _ in range(5):
            device[1].send(packet(OURS, THEIRS))
        packets.on_tun(1000 + number * turn)
    assert worker.trains == taken
