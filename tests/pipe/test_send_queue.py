"""The sending end of a pipe, over real ipc:// pipes: backpressure, patience, and readers that come and go."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from tests.pipe.pipe import TRANSPORTS, pipes_at
from tests.turning import turn_until

from stagewire.loop import Loop, boot_time
from stagewire.pipe.names import CIPHER_OUT
from stagewire.pipe.pipes import Pipes
from stagewire.pipe.send_queue import MAX_HELD, SendQueue

FRAME = bytes(200_000)  # more than a Unix socket's buffer takes at once, so that high-water marks are what counts
PIPE = CIPHER_OUT


class Bench:
    """A loop, one queue on a pipe, and two sources that are read whenever they aren't paused."""

    def __init__(self, pipes: Pipes, patience: float | None = None, *, expected: bool = True) -> None:
        self.pipes, self.loop, self.drops = pipes, Loop(), Counter[str]()
        self.sources = [pipes.context.socket(zmq.PULL) for _ in range(2)]
        self._feeds = [pipes.context.socket(zmq.PUSH) for _ in range(2)]
        self.read = Counter[int]()
        for number, (source, feed) in enumerate(zip(self.sources, self._feeds, strict=True)):
            source.bind(f"inproc://source-{number}")
            feed.connect(f"inproc://source-{number}")
            feed.send(b"always something to read")
            self.loop.add(source, lambda _now, number=number: self.read.update([number]))  # type: ignore[misc]
        self.sender = pipes.sender(self.loop, PIPE)
        self.queue = SendQueue(
            self.loop, self.sender, self.drops, "reader_full", self.sources, patience, expected=expected
        )

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)

    def offer(self, number: int, weight: int = 1, size: int = len(FRAME)) -> None:
        self.queue.offer(number.to_bytes(2, "big") + FRAME[: size - 2], weight, boot_time())

    def paused(self) -> bool:
        before = self.read.total()
        self.turn(lambda: True, "a turn")
        return self.read.total() == before

    def writable(self) -> bool:
        return self.sender.connected

    def fill(self) -> int:
        """Offers until the queue holds something; returns how many were offered."""
        for number in range(200):
            self.offer(number)
            if self.queue._held:
                return number + 1
        raise AssertionError("the pipe took everything")

    def close(self) -> None:
        self.queue.close()
        for opened in (*self.sources, *self._feeds):
            opened.close()


@pytest.fixture(params=TRANSPORTS)
def pipes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipes]:
    with pipes_at(tmp_path, monkeypatch, request.param) as made:
        yield made


@contextmanager
def bench(pipes: Pipes, patience: float | None = None, *, expected: bool = True) -> Iterator[Bench]:
    made = Bench(pipes, patience, expected=expected)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def reader(pipes: Pipes) -> Iterator["zmq.Socket[bytes]"]:
    with pipes.bind(PIPE) as socket:
        yield socket


def take(socket: "zmq.Socket[bytes]") -> int | None:
    try:
        return int.from_bytes(socket.recv(zmq.DONTWAIT)[:2], "big")
    except zmq.Again:
        return None


def take_all(made: Bench, socket: "zmq.Socket[bytes]", count: int) -> list[int]:
    arrived: list[int] = []

    def enough() -> bool:
        while (number := take(socket)) is not None:
            arrived.append(number)
        return len(arrived) >= count

    made.turn(enough, f"{count} frames")
    return arrived


def test_what_finds_room_goes_at_once(pipes: Pipes) -> None:
    with reader(pipes) as pull, bench(pipes) as made:
        made.turn(made.writable, "the connection")
        for number in range(3):
            made.offer(number)
            assert take_all(made, pull, 1) == [number]
        assert not made.queue._held
        assert not made.paused()
        assert not made.drops


def test_a_full_pipe_pauses_every_source_and_room_resumes_them(pipes: Pipes) -> None:
    with reader(pipes) as pull, bench(pipes) as made:
        made.turn(made.writable, "the connection")
        offered = made.fill()
        assert made.paused()
        for number in range(offered, offered + 10):  # a keepalive, a staged train: not from the sources
            made.offer(number)
        assert take_all(made, pull, offered + 10) == list(range(offered + 10))
        assert not made.paused()
        made.turn(lambda: set(made.read) == {0, 1}, "both sources to be read")
        assert not made.drops


