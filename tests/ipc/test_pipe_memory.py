"""Long trains, which lie in memory that both ends of a pipe share: in order, unchanged, and without it if need be."""

import errno
import mmap
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.ipc.pipe import PIPE, Bench

from stagewire.ipc import endpoints, zmtp
from stagewire.ipc.line import Line
from stagewire.ipc.memory import LEAST, SLOTS, BadMemory, Memory
from stagewire.ipc.zmtp import Frame


def test_more_than_memory_holds_arrives_in_order(bench: Bench) -> None:
    reader, line = bench.connected()
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
    reader, line = bench.connected()
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


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/status"])
def test_a_pusher_that_hands_over_something_else_is_served_without_memory(bench: Bench, path: str) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as liar, Path(path).open("rb") as other:
        liar.connect(str(bench.pipes.path(PIPE)))
        liar.send(zmtp.PUSH)
        socket.send_fds(liar, [zmtp.MEMORY], [other.fileno()])
        liar.send(zmtp.front(5) + b"train")
        bench.turn(lambda: reader.trains, "the train")
    assert not reader.laid


def test_only_those_who_are_left_to_whoever_takes_over_share_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would cost descriptors, of which a reader must not run out."""
    monkeypatch.setattr("stagewire.ipc.pushers.MOST", 2)
    monkeypatch.setattr("stagewire.ipc.inlet.MOST", 2)
    bench.pipes.pushers._numbers = set(range(2))
    reader = bench.reader()
    lines = [bench.line() for _ in range(4)]
    for line in lines:
        bench.send(line, b"")
    bench.turn(lambda: len(reader.trains) == 4, "all connections")
    bench.turn(lambda: len(reader.inlet._memories) == 2, "some memory")
    for line in lines:
        bench.send(line, bytes(50_000))
    bench.turn(lambda: len(reader.trains) == 8, "all trains")
    assert reader.laid == 2


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


def test_memory_of_one_who_goes_without_a_greeting_goes_with_him(bench: Bench) -> None:
    """Or a reader could be made to run out of descriptors."""
    reader = bench.reader()
    memory = Memory.make()
    held = _memory_files()
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(bench.pipes.path(PIPE)))
            socket.send_fds(stranger, [zmtp.PUSH[:10]], [memory.descriptor])
            bench.turn(lambda: reader.inlet._memories, "the memory")
        bench.turn(lambda: not reader.inlet._pushers, "the end")
    assert _memory_files() == held
    memory.close()


def _memory_files() -> int:
    """Of ours, opened or mapped."""
    opened = sum(
        "stagewire-trains" in str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )
    return opened + Path("/proc/self/maps").read_text().count("stagewire-trains")
