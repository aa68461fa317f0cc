"""host-service as a process: the UDP sockets it opens, keeps and hands over, and those for look-ups."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from tests.services.surroundings import KeyStandIn, Program, Surroundings, surroundings
from tests.turning import turn_until

from host_service.sockets import CLOSED_WITHIN
from host_service.udp import RECEIVE_BUFFER, Pair
from lab.wait import until
from stagewire.control import socket_door
from stagewire.control.messages import HostSettings, HostState, Listening, SocketSettings
from stagewire.control.socket_door import TCP4, TCP6, UDP4, UDP4_QUEUES, UDP6, SocketsTaker
from stagewire.loop import Loop, boot_time
from stagewire.pipe.names import SOCKETS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs a service in a network namespace")

PORT, PRIVILEGED = 51820, 80
UNMANAGED = {"STAGEWIRE_MANAGED": "0"}
"""The mark is the one that key-service says."""


Answer = TypeVar("Answer", Listening, HostState)


@dataclass
class ConnStandIn:
    """conn-service's place at the socket door, in a loop that is turned by hand."""

    around: Surroundings
    pair: Pair | None = None
    loop: Loop = field(default_factory=Loop)
    given: list[Pair] = field(default_factory=list)

    def __post_init__(self) -> None:
        path = self.around.pipes.path(SOCKETS)
        self.taker = SocketsTaker(self.loop, path, lambda: self.pair.descriptors if self.pair else {}, self._on_given)

    def _on_given(self, descriptors: dict[str, int], _now: float) -> None:
        given = Pair.adopt(descriptors)
        assert given is not None
        if self.pair is not None:
            self.pair.close()
        self.pair = given
        self.given.append(given)

    def wait(self, given: int, port: int) -> Pair:
        """Until it was given sockets so often, and has this port at last; any for 0."""
        turn_until(self.loop, lambda: len(self.given) >= given, f"sockets, {given} times")
        assert self.pair is not None
        assert port in {0, self.pair.port}
        return self.pair

    def close(self) -> None:
        """As its death does."""
        if self.taker._line is not None:
            self.taker._line.close()
        if self.pair is not None:
            self.pair.close()


@dataclass
class Host:
    """The service and the stages around it."""

    around: Surroundings
    key: KeyStandIn
    conn: ConnStandIn
    program: Program

    def listening(self, *wanted: SocketSettings) -> Listening:
        """What it says of what it is told, once conn-service has taken what it was given."""
        self.key.heard.clear()
        self.key.tell(*wanted)
        return self.answer(Listening, wanted[-1].request)

    def answer(self, kind: type[Answer], request: int) -> Answer:
        """What it says to a request, while conn-service works."""

        def said() -> Answer | None:
            self.key.pump()
            found = (each for each in self.key.heard if isinstance(each, kind) and each.request == request)
            return next(found, None)

        turn_until(self.conn.loop, said, "an answer")
        answer = said()
        assert answer is not None
        return answer

    def begin_anew(self, *, conn_too: bool) -> None:
        """It is killed, and conn-service with it or not."""
        self.program.kill()
        if conn_too:
            self.conn.close()
            self.conn = ConnStandIn(self.around)
        self.program = self.around.start("host-service", **UNMANAGED)


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Its parameter is the program's environment, UNMANAGED unless it says otherwise."""
    with surroundings("host") as around:
        key = KeyStandIn(around)
        made = Host(
            around, key, ConnStandIn(around), around.start("host-service", **getattr(request, "param", UNMANAGED))
        )
        key.welcome()
        yield made
        made.conn.close()


def mark_of(pair: Pair) -> set[int]:
    assert pair.six is not None
    return {each.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for each in (pair.four, pair.six)}


def test_the_port_is_opened_marked_and_handed_over(host: Host) -> None:
    host.key.tell(SocketSettings(PRIVILEGED, 7))
    pair = host.conn.wait(1, PRIVILEGED)
    assert host.key.wait_for(Listening) == Listening(PRIVILEGED, 0, 0)
    assert mark_of(pair) == {7}
    assert pair.four.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= RECEIVE_BUFFER
    # Another mark is on the same sockets, and conn-service hears of it.
    assert host.listening(SocketSettings(PRIVILEGED, 8, 1)) == Listening(PRIVILEGED, 0, 1)
    assert mark_of(host.conn.wait(2, PRIVILEGED)) == {8}
    assert host.listening(SocketSettings(PORT, 0, 2)) == Listening(PORT, 0, 2)
    assert mark_of(host.conn.wait(3, PORT)) == {0}


def test_a_mark_is_answered_once_conn_service_sends_by_its_way(host: Host) -> None:
    host.key.tell(SocketSettings(PORT, 0))
    pair = host.conn.wait(1, PORT)
    host.key.heard.clear()
    host.key.tell(SocketSettings(PORT, 8, 1))
    until(lambda: mark_of(pair) == {8}, 5, "the mark")
    host.key.tell(SocketSettings(PORT, 8))  # which is answered at once
    host.key.wait_for(Listening, lambda said: not said.request)
    host.key.pump()
    assert not [each for each in host.key.heard if isinstance(each, Listening) and each.request]
    assert host.answer(Listening, 1) == Listening(PORT, 0, 1)
    # One that goes isn't waited for.
    pair = host.conn.wait(2, PORT)
    host.key.tell(SocketSettings(PORT, 9, 2))
    until(lambda: mark_of(pair) == {9}, 5, "the mark")
    host.conn.close()
    assert host.key.wait_for(Listening, lambda said: said.request == 2).code == 0


