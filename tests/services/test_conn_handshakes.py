"""What a visit to the sockets for handshakes takes, how long they rest then, and how messages reach key-service."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from tests.linux.udp_sides import opened
from tests.services.conn import initiation, settings
from tests.turning import turn_until

from conn_service import handshakes
from conn_service.handshakes import GATHER, TOGETHER, Handshakes
from conn_service.kernel import Kernel, load
from stagewire.loop import Loop, boot_time
from stagewire.pipe import trains
from stagewire.proto.endpoint import place_of
from stagewire.proto.kernel import rule
from stagewire.reasons import Reasons

PEERS = 4


class Pipe:
    """A sender that keeps what it takes, call by call, while it has room."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.room = True
        self.waiter: Callable[[float], None] | None = None

    def send_each(self, given: Sequence[bytes]) -> int:
        if self.room:
            self.calls.append(list(given))
        return len(given) if self.room else 0

    def when_room(self, waiter: Callable[[float], None] | None) -> None:
        self.waiter = waiter

    @property
    def took(self) -> list[tuple[bytes, bytes]]:
        return [trains.unpack_handshake_untrusted(each, 0.0) for call in self.calls for each in call]


class Bench:
    """A gate's thin shell with a socket of its own, and peers."""

    def __init__(self, kernel: Kernel, stack: ExitStack) -> None:
        self.pipe, self.counters, self.loop = Pipe(), Reasons(), Loop()
        self.moved: list[bytes] = []
        stage: Any = SimpleNamespace(loop=self.loop, counters=self.counters)
        pipe: Any = self.pipe
        self.shell = Handshakes(stage, pipe, lambda datagram, *_: self.moved.append(datagram), kernel)
        self.shell.configure(settings(), None)
        self.socket = stack.enter_context(opened(socket.AF_INET))
        sockets: Any = SimpleNamespace(queues=[self.socket], reaches=lambda _place: False)
        self.peers = [stack.enter_context(opened(socket.AF_INET)) for _ in range(PEERS)]
        self.shell.listen(sockets)

    def arrive(self, datagrams: Sequence[bytes]) -> None:
        for number, datagram in enumerate(datagrams):
            self.peers[number % PEERS].sendto(datagram, self.socket.getsockname())

    def visit(self) -> None:
        before = self.counters["datagrams_in"]
        turn_until(self.loop, lambda: self.counters["datagrams_in"] > before, "a visit")


@pytest.fixture(params=["plain", "compiled"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    try:
        kernel = load(request.param)
    except ImportError:
        pytest.skip("it isn't built here")
    with ExitStack() as stack:
        yield Bench(kernel, stack)


def test_a_visits_messages_reach_key_service_by_few_calls_with_their_endpoints(bench: Bench) -> None:
    sent = [initiation() for _ in range(40)]
    bench.arrive([*sent, b"\4\0\0\0" + bytes(28), bytes(148)])
    bench.visit()
    assert [len(call) for call in bench.pipe.calls] == [TOGETHER, TOGETHER, 40 - 2 * TOGETHER]
    assert [message for _, message in bench.pipe.took] == sent
    for number, (endpoint, _) in enumerate(bench.pipe.took):
        host, port = bench.peers[number % PEERS].getsockname()
        assert place_of(endpoint) == socket.inet_aton(host) + port.to_bytes(2)
        assert endpoint[24:28] == socket.inet_aton(bench.socket.getsockname()[0])
    assert bench.moved == [b"\4\0\0\0" + bytes(28)]
    assert +bench.counters == {"datagrams_in": 42, "bad_type": 1}


def test_sockets_rest_after_a_visit_so_that_messages_come_together(bench: Bench) -> None:
    bench.arrive([initiation()])
    before = boot_time()
    bench.visit()
    until = bench.shell.next_deadline()
    assert until is not None
    assert until >= before + GATHER
    bench.arrive([initiation() for _ in range(5)])
    turn_until(bench.loop, lambda: len(bench.pipe.took) == 6, "the rest to end")
    assert len(bench.pipe.calls) == 2


def test_a_full_batch_is_followed_by_the_next_after_as_much_time_as_it_took(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "GATHER", 3600.0)
    monkeypatch.setattr(handshakes, "MOST", 4)
    bench.arrive([initiation() for _ in range(8)])
    turn_until(bench.loop, lambda: len(bench.pipe.took) == 8, "the next batch")
    assert bench.counters["datagrams_in"] == 8


def test_what_a_full_pipe_refuses_goes_in_order_once_there_is_room(bench: Bench) -> None:
    bench.pipe.room = False
    sent = [initiation() for _ in range(30)]
    bench.arrive(sent)
    bench.visit()
    assert (bench.pipe.took, bench.pipe.waiter) == ([], bench.shell._pass_on)
    bench.pipe.room = True
    bench.shell._pass_on(boot_time())
    assert [message for _, message in bench.pipe.took] == sent
    assert bench.pipe.waiter is None


def test_a_flood_gets_cookies_and_each_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.shell._gate is not None
    monkeypatch.setattr(bench.shell._gate, "note_queue", lambda _length: None)
    bench.shell._gate._queue = 1 << 16
    bench.arrive([initiation() for _ in range(20)])
    bench.visit()
    assert +bench.counters == {"datagrams_in": 20, "cookie_demanded": 20}
    assert bench.pipe.took == []
    for peer in bench.peers:
        replies = [peer.recv(2000) for _ in range(5)]
        assert {(reply[:4], len(reply)) for reply in replies} == {(b"\3\0\0\0", 64)}


# --- the kernel --------------------------------------------------------------------------------------------


def test_each_part_that_can_be_loaded_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = load("")
    if made.trains is None:
        pytest.skip("it isn't built here")
    assert made.said.startswith("compiled")
    real = rule.load

    def without(wanted: str, module: str) -> tuple[Any, str]:
        return (None, "plain, as I say") if module.endswith("macs") else real(wanted, module)

    monkeypatch.setattr(rule, "load", without)
    assert load("") == Kernel(made.trains, made.batch, Kernel().macs, made.admits, "plain, as I say")


def test_the_plain_kernel_has_no_compiled_part() -> None:
    made = load("plain")
    assert (made.trains, made.batch, made.macs, made.admits) == (None, Kernel().batch, Kernel().macs, Kernel().admits)
