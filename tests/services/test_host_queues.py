"""The kernel sorts an interface's datagrams: handshakes have queues of their own."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_service.udp import Pair
from lab.namespaces import Namespace
from stagewire.control.socket_door import HANDSHAKE_QUEUES, TUNNEL, UDP4, UDP4_QUEUES, UDP6, UDP6_QUEUES
from stagewire.process import handed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")

PORT = 51820
FAMILIES = [("127.0.0.1", UDP4, UDP4_QUEUES), ("::1", UDP6, UDP6_QUEUES)]
SO_REUSEPORT = 15
PROVEN = HANDSHAKE_QUEUES - 1


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    with Namespace("queues") as made:
        yield made


@pytest.fixture
def pair(space: Namespace) -> Iterator[Pair]:
    made = space.call(lambda: Pair.open(PORT, 0))
    yield made
    made.close()


def found(pair: Pair, name: str) -> list[bytes]:
    opened = {UDP4: pair.four, UDP6: pair.six, **pair.queues}[name]
    assert opened is not None
    read = []
    while True:
        try:
            read.append(opened.recv(2048))
        except BlockingIOError:
            return read


def where(pair: Pair, names: tuple[str, ...]) -> dict[str, int]:
    return {name: len(read) for name in names if (read := found(pair, name))}


@pytest.mark.parametrize(("address", "first", "queues"), FAMILIES)
def test_transport_messages_have_the_first_socket_to_themselves(
    pair: Pair, space: Namespace, address: str, first: str, queues: tuple[str, ...]
) -> None:
    transport = [b"\4\0\0\0" + bytes(size) for size in (28, 1000)]
    others = [b"", b"\4", b"\4\0\0\0", b"\4\0\0\0" + bytes(27), b"\4\1\0\0" + bytes(60), bytes(148)]
    with space.udp_socket(address) as source:
        for datagram in (*transport, *others):
            source.sendto(datagram, (address, PORT))
    assert found(pair, first) == transport
    (count,) = where(pair, queues[:PROVEN]).values()
    assert count == len(others)  # all from one source
    assert found(pair, queues[PROVEN]) == []


@pytest.mark.parametrize(("address", "first", "queues"), FAMILIES)
def test_what_may_be_proven_or_awaited_waits_apart(
    pair: Pair, space: Namespace, address: str, first: str, queues: tuple[str, ...]
) -> None:
    initiation = b"\1\0\0\0" + bytes(144)
    proven = [initiation[:at] + b"\1" + initiation[at + 1 :] for at in (132, 139, 147)]
    apart = [*proven, b"\2\0\0\0" + bytes(88), b"\3\0\0\0" + bytes(60)]
    with space.udp_socket(address) as source:
        for datagram in (*apart, initiation, initiation[:131] + b"\1" + bytes(16), initiation[:-1]):
            source.sendto(datagram, (address, PORT))
    assert found(pair, queues[PROVEN]) == apart
    assert list(where(pair, queues).values()) == [3]
    assert found(pair, first) == []


@pytest.mark.parametrize(("address", "first", "queues"), FAMILIES)
def test_sources_are_spread(pair: Pair, space: Namespace, address: str, first: str, queues: tuple[str, ...]) -> None:
    for _ in range(200):
        with space.udp_socket(address) as source:
            source.sendto(b"\1\0\0\0" + bytes(144), (address, PORT))
    spread = where(pair, queues)
    assert sum(spread.values()) == 200
    assert set(spread) == set(queues[:PROVEN])


def test_a_full_queue_leaves_the_others_alone(pair: Pair, space: Namespace) -> None:
    with space.udp_socket("127.0.0.1") as source:
        for _ in range(20_000):
            source.sendto(b"\1\0\0\0" + bytes(144), ("127.0.0.1", PORT))
        for datagram in (b"\4\0\0\0" + bytes(28), b"\3\0\0\0" + bytes(60)):
            source.sendto(datagram, ("127.0.0.1", PORT))
    assert len(found(pair, UDP4)) == 1
    (full, proven) = where(pair, UDP4_QUEUES).values()
    assert (full < 20_000, proven) == (True, 1)


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_is_taken_is_still_refused(pair: Pair, space: Namespace, address: str, shares: bool) -> None:
    """To a second gateway of ours, and to others, also if they would share it."""
    with pytest.raises(OSError, match="in use") as refused:
        space.call(lambda: Pair.open(PORT, 0))
    assert refused.value.errno == errno.EADDRINUSE

    def take() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        os.seteuid(65534 if shares else 0)
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, int(shares))
                stranger.bind((address, PORT))
        finally:
            os.seteuid(0)

    with pytest.raises(OSError, match="in use"):
        space.call(take)


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_port_that_another_program_shares_is_not_joined(space: Namespace, address: str) -> None:
    with space.udp_socket(address) as other:
        other.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            space.call(lambda: Pair.open(other.getsockname()[1], 0))


def test_a_pair_is_adopted_with_all_its_queues_or_none(pair: Pair) -> None:
    copies = {name: os.dup(descriptor) for name, descriptor in pair.descriptors.items()}
    adopted = Pair.adopt(copies)
    assert adopted is not None
    assert adopted.descriptors.keys() == pair.descriptors.keys()
    adopted.set_mark(7)
    assert {each.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for each in pair.queues.values()} == {7}
    adopted.close()
    some = {name: os.dup(pair.descriptors[name]) for name in (UDP4, UDP6, *UDP4_QUEUES)}
    assert Pair.adopt(some) is None


def test_a_spare_takes_all_of_them_over(pair: Pair, tmp_path: Path) -> None:
    for name, descriptor in pair.descriptors.items():
        assert handed.is_sound(name, descriptor, tmp_path, os.getuid())
    assert set(pair.descriptors) == set(TUNNEL)