def test_a_little_is_held_without_holding_anybody_up(pipes: Pipes) -> None:
    with bench(pipes, patience=60) as made:  # nobody there
        for number in range(MAX_HELD // 2):
            made.offer(number, size=100)
        assert len(made.queue._held) == MAX_HELD // 2
        assert not made.paused()
        made.offer(MAX_HELD // 2, size=100)
        assert made.paused()
        with reader(pipes) as pull:
            assert take_all(made, pull, MAX_HELD // 2 + 1) == list(range(MAX_HELD // 2 + 1))
        assert not made.paused()
        assert not made.drops


def test_it_holds_so_much_and_no_more(pipes: Pipes) -> None:
    with bench(pipes) as made:  # nobody there: it holds from the first on
        for number in range(MAX_HELD + 3):
            made.offer(number, weight=7)
        assert made.drops == {"reader_full": 3 * 7}
        assert made.paused()
        with reader(pipes) as pull:
            assert take_all(made, pull, MAX_HELD) == list(range(MAX_HELD))
        assert not made.queue._held


def test_several_trains_that_are_offered_together_wait_their_turn_or_count(pipes: Pipes) -> None:
    with bench(pipes) as made, reader(pipes) as socket:
        made.turn(made.writable, "a connection")
        made.queue.offer_each([number.to_bytes(2, "big") for number in range(3)], boot_time())
        assert take_all(made, socket, 3) == [0, 1, 2]
        waiting = made.fill()
        made.queue.offer_each([number.to_bytes(2, "big") for number in range(waiting, waiting + MAX_HELD)], boot_time())
        assert made.drops["reader_full"] == 1
        assert take_all(made, socket, waiting + MAX_HELD - 1) == [*range(waiting + MAX_HELD - 1)]


def test_without_patience_it_waits_for_ever(pipes: Pipes) -> None:
    with bench(pipes) as made:
        made.offer(0)
        assert made.queue._patience_ends.next_deadline() is None
        assert made.paused()
        with reader(pipes) as pull:
            assert take_all(made, pull, 1) == [0]
        assert not made.drops


def test_patience_ends_and_a_reader_that_is_gone_holds_nobody_up(pipes: Pipes) -> None:
    with bench(pipes, patience=0.05) as made:
        made.offer(0, weight=5)
        made.offer(1, weight=6)
        assert made.paused()
        deadline = made.queue._patience_ends.next_deadline()
        assert deadline is not None
        made.turn(lambda: made.drops, "patience to end")
        assert boot_time() >= deadline
        assert made.drops == {"reader_full": 11}
        assert not made.paused()
        made.offer(2, weight=9)  # counted at once, and the sources stay as they are
        assert made.drops == {"reader_full": 20}
        assert not made.paused()


def test_a_reader_that_is_still_to_come_holds_nobody_up(pipes: Pipes) -> None:
    with bench(pipes, patience=60, expected=False) as made:
        made.offer(0, weight=5)
        assert made.drops == {"reader_full": 5}
        assert not made.paused()
        with reader(pipes) as pull:
            made.turn(made.writable, "the connection")
            offered = made.fill()  # from now on it is waited for
            assert made.paused()
            assert take_all(made, pull, offered) == list(range(offered))


def test_a_reader_that_comes_back_gets_what_comes_then(pipes: Pipes) -> None:
    with bench(pipes, patience=0.02) as made:
        for life in range(3):
            made.offer(100 + life)
            made.turn(lambda life=life: made.drops["reader_full"] == life + 1, "it to be dropped")  # type: ignore[misc]
            with reader(pipes) as pull:
                made.turn(made.writable, "the reader to be found again")
                made.offer(life)
                assert take_all(made, pull, 1) == [life]  # and nothing from before
                # Patience is whole again: the next full pipe is waited for.
                offered = made.fill()
                assert made.paused()
                assert take_all(made, pull, offered) == list(range(offered))
                assert not made.paused()
            made.turn(lambda: not made.writable(), "the end to be noticed")


def test_a_slow_reader_is_not_gone(pipes: Pipes) -> None:
    """Each frame that it takes begins patience anew."""
    with reader(pipes) as pull, bench(pipes, patience=0.3) as made:
        made.turn(made.writable, "the connection")
        offered = made.fill()
        for number in range(offered, offered + 20):
            made.offer(number)
        arrived = list[int]()
        first = made.queue._patience_ends.next_deadline()
        assert first is not None
        while boot_time() < first + 0.1 and len(arrived) < offered + 20:
            arrived += take_all(made, pull, 1)
            made.turn(lambda: not made.queue._held or made.queue._patience_ends.next_deadline() != first, "progress")
        assert not made.drops
        arrived += take_all(made, pull, offered + 20 - len(arrived))
        assert arrived == list(range(offered + 20))


def test_closing_resumes_the_sources_and_forgets_what_is_held(pipes: Pipes) -> None:
    with bench(pipes, patience=60) as made:
        other = SendQueue(made.loop, pipes.sender(made.loop, PIPE), made.drops, "other", made.sources)
        made.offer(0)
        other.offer(FRAME, 1, boot_time())
        made.offer(1)
        assert made.paused()
        other.close()
        assert made.paused()  # the first one still holds
        made.queue._held.clear()
        made.queue._release()
        assert not made.paused()


def test_closing_while_nothing_is_held_leaves_the_sources_alone(pipes: Pipes) -> None:
    with reader(pipes), bench(pipes) as made:
        other = SendQueue(made.loop, pipes.sender(made.loop, PIPE), made.drops, "other", made.sources)
        other.close()
        assert not made.paused()
        assert set(made.loop._pauses.values()) == {0}


def test_a_sender_tells_what_waits_and_what_was_held_back_at_most(pipes: Pipes) -> None:
    with reader(pipes) as pull, bench(pipes) as made:
        made.turn(made.writable, "the connection")
        assert (made.sender.waiting, made.sender.most_held) == (0, 0)
        offered = made.fill()
        made.offer(offered)
        assert made.sender.most_held == 2 * len(FRAME)
        assert (made.sender.waiting > 0) is (not pipes.libzmq)
        take_all(made, pull, offered + 1)
        assert (made.sender.waiting, made.sender.most_held) == (0, 2 * len(FRAME))
        assert pipes.senders == {"cipher-out": made.sender}
