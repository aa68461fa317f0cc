"""Pipes of trains, ours at one end or at both, and libzmq at the other: what goes through, what waits, what is refused."""

import errno
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from tests.turning import turn_until

from stagewire.ipc import endpoints, zmtp
from stagewire.ipc.endpoints import MAX_TRAIN, Pipes
from stagewire.ipc.inlet import MAX_PUSHERS, Inlet
from stagewire.ipc.line import Line
from stagewire.ipc.loop import Loop
from stagewire.ipc.memory import LEAST, SLOTS, BadMemory, Memory
from stagewire.ipc.trains import BadTrain
from stagewire.ipc.zmtp import Frame

PIPE = endpoints.CIPHER_OUT
TRAINS = [b"", b"a", bytes(255), os.urandom(256), os.urandom(70_000), os.urandom(MAX_TRAIN), b"the last one"]


class Reader:
    """An inlet and what came out of it."""

    def __init__(self, pipes: Pipes, loop: Loop) -> None:
        self.trains: list[bytes] = []
        self.bad: list[str] = []
        self.turns = 0
        self.laid = 0
        """Trains that lay in shared memory."""
        self.closed = self.broken = False
        self.inlet: Inlet = pipes.inlet(loop, PIPE, self._take, self._drop)

    def close(self) -> None:
        if not self.closed:
            self.inlet.close()
        self.closed = True

    def _take(self, frames: Sequence[Frame], _now: float) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        self.turns += 1
        self.laid += sum(isinstance(data, mmap.mmap) for data, _, _ in frames)
        self.trains += [data[start:end] for data, start, end in frames]

    def _drop(self, bad: BadTrain) -> None:
        self.bad.append(bad.reason)


class Bench:
    """One loop for both ends, turned by hand."""

    def __init__(self, pipes: Pipes) -> None:
        self.pipes, self.loop = pipes, Loop()
        self._opened = ExitStack()

    def reader(self) -> Reader:
        reader = Reader(self.pipes, self.loop)
        self._opened.callback(reader.close)
        return reader

    def line(self) -> Line:
        line = self.pipes.line(self.loop, PIPE)
        self._opened.callback(line.close)
        return line

    def close(self) -> None:
        self._opened.close()
        self.pipes.close_listeners()

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)

    def send(self, line: Line, train: bytes) -> None:
        self.turn(lambda: line.send(train), "room")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)  # a Unix socket's name has 107 bytes, which pytest's folders don't leave
    (tmp_path / "conn").mkdir()
    with zmq.Context() as context:
        bench = Bench(Pipes(context, Path()))
        yield bench
        bench.close()


def test_trains_of_all_lengths_arrive_whole_and_in_order(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    for train in TRAINS * 3:
        bench.send(line, train)
    bench.turn(lambda: len(reader.trains) == 3 * len(TRAINS), "all trains")
    assert reader.trains == TRAINS * 3
    assert reader.laid == 3  # the others are too short, or too long for a slot
    assert reader.turns < len(reader.trains)  # what was there at once came at once


def test_zeromq_reads_what_we_send(bench: Bench) -> None:
    with bench.pipes.bind(zmq.PULL, PIPE) as pull:
        line = bench.line()
        arrived: list[bytes] = []
        for train in TRAINS:
            bench.send(line, train)
            bench.turn(lambda: pull.poll(0), "the train")
            arrived.append(pull.recv())
        assert arrived == TRAINS


def test_we_read_what_zeromq_sends(bench: Bench) -> None:
    reader = bench.reader()
    with bench.pipes.connect(zmq.PUSH, PIPE) as push:
        bench.turn(lambda: push.poll(0, zmq.POLLOUT), "the connection")
        for train in TRAINS:
            bench.turn(lambda: push.poll(0, zmq.POLLOUT), "room")
            push.send(train)
        bench.turn(lambda: len(reader.trains) == len(TRAINS), "all trains")
    assert reader.trains == TRAINS


def test_a_train_over_the_limit_is_refused_and_the_next_one_served(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, bytes(MAX_TRAIN + 1))
    bench.turn(lambda: reader.bad, "its being refused")
    assert reader.bad == ["train_malformed"]
    bench.send(line, b"small")
    bench.turn(lambda: reader.trains, "the next one")
    assert reader.trains == [b"small"]


def test_who_speaks_something_else_is_hung_up_on_and_holds_nobody_up(bench: Bench) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(bench.pipes.path(PIPE)))
        stranger.send(b"GET / HTTP/1.1\r\n" * 10)
        line = bench.line()
        bench.send(line, b"train")
        bench.turn(lambda: reader.trains and reader.bad, "both")
        stranger.setblocking(False)
        bench.turn(lambda: _ended(stranger), "being sent away")
    assert reader.trains == [b"train"]


