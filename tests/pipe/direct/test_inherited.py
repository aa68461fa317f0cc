"""A pipe whose reader dies, and is read on by the next: nothing that waits is lost, and no half of a message is read."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from tests.pipe.pipe import DIRECT, PIPE, DirectReader, compiled_for
from tests.turning import turn_until

from stagewire.loop import Loop
from stagewire.pipe.direct import inherited, zmtp
from stagewire.pipe.direct.sender import DirectSender
from stagewire.pipe.direct.shared_memory import LEAST, SLOTS
from stagewire.pipe.names import MAX_TRAIN
from stagewire.pipe.pipes import Pipes


class Lives:
    """One reader after another in one place, each with what the one before left; and one who sends."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.loop = Loop()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.left: dict[str, int] = {}
        """Copies, as a spare has them."""
        self._life: tuple[Pipes, DirectReader] | None = None
        self.reader = self.begin()
        self.sender = cast("DirectSender", Pipes(self.context, Path(), compiled=compiled).sender(self.loop, PIPE))

    def begin(self) -> DirectReader:
        pipes = Pipes(self.context, Path(), self._inherit(), compiled=self.compiled)
        reader = DirectReader(pipes, self.loop)
        pipes.close_inherited()
        pipes.leave_to(self._copy)
        self._life = pipes, reader
        return reader

    def _inherit(self) -> dict[str, int]:
        left, self.left = self.left, {}
        return left

    def _copy(self, left: dict[str, int]) -> None:
        self._forget()
        self.left = {name: os.dup(descriptor) for name, descriptor in left.items()}

    def _forget(self) -> None:
        while self.left:
            os.close(self.left.popitem()[1])

    def die(self) -> None:
        """At once, without a word to anybody."""
        assert self._life is not None
        pipes, reader = self._life
        left, self.left = self.left, {}
        for descriptor in [reader.receiver.source, *reader.receiver._pushers]:
            self.loop.remove(descriptor)
        for pusher in reader.receiver._pushers.values():
            pusher.close()
        reader.receiver._listener.close()
        pipes.close_listeners()
        self.left, self._life = left, None

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)

    def send(self, train: bytes) -> None:
        self.turn(lambda: self.sender.send(train), "room")

    def close(self) -> None:
        self.sender.close()
        if self._life is not None:
            self.die()
        self._forget()
        self.context.destroy(linger=0)


@pytest.fixture(params=DIRECT)
def lives(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lives]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conn").mkdir()
    made = Lives(compiled_for(request.param))
    yield made
    made.close()


@pytest.mark.parametrize("times", [1_000, 20_000], ids=["in the socket", "in memory"])
def test_what_waits_is_read_by_the_next_and_the_pusher_notices_nothing(lives: Lives, times: int) -> None:
    lives.send(b"first")
    lives.turn(lambda: lives.reader.trains, "the train")
    connection = lives.sender._socket
    sent = [b"first"]
    arrived = list(lives.reader.trains)
    for life in range(3):
        lives.die()
        for number in range(3):  # while nobody is there
            sent.append(b"%d.%d" % (life, number) * times)
            assert lives.sender.send(sent[-1])
        reader = lives.begin()
        sent.append(b"and now")
        lives.send(sent[-1])
        lives.turn(lambda reader=reader: len(reader.trains) == 4, "what waited, and what came")  # type: ignore[misc]
        arrived += reader.trains
        assert not reader.bad
        assert reader.laid == (3 if times * 3 >= LEAST else 0)
    assert arrived == sent
    assert lives.sender._socket is connection


def test_trains_in_hand_of_a_reader_that_died_take_their_slots_from_nobody(lives: Lives) -> None:
    lives.send(b"first")
    lives.turn(lambda: lives.reader.trains, "the train")
    for _ in range(3):
        sent = [os.urandom(LEAST) for _ in range(SLOTS)]
        assert all(map(lives.sender.send, sent))
        (descriptor,) = lives.reader.receiver._pushers
        lives.reader.broken = True
        with pytest.raises(RuntimeError):
            lives.loop._handlers[descriptor](0.0)
        lives.die()
        reader = lives.begin()
        assert all(map(lives.sender.send, sent))
        lives.turn(lambda reader=reader: len(reader.trains) == SLOTS, "all of them")  # type: ignore[misc]
        assert reader.laid == SLOTS
        lives.reader = reader


def test_a_version_without_memory_finds_nobody_to_read_on(lives: Lives) -> None:
    """It would pass over what stands for a train, and all of them would be lost."""
    lives.send(b"first")
    lives.turn(lambda: any(name.startswith(inherited.SHARER) for name in lives.left), "the memory")
    assert not any(name.startswith(inherited.PREFIX) for name in lives.left)
    assert f"{inherited.MEMORY}0" in lives.left


