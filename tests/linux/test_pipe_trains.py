"""The compiled half of a pipe's two ends does what Python does, whatever the other end says."""

import math
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.loop import Loop
from stagewire.pipe.direct import shared_memory, zmtp
from stagewire.pipe.direct.inherited import Pushers
from stagewire.pipe.direct.receiver import DirectReceiver
from stagewire.pipe.direct.sender import DirectSender
from stagewire.pipe.direct.shared_memory import LEAST, SLOT, SLOTS, Memory
from stagewire.pipe.names import CIPHER_OUT, HANDSHAKE_OUT, PIPES, Pipe
from stagewire.pipe.speakers import Admission
from stagewire.pipe.waits import Waits
from stagewire.pipe.zmq_ends import limits

compiled = pytest.importorskip("stagewire.linux.pipe_trains")

NUMBER = re.compile(r"^    ([A-Z_]+) = (\d+(?: \* \d+)*)(?:$| )", re.MULTILINE)
SIZES = st.one_of(st.integers(1, 300), st.sampled_from((LEAST - 1, LEAST, 20_000, SLOT, SLOT + 1)))
PIECES = st.one_of(
    st.tuples(st.just("messages"), st.lists(st.integers(0, 5000), min_size=1, max_size=6)),
    st.tuples(st.just("short"), st.lists(st.binary(max_size=255), min_size=1, max_size=6)),
    st.tuples(st.just("laid"), st.lists(SIZES, min_size=1, max_size=SLOTS + 1)),
    st.tuples(st.just("told"), st.tuples(st.integers(0, SLOTS + 1), st.sampled_from((0, 7, SLOT, SLOT + 1, 1 << 31)))),
    st.tuples(st.just("raw"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("state"), st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 4))),
)
SAID = st.lists(st.tuples(PIECES, st.integers(0, 40)), max_size=12)
"""Each with the number of its last bytes that come later."""


class Reading:
    """A receiving end, and a pusher whose words a test chooses."""

    def __init__(self, kernel: Any, pipe: Pipe, stack: ExitStack) -> None:
        self.trains, self.dropped = list[bytes](), list[str]()
        self.loop = Loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")
        listener.listen(1)
        listener.setblocking(False)
        self.pushers = Pushers({})
        stack.callback(self.pushers.close)
        self.receiver = DirectReceiver(
            self.loop, listener, limits(pipe), self._take, lambda bad: self.dropped.append(bad.reason),
            (self.pushers, "pipe"), Admission(pipe, contest=lambda *_: None, refused=lambda *_: None), Waits(), None,
            kernel,
        )  # fmt: skip
        stack.callback(self.receiver.close)
        self.pusher = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.pusher.connect(listener.getsockname())
        self.pusher.send(zmtp.PUSH)
        self.turn()
        self.memory: Memory | None = None
        if limits(pipe).memory:
            self.memory = Memory.make()
            stack.callback(self.memory.close)
            socket.send_fds(self.pusher, [zmtp.MEMORY], [self.memory.descriptor])
            self.turn()

    def _take(self, frames: Sequence[tuple[Any, int, int]], _now: float) -> None:
        self.trains += [bytes(data[start:end]) for data, start, end in frames]

    def turn(self) -> None:
        for _ in range(40):  # what has hung up stays readable
            if not self.loop._serve(0.0):
                return

    def words(self, kind: str, what: Any) -> bytes:
        """What the pusher says; lays trains, or changes the memory, on the way."""
        if kind == "messages":
            return b"".join(zmtp.front(size) + bytes([size % 256]) * size for size in what)
        if kind == "short":
            return b"".join(bytes([0, len(data)]) + data for data in what)
        if kind == "told":
            return zmtp.train_in(what[0], what[1])
        if kind == "raw":
            return bytes(what)
        if self.memory is None:
            return b""
        if kind == "state":
            self.memory.map[what[0]] = what[1]
            return b""
        said = b""
        for size in what:
            slot = self.memory.lay([bytes([size % 251]) * size], size)
            said += b"" if slot is None else zmtp.train_in(slot, size)
        return said

    def say(self, data: bytes) -> None:
        with suppress(OSError):  # it has hung up
            self.pusher.sendall(data)
        self.turn()

    def seen(self) -> list[Any]:
        """All that tells of what was made of it."""
        states = b"" if self.memory is None else self.memory.map[:SLOTS]
        marks = [self.pushers.marks[number] for number in self.pushers._left]
        return [self.trains, self.dropped, states, marks, self.loop.gathering.carried, len(self.receiver._pushers)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from((CIPHER_OUT, HANDSHAKE_OUT)), SAID)
def test_both_make_the_same_of_what_a_pusher_says(pipe: Pipe, said: list[Any]) -> None:
    with ExitStack() as stack:
        plain, fast = Reading(None, pipe, stack), Reading(compiled, pipe, stack)
        for (kind, what), later in said:
            for side in (plain, fast):
                words = side.words(kind, what)
                cut = max(0, len(words) - later)
                side.say(words[:cut])
                side.say(words[cut:])
            assert fast.seen() == plain.seen()