def test_only_so_many_may_connect(bench: Bench) -> None:
    reader = bench.reader()
    lines = []
    for _ in range(MAX_PUSHERS):
        lines.append(bench.line())
        bench.turn(lambda: len(reader.inlet._pushers) == len(lines), "the welcome")
    with socket.socket(socket.AF_UNIX) as one_more:
        one_more.connect(str(bench.pipes.path(PIPE)))
        one_more.setblocking(False)
        bench.turn(lambda: _ended(one_more), "being sent away")
    for line in lines:
        bench.send(line, b"train")
    bench.turn(lambda: len(reader.trains) == MAX_PUSHERS, "everybody's train")


def _ended(opened: socket.socket) -> bool:
    try:
        return opened.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:  # with words of ours unread
        return True


def test_nothing_waits_for_a_reader_that_is_not_there(bench: Bench) -> None:
    line = bench.line()
    assert not line.connected
    assert not line.send(b"old")
    reader = bench.reader()
    bench.turn(lambda: line.connected, "the connection")
    bench.send(line, b"new")
    bench.turn(lambda: reader.trains, "the train")
    assert reader.trains == [b"new"]


def test_a_full_pipe_holds_a_few_trains_only_and_tells_of_room(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, b"first")
    bench.turn(lambda: reader.trains, "the connection")
    bench.loop.pause(reader.inlet.source)
    sent, told = 0, list[float]()
    while line.send(bytes(64 * 1024)):
        sent += 1
    assert 3 + SLOTS <= sent <= 8 + SLOTS
    line.when_room(told.append)
    bench.turn(lambda: True, "a turn")
    assert not told
    bench.loop.resume(reader.inlet.source)
    bench.turn(lambda: told, "room")
    line.when_room(None)
    bench.turn(lambda: len(reader.trains) == 1 + sent, "all that was sent")


def test_more_than_memory_holds_arrives_in_order(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, b"first")
    bench.turn(lambda: reader.trains, "the connection")
    bench.loop.pause(reader.inlet.source)
    sent = [os.urandom(40_000) for _ in range(SLOTS + 3)]
    assert all(map(line.send, sent))
    bench.loop.resume(reader.inlet.source)
    bench.turn(lambda: len(reader.trains) == 1 + len(sent), "all")
    assert reader.trains[1:] == sent
    assert reader.laid == SLOTS


def test_nothing_else_is_laid_where_a_train_lies_that_is_being_handled(bench: Bench) -> None:
    line: Line | None = None
    changed: list[bool] = []

    def handle(frames: Sequence[Frame], _now: float) -> None:
        before = [data[start:end] for data, start, end in frames]
        assert line is not None
        for _ in range(SLOTS if before[0] else 0):
            line.send(os.urandom(len(before[0])))
        changed.append(before != [data[start:end] for data, start, end in frames])
        assert isinstance(frames[0][0], mmap.mmap) or len(before[0]) < LEAST

    inlet = bench.pipes.inlet(bench.loop, PIPE, handle, lambda _bad: None)
    line = bench.line()
    bench.send(line, b"")
    bench.turn(lambda: changed, "the connection")
    bench.send(line, os.urandom(LEAST))
    bench.turn(lambda: len(changed) > 4, "a few turns")
    inlet.close()
    assert not any(changed)


def test_a_train_may_be_changed_by_its_sender_once_it_is_sent(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, b"first")
    bench.turn(lambda: reader.trains, "the connection")
    train = bytearray(b"x" * 50_000)
    assert line.send(memoryview(train))
    train[:] = bytes(50_000)
    bench.turn(lambda: len(reader.trains) == 2, "the train")
    assert reader.trains[1] == b"x" * 50_000
    assert reader.laid == 1


