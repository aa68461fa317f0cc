"""Long trains, which lie in memory that both ends of a pipe share: in order, unchanged, and without it if need be."""

import errno
import gc
import mmap
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.pipe.pipe import PIPE, DirectBench

from stagewire.pipe.contract import Frame
from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.sender import DirectSender
from stagewire.pipe.direct.shared_memory import LEAST, SLOTS, BadMemory, Memory
from stagewire.pipe.names import HANDSHAKE_IN


def test_more_than_memory_holds_arrives_in_order(bench: DirectBench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    sent = [os.urandom(40_000) for _ in range(SLOTS + 3)]
    assert all(map(sender.send, sent))
    bench.loop.resume(reader.receiver.source)
    bench.turn(lambda: len(reader.trains) == 1 + len(sent), "all")
    assert reader.trains[1:] == sent
    assert reader.laid == SLOTS


def test_nothing_else_is_laid_where_a_train_lies_that_is_being_handled(bench: DirectBench) -> None:
    sender: DirectSender | None = None
    changed: list[bool] = []

    def handle(frames: Sequence[Frame], _now: float) -> None:
        before = [data[start:end] for data, start, end in frames]
        assert sender is not None
        for _ in range(SLOTS if before[0] else 0):
            sender.send(os.urandom(len(before[0])))
        changed.append(before != [data[start:end] for data, start, end in frames])
        assert isinstance(frames[0][0], mmap.mmap) or len(before[0]) < LEAST

    receiver = bench.pipes.receiver(bench.loop, PIPE, handle, lambda _bad: None)
    sender = bench.sender()
    bench.send(sender, b"")
    bench.turn(lambda: changed, "the connection")
    bench.send(sender, os.urandom(LEAST))
    bench.turn(lambda: len(changed) > 4, "a few turns")
    receiver.close()
    assert not any(changed)


def test_a_train_may_be_changed_by_its_sender_once_it_is_sent(bench: DirectBench) -> None:
    reader, sender = bench.connected()
    train = bytearray(b"x" * 50_000)
    assert sender.send(memoryview(train))
    train[:] = bytes(50_000)
    bench.turn(lambda: len(reader.trains) == 2, "the train")
    assert reader.trains[1] == b"x" * 50_000
    assert reader.laid == 1


@pytest.mark.parametrize("end", ["reader", "pusher"])
def test_without_memory_trains_go_through_the_socket(
    bench: DirectBench, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def refuse(*_: object) -> None:
        raise BadMemory("no descriptor is left") if end == "reader" else OSError(errno.EMFILE, "too many")

    if end == "reader":
        monkeypatch.setattr("stagewire.pipe.direct.receiver.Memory", refuse)
    else:
        monkeypatch.setattr(Memory, "make", refuse)
    reader = bench.reader()
    sender = bench.sender()
    sent = [os.urandom(50_000) for _ in range(5)]
    for train in sent:
        bench.send(sender, train)
    bench.turn(lambda: len(reader.trains) == 5, "all trains")
    assert reader.trains == sent
    assert not reader.laid
    assert not reader.bad


def test_handshakes_are_never_laid_in_memory(bench: DirectBench) -> None:
    """Memory is for what is long; and key-service takes as little as can be from the stage at the network."""
    (bench.pipes.run / "key").mkdir()
    trains: list[bool] = []
    receiver = bench.pipes.receiver(
        bench.loop,
        HANDSHAKE_IN,
        lambda frames, _now: trains.extend(isinstance(data, mmap.mmap) for data, _, _ in frames),
        lambda _bad: None,
    )
    sender = bench.pipes.sender(bench.loop, HANDSHAKE_IN)
    bench.send(sender, bytes(LEAST))
    bench.turn(lambda: trains, "it")
    sender.close()
    receiver.close()
    assert trains == [False]


def test_a_pusher_that_tells_of_memory_it_does_not_share_is_hung_up_on(bench: DirectBench) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as liar:
        liar.connect(str(bench.pipes.path(PIPE)))
        liar.send(zmtp.PUSH + zmtp.MEMORY + zmtp.train_in(0, 5000))
        liar.setblocking(False)
        bench.turn(lambda: reader.bad, "its being refused")
    assert reader.bad == ["train_malformed"]


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/status"])
def test_a_pusher_that_hands_over_something_else_is_served_without_memory(bench: DirectBench, path: str) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as liar, Path(path).open("rb") as other:
        liar.connect(str(bench.pipes.path(PIPE)))
        liar.send(zmtp.PUSH)
        socket.send_fds(liar, [zmtp.MEMORY], [other.fileno()])
        liar.send(zmtp.front(5) + b"train")
        bench.turn(lambda: reader.trains, "the train")
    assert not reader.laid


def test_only_those_who_are_left_to_whoever_takes_over_share_memory(
    bench: DirectBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would cost descriptors, of which a reader must not run out."""
    monkeypatch.setattr("stagewire.pipe.direct.inherited.MOST", 2)
    monkeypatch.setattr("stagewire.pipe.direct.receiver.MOST", 2)
    bench.pipes.pushers._numbers = set(range(2))
    reader = bench.reader()
    senders = [bench.sender() for _ in range(4)]
    for sender in senders:
        bench.send(sender, b"")
    bench.turn(lambda: len(reader.trains) == 4, "all connections")
    bench.turn(lambda: len(reader.receiver._memories) == 2, "some memory")
    for sender in senders:
        bench.send(sender, bytes(50_000))
    bench.turn(lambda: len(reader.trains) == 8, "all trains")
    assert reader.laid == 2


def test_memory_goes_with_its_connection(bench: DirectBench) -> None:
    reader = bench.reader()
    sender = bench.sender()
    bench.send(sender, bytes(50_000))
    bench.turn(lambda: reader.trains, "the train")
    held = _memory_files()
    for _ in range(3):
        sender._lost()
        bench.send(sender, bytes(50_000))
        bench.turn(lambda: len(reader.receiver._pushers) == 1, "one connection")
    assert _memory_files() <= held


def test_memory_of_one_who_goes_without_a_greeting_goes_with_him(bench: DirectBench) -> None:
    """Or a reader could be made to run out of descriptors."""
    reader = bench.reader()
    memory = Memory.make()
    gc.collect()  # of earlier tests
    held = _memory_files()
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(bench.pipes.path(PIPE)))
            socket.send_fds(stranger, [zmtp.PUSH[:10]], [memory.descriptor])
            bench.turn(lambda: reader.receiver._memories, "the memory")
        bench.turn(lambda: not reader.receiver._pushers, "the end")
    assert _memory_files() == held
    memory.close()


def _memory_files() -> int:
    """Of ours, opened or mapped."""
    opened = sum(
        "stagewire-trains" in str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )
    return opened + Path("/proc/self/maps").read_text().count("stagewire-trains")