def test_who_was_welcomed_by_a_version_without_memory_is_asked_for_it(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("stagewire.pipe.direct.zmtp.PULL_SHARING", zmtp.PULL)
        lives.send(b"first")
        lives.turn(lambda: lives.reader.trains, "the train")
    assert f"{inherited.PREFIX}0:cipher-out" in lives.left
    connection = lives.sender._socket
    assert lives.sender.send(b"x" * 50_000)
    lives.die()
    reader = lives.begin()
    lives.turn(lambda: f"{inherited.SHARER}0:cipher-out" in lives.left, "the memory")
    lives.send(b"y" * 50_000)
    lives.turn(lambda: len(reader.trains) == 2, "both")
    assert reader.trains == [b"x" * 50_000, b"y" * 50_000]
    assert reader.laid == 1
    assert lives.sender._socket is connection


def test_libzmq_is_read_on_and_passes_over_what_it_is_asked(lives: Lives) -> None:
    pipes = Pipes(lives.context, Path())
    with pipes.connect(PIPE) as push:
        lives.turn(lambda: push.poll(0, zmq.POLLOUT), "the connection")
        push.send(b"first")
        lives.turn(lambda: lives.reader.trains, "the train")
        for life in range(2):
            lives.die()
            push.send(b"%d" % life * 50_000)
            reader = lives.begin()
            push.send(b"and on")
            lives.turn(lambda reader=reader: len(reader.trains) == 2, "both trains")  # type: ignore[misc]
            assert reader.trains == [b"%d" % life * 50_000, b"and on"]


def test_who_left_no_memory_with_its_connection_connects_anew(lives: Lives) -> None:
    lives.send(b"first")
    lives.turn(lambda: any(name.startswith(inherited.SHARER) for name in lives.left), "the memory")
    connection = lives.sender._socket
    assert lives.sender.send(bytes(50_000))
    lives.die()
    os.close(lives.left.pop(f"{inherited.MEMORY}0"))
    reader = lives.begin()
    lives.turn(lambda: lives.sender.connected and lives.sender._socket is not connection, "another connection")
    lives.send(b"x" * 50_000)
    lives.turn(lambda: reader.trains, "a train")
    assert reader.trains == [b"x" * 50_000]
    assert not reader.bad


def test_who_was_left_in_the_middle_of_a_message_connects_anew(lives: Lives) -> None:
    lives.send(b"first")
    lives.turn(lambda: lives.reader.trains, "the train")
    connection = lives.sender._socket
    lives.send(bytes(MAX_TRAIN))  # longer than what is taken in a turn
    lives.turn(lambda: any(lives.reader.receiver._kept.marks[:10]), "a part of it")
    lives.die()
    reader = lives.begin()
    lives.turn(lambda: lives.sender.connected and lives.sender._socket is not connection, "another connection")
    lives.send(b"whole")
    lives.turn(lambda: reader.trains, "a train")
    assert reader.trains == [b"whole"]
    assert not reader.bad


def test_who_died_while_it_read_leaves_nothing_to_be_read_on(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the kernel's giving something away and our having looked at it nobody knows where a message ends."""
    lives.send(b"first")
    lives.turn(lambda: lives.reader.trains, "the train")
    connection = lives.sender._socket
    assert connection is not None
    connection.send(zmtp.front(7) + b"in hand" + b"\4\5\4PING")  # a command that only Python passes over
    (descriptor,) = lives.reader.receiver._pushers
    with monkeypatch.context() as broken:
        broken.setattr("stagewire.pipe.direct.zmtp._FRONT", None)
        with pytest.raises(AttributeError):
            lives.loop._handlers[descriptor](0.0)
    lives.die()
    reader = lives.begin()
    lives.turn(lambda: lives.sender.connected and lives.sender._socket is not connection, "another connection")
    lives.send(b"whole")
    lives.turn(lambda: reader.trains, "a train")
    assert reader.trains == [b"whole"]


def test_numbers_are_given_again_and_the_page_is_the_pipes_own(lives: Lives) -> None:
    lives.send(b"first")
    lives.turn(lambda: lives.reader.trains, "the train")
    lives.turn(lambda: f"{inherited.SHARER}0:cipher-out" in lives.left, "the memory")
    before = set(lives.left)
    lives.sender._lost()
    lives.send(b"second")
    lives.turn(lambda: len(lives.reader.trains) == 2 and len(lives.reader.receiver._pushers) == 1, "the second train")
    lives.turn(lambda: len(lives.left) == len(before), "the memory")
    assert inherited.MARKS in lives.left


def test_who_has_no_pipe_takes_no_descriptor(tmp_path: Path) -> None:
    """A command that asks a question makes `Pipes` each time."""
    gc.collect()  # what earlier tests left open would go meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    with zmq.Context() as context:
        inside = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            Pipes(context, tmp_path).close_inherited()
        assert len(list(Path("/proc/self/fd").iterdir())) == inside
    assert len(list(Path("/proc/self/fd").iterdir())) == before