@pytest.mark.parametrize("end", ["reader", "pusher"])
def test_without_memory_trains_go_through_the_socket(bench: Bench, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    def refuse(*_: object) -> None:
        raise BadMemory("no descriptor is left") if end == "reader" else OSError(errno.EMFILE, "too many")

    if end == "reader":
        monkeypatch.setattr("stagewire.ipc.inlet.Memory", refuse)
    else:
        monkeypatch.setattr(Memory, "make", refuse)
    reader = bench.reader()
    line = bench.line()
    sent = [os.urandom(50_000) for _ in range(5)]
    for train in sent:
        bench.send(line, train)
    bench.turn(lambda: len(reader.trains) == 5, "all trains")
    assert reader.trains == sent
    assert not reader.laid
    assert not reader.bad


def test_handshakes_are_never_laid_in_memory(bench: Bench) -> None:
    """Memory is for what is long; and key-service takes as little as can be from the stage at the network."""
    (bench.pipes.run / "key").mkdir()
    trains: list[bool] = []
    inlet = bench.pipes.inlet(
        bench.loop,
        endpoints.HANDSHAKE_IN,
        lambda frames, _now: trains.extend(isinstance(data, mmap.mmap) for data, _, _ in frames),
        lambda _bad: None,
    )
    line = bench.pipes.line(bench.loop, endpoints.HANDSHAKE_IN)
    bench.send(line, bytes(LEAST))
    bench.turn(lambda: trains, "it")
    line.close()
    inlet.close()
    assert trains == [False]


def test_a_pusher_that_tells_of_memory_it_does_not_share_is_hung_up_on(bench: Bench) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as liar:
        liar.connect(str(bench.pipes.path(PIPE)))
        liar.send(zmtp.PUSH + zmtp.MEMORY + zmtp.train_in(0, 5000))
        liar.setblocking(False)
        bench.turn(lambda: reader.bad, "its being refused")
    assert reader.bad == ["train_malformed"]


def test_memory_goes_with_its_connection(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, bytes(50_000))
    bench.turn(lambda: reader.trains, "the train")
    held = _memory_files()
    for _ in range(3):
        line._lost()
        bench.send(line, bytes(50_000))
        bench.turn(lambda: len(reader.inlet._pushers) == 1, "one connection")
    assert _memory_files() <= held


def _memory_files() -> int:
    """Of ours, opened or mapped."""
    opened = sum(
        "stagewire-trains" in str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )
    return opened + Path("/proc/self/maps").read_text().count("stagewire-trains")


def test_a_train_of_which_the_kernel_took_a_part_is_finished(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, b"first")
    bench.turn(lambda: reader.trains, "the connection")
    bench.loop.pause(reader.inlet.source)
    trains = [os.urandom(MAX_TRAIN - number) for number in range(5)]
    sent = [train for train in trains if line.send(train)]
    assert line._rest  # otherwise this tries nothing
    bench.loop.resume(reader.inlet.source)
    bench.turn(lambda: len(reader.trains) == 1 + len(sent), "all that was sent")
    assert reader.trains[1:] == sent
    assert not line._rest
    bench.send(line, b"and on")
    bench.turn(lambda: reader.trains[-1] == b"and on", "the next one")


def test_the_pushers_of_a_paused_pipe_wait_those_that_come_later_as_well(bench: Bench) -> None:
    reader = bench.reader()
    lines = [bench.line()]
    bench.send(lines[0], b"0")
    bench.turn(lambda: reader.trains, "the connection")
    bench.loop.pause(reader.inlet.source)
    bench.loop.pause(reader.inlet.source)
    lines.append(bench.line())
    bench.turn(lambda: lines[1].connected, "the welcome: who is paused may still come")
    for number, line in enumerate(lines):
        bench.send(line, str(number).encode())
    bench.loop.resume(reader.inlet.source)
    for _ in range(3):
        bench.turn(lambda: True, "a turn")
    assert reader.trains == [b"0"]
    bench.loop.resume(reader.inlet.source)
    bench.turn(lambda: sorted(reader.trains) == [b"0", b"0", b"1"], "both")


def test_a_reader_that_dies_takes_a_train_in_the_middle_with_it_and_no_more(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, b"first")
    bench.turn(lambda: reader.trains, "the connection")
    bench.loop.pause(reader.inlet.source)
    while line.send(b"x" * MAX_TRAIN):
        pass
    assert line._rest
    reader.close()
    after = bench.reader()
    bench.turn(lambda: line.connected and not line._rest, "the new one to be found")
    bench.send(line, b"whole")
    bench.turn(lambda: after.trains, "a train")
    assert after.trains == [b"whole"]
    assert not after.bad


def test_what_a_pusher_sent_before_it_went_is_read(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.send(line, b"its last")
    line._disconnect()
    bench.turn(lambda: reader.trains and not reader.inlet._pushers, "the train and the end")
    assert reader.trains == [b"its last"]


def test_a_pipe_is_finished_before_the_loop_stops(bench: Bench) -> None:
    reader = bench.reader()
    line = bench.line()
    bench.turn(lambda: line.connected, "the welcome")
    for number in range(3):
        assert line.send(bytes([number]) * 60_000)
    bench.loop.stop()
    bench.loop.run()
    assert [train[0] for train in reader.trains] == [0, 1, 2]


def test_a_line_waits_to_be_welcomed_and_hangs_up_on_nonsense(bench: Bench) -> None:
    path = bench.pipes.path(PIPE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        line = bench.line()
        for _ in range(2):
            talker, _ = listener.accept()
            with talker:
                assert talker.recv(1000) == zmtp.PUSH
                assert not line.send(b"too early")
                talker.send(bytes(100))
                talker.setblocking(False)
                bench.turn(lambda talker=talker: _ended(talker), "the end")  # type: ignore[misc]
        talker, _ = listener.accept()
        with talker:
            talker.send(zmtp.PULL[:-1])
            bench.turn(lambda: True, "a turn")
            assert not line.send(b"too early")
            talker.send(zmtp.PULL[-1:])
            bench.send(line, b"train")
            assert talker.recv(1000) == zmtp.PUSH + zmtp.front(5) + b"train"


def test_a_line_that_nobody_welcomes_is_made_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagewire.ipc.line.WELCOME_WITHIN", 0.01)
    path = bench.pipes.path(PIPE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        line = bench.line()
        first, _ = listener.accept()
        with first:
            first.setblocking(False)
            bench.turn(lambda: _ended(first), "the end")
        second, _ = listener.accept()
        with second:
            second.send(zmtp.PULL)
            bench.send(line, b"train")