def test_ordinary_messages_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would compare Python with Python."""
    with ExitStack() as stack:
        side = Reading(compiled, CIPHER_OUT, stack)
        monkeypatch.setattr(zmtp.Stream, "take_untrusted", None)
        words = side.words("messages", [5, 0, 300]) + side.words("laid", [5000, SLOT]) + side.words("short", [b"a"])
        side.say(words)
        assert list(map(len, side.trains)) == [5, 0, 300, 5000, SLOT, 1]
        assert side.seen()[3] == [0]


class Sending:
    """A sending end, and the socket that a test reads."""

    def __init__(self, kernel: Any, memory: bool, folder: Path, stack: ExitStack) -> None:
        self.loop = Loop()
        path = folder / ("fast" if kernel else "plain")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(1)
        self.sender = DirectSender(self.loop, path, limits(CIPHER_OUT), compiled=kernel)
        stack.callback(self.sender.close)
        self.reader, _ = listener.accept()
        stack.enter_context(self.reader)
        self.reader.setblocking(False)
        self.reader.send(zmtp.PULL_SHARING if memory else zmtp.PULL)
        while not self.sender.connected:
            self.loop._serve(1.0)
        self.memory: Memory | None = None
        self.greeting, descriptors, _, _ = socket.recv_fds(self.reader, 4096, 1)
        if memory:
            self.memory = Memory(descriptors[0])
            stack.callback(self.memory.close)
            self.memory.begin()

    def read(self, most: int) -> bytes:
        with suppress(BlockingIOError):
            return self.reader.recv(most)
        return b""

    def seen(self) -> list[Any]:
        laid = b"" if self.memory is None else bytes(self.memory.map)
        sender = self.sender
        return [hash(laid), sender.waiting, bytes(sender._rest), self.loop.gathering.carried, sender.connected]


@contextmanager
def sides(memory: bool) -> Iterator[tuple[Sending, Sending]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(dir="/tmp")))
        yield Sending(None, memory, folder, stack), Sending(compiled, memory, folder, stack)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(SIZES, min_size=1, max_size=10)),
        st.tuples(st.just("read"), st.sampled_from((10, 5000, 1 << 20))),
        st.tuples(st.just("free"), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("end"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(st.booleans(), ACTS)
def test_both_send_the_same(memory: bool, acts: list[Any]) -> None:
    with sides(memory) as (plain, fast):
        for kind, what in acts:
            found = list[Any]()
            for side in (plain, fast):
                done: object = None
                if kind == "send":
                    done = side.sender.send(*[memoryview(bytes([size % 251]) * size) for size in what])
                elif kind == "read":
                    done = side.read(what)
                    for _ in range(3):  # a socket with room stays writable
                        side.loop._serve(0.0)
                elif kind == "free" and side.memory is not None:
                    side.memory.map[what] = 0
                elif kind == "end":
                    side.reader.close()
                found.append([done, *side.seen()])
                if kind == "end":
                    found[-1] = side.sender.send(b"after the end")
            assert found[0] == found[1]
            if kind == "end":
                return


def test_a_lone_train_and_one_in_memory_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with sides(memory=True) as (_, fast):
        monkeypatch.setattr(DirectSender, "_push", None)
        assert fast.sender.send(b"a", b"bc")
        assert fast.sender.send(bytes(LEAST))
        assert fast.read(4096) == zmtp.front(3) + b"abc" + zmtp.train_in(0, LEAST)


@pytest.mark.parametrize("memory", [bytearray(4096), bytearray(1 << 20)])
def test_memory_of_another_size_is_refused(memory: bytearray) -> None:
    near, far = socket.socketpair()
    with near, far:
        with pytest.raises(ValueError, match="another size"):
            compiled.send(near.fileno(), memory, [0] * SLOTS, (b"a",))
        far.send(zmtp.train_in(0, 1))
        with pytest.raises(ValueError, match="another size"):
            compiled.receive(near.fileno(), 4096, 4096, bytearray(1), 0, memory, [])


def test_its_numbers_are_those_of_their_homes() -> None:
    text = Path(zmtp.__file__).parents[2].joinpath("linux/pipe_trains.pyx").read_text()
    found = {name: math.prod(map(int, value.split(" * "))) for name, value in NUMBER.findall(text.replace("0x0", ""))}
    homes = {**vars(shared_memory), **vars(zmtp)}
    for name in ("SLOTS", "SLOT", "LEAST", "_LONG", "_COMMAND", "_FREE", "_TOLD", "_IN_HAND"):
        assert found[name.removeprefix("_")] == homes[name]
    assert (found["FRONT"], found["TRAIN"]) == (zmtp._FRONT.size, zmtp._TRAIN.size)
    assert (found["NAME"], found["TRAIN_COMMAND"]) == (len(zmtp._TRAIN_NAME), len(zmtp.train_in(0, 0)))
    assert found["READ"] == max(pipe.limits.read for pipe in PIPES if pipe.limits)


def test_a_mark_beyond_the_page_is_refused() -> None:
    near, far = socket.socketpair()
    with near, far:
        for number in (1, -1):
            with pytest.raises(IndexError):
                compiled.receive(near.fileno(), 4096, 4096, bytearray(1), number, None, [])