def test_a_port_that_is_taken_leaves_the_old_one_open(host: Host) -> None:
    with host.around.namespace.udp_socket("0.0.0.0", 4000):
        host.key.tell(SocketSettings(PORT, 0))
        host.conn.wait(1, PORT)
        assert host.listening(SocketSettings(4000, 5, 1)) == Listening(PORT, errno.EADDRINUSE, 1)
        assert mark_of(host.conn.wait(1, PORT)) == {0}
    assert host.key.fault == ""


def test_a_port_that_is_taken_at_the_start_is_explained_and_tried_again(host: Host) -> None:
    turn_until(host.conn.loop, lambda: host.conn.taker._line, "a line")
    with host.around.namespace.udp_socket("0.0.0.0", 4000):
        told = boot_time()
        host.key.tell(SocketSettings(4000, 0))
        fault = host.key.wait_for_fault("4000")
        assert boot_time() >= told + CLOSED_WITHIN  # the kernel may still be closing an earlier life's sockets
        assert fault == "UDP port 4000 is taken by another program; choose another ListenPort or stop it"
    host.conn.wait(1, 4000)
    assert host.key.wait_for(Listening, lambda said: not said.code).port == 4000


def test_a_free_port_stays_when_one_of_them_is_new_and_when_both_are(host: Host) -> None:
    host.key.tell(SocketSettings(0, 0))
    port = host.conn.wait(1, 0).port
    for conn_too in (False, True):
        host.begin_anew(conn_too=conn_too)
        host.key.welcome(SocketSettings(0, 3))
        turn_until(
            host.conn.loop, lambda: host.conn.pair and mark_of(host.conn.pair) == {3}, "the mark of the new life"
        )
        assert host.conn.wait(1, 0).port == port
        host.key.tell(SocketSettings(0, 0))
    # Whoever asks for any port once more gets the same, and another after one of their own.
    assert host.listening(SocketSettings(0, 0, 1)).port == port
    assert host.listening(SocketSettings(PORT, 0, 2)).port == PORT
    assert host.listening(SocketSettings(0, 0, 3)).port not in {PORT, port, 0}


def test_a_free_port_is_free_in_both_families(host: Host) -> None:
    host.key.tell(SocketSettings(0, 0))
    pair = host.conn.wait(1, 0)
    assert pair.six is not None
    assert pair.four.getsockname()[1] == pair.six.getsockname()[1]


def test_nothing_is_opened_before_it_is_known_what_conn_service_has(host: Host) -> None:
    host.key.tell(SocketSettings(PORT, 0))
    listed = host.around.namespace.run("ss", "-Huln").stdout
    assert f":{PORT}" not in listed
    host.conn.wait(1, PORT)


def test_a_mark_stays_until_it_is_known_whether_it_is_right() -> None:
    """It keeps outer packets out of the tunnel, and a new host-service hasn't looked at the rules yet."""
    with surroundings("host") as around:
        key, conn = KeyStandIn(around), ConnStandIn(around)
        conn.pair = around.namespace.call(lambda: Pair.open(PORT, 7))
        around.start("host-service")
        key.welcome()
        key.tell(SocketSettings(PORT, 0))
        pair = conn.wait(1, PORT)
        assert key.wait_for(Listening).port == PORT
        assert mark_of(pair) == {7}
        conn.close()


@pytest.mark.parametrize("host", [{}], indirect=True)
def test_sockets_for_look_ups_carry_the_mark(host: Host) -> None:
    """And there are none before it is known."""
    kinds = (UDP4, UDP6, TCP4, TCP6)
    path = host.around.pipes.path(SOCKETS)
    host.key.tell(SocketSettings(PORT, 0))
    host.conn.wait(1, PORT)
    assert socket_door.ask(path, kinds, 5) == {}
    host.key.configure(HostSettings(True, (), 0, "auto", 9), SocketSettings(PORT, 0))
    made = until(lambda: socket_door.ask(path, (*kinds, UDP4_QUEUES[0]), 5), 5, "the mark")
    assert set(made) == set(kinds)
    for kind, opened in made.items():
        with opened:
            assert opened.type == (socket.SOCK_DGRAM if "udp" in kind else socket.SOCK_STREAM)
            assert opened.family == (socket.AF_INET if "4" in kind else socket.AF_INET6)
            assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 9
            with suppress(OSError):
                assert opened.getsockname()[1] == 0


def is_still(descriptor: int, line: socket.socket) -> bool:
    """Another thread may have the number again."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(line.fileno()))
    except OSError:
        return False


def test_what_is_no_pair_is_not_taken_from_conn_service() -> None:
    with ExitStack() as stack:
        four, other, stream = (
            stack.enter_context(socket.socket(socket.AF_INET, kind))
            for kind in (socket.SOCK_DGRAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        )
        six, unbound = (stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) for _ in range(2))
        for each in (four, other, stream):
            each.bind(("127.0.0.1", 0))
        six.bind(("::1", 0))
        offers = [{UDP4: stream}, {UDP6: six}, {UDP4: four, UDP6: six}, {UDP4: four, UDP6: other}]
        offers += [{UDP4: four, UDP4_QUEUES[0]: other}, {UDP4: four, **dict.fromkeys(UDP4_QUEUES, stream)}]
        for offer in (*offers, {UDP4: four, UDP6: unbound}, {UDP4: unbound}, {UDP4: four, TCP4: stream}):
            copies = {name: os.dup(each.fileno()) for name, each in offer.items()}
            assert Pair.adopt(copies) is None
            assert not any(is_still(copy, offer[name]) for name, copy in copies.items())
        taken = Pair.adopt({UDP4: os.dup(four.fileno())})
        assert taken is not None
        taken.close()
