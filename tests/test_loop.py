"""The event loop: sources, pauses, deadlines and a clean stop, on real pipes and real signals."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lab.wait import until
from stagewire.deadlines import Every
from stagewire.loop import FINISH_WITHIN, LOOK_INTERVAL, Loop, boot_time


class Once:
    """A deadline that is met one time, and what happened then."""

    def __init__(self, loop: Loop, after: float) -> None:
        self.wanted = boot_time() + after
        self.at: float | None = self.wanted
        self.met: list[float] = []
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        return self.at

    def act(self, now: float) -> None:
        self.at = None
        self.met.append(now)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def turn_for(loop: Loop, seconds: float) -> None:
    """Turns the loop for a while of its own time, without the signals of `run`."""
    end = Once(loop, seconds)
    while not end.met:
        loop._turn()
    loop.remove_timed(end)


def test_a_source_is_read_until_it_is_empty(pipe: tuple[int, int]) -> None:
    loop, read = Loop(), []

    def take(now: float) -> None:
        assert now <= boot_time()
        read.append(os.read(pipe[0], 1))
        if len(read) == 5:
            loop.stop()

    os.write(pipe[1], b"abcde")
    loop.add(pipe[0], take)
    loop.run()
    assert b"".join(read) == b"abcde"


def test_what_is_on_the_pipes_is_finished_before_it_stops_and_nothing_taken_from_outside(
    pipe: tuple[int, int],
) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        loop, read = Loop(), list[bytes]()
        pull.bind("inproc://loop")
        push.connect("inproc://loop")
        for number in range(3):
            push.send(bytes([number]))

        def take(_now: float) -> None:
            read.append(pull.recv(zmq.DONTWAIT))
            loop.stop()

        loop.add(pull, take)
        loop.run()
        assert read == [b"\0", b"\1", b"\2"]

        loop, outside = Loop(), list[bytes]()
        loop.add(pipe[0], lambda _now: outside.append(os.read(pipe[0], 1)))
        os.write(pipe[1], b"x")
        loop.stop()
        loop.run()
        assert outside == []


def test_one_that_never_runs_dry_stops_all_the_same(pipe: tuple[int, int]) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        pull.bind("inproc://loop")
        push.connect("inproc://loop")
        push.send(b"")
        loop = Loop()
        loop.add(pull, lambda _now: loop.stop())  # leaves it where it is
        begun = boot_time()
        loop.run()
        assert boot_time() - begun < FINISH_WITHIN + 0.5


def test_last_words_are_said_once_and_their_answer_is_awaited_for_a_time_only() -> None:
    loop, said = Loop(), list[bytes]()
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        ours.bind("inproc://last")
        theirs.connect("inproc://last")
        loop.add(ours, lambda _now: said.append(ours.recv()))
        loop.at_stop(lambda _now: theirs.send(b"heard"), lambda: bool(said))
        loop.stop()
        loop.run()
        assert said == [b"heard"]
        loop.at_stop(lambda _now: None, lambda: False)
        begun = boot_time()
        loop.run()
        assert FINISH_WITHIN <= boot_time() - begun < 2 * FINISH_WITHIN + 0.5


def test_a_zmq_socket_is_a_source_as_well() -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        loop, read = Loop(), list[bytes]()

        def take(_now: float) -> None:
            read.append(pull.recv(zmq.DONTWAIT))  # one of several: level-triggered
            if len(read) == 3:
                loop.stop()

        pull.bind("inproc://loop")
        push.connect("inproc://loop")
        for number in range(3):
            push.send(bytes([number]))
        loop.add(pull, take)
        loop.run()
    assert read == [b"\0", b"\1", b"\2"]


def test_what_came_while_one_sent_is_read_though_the_descriptor_is_silent() -> None:
    loop, heard = Loop(), []
    with zmq.Context() as context, context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        ours.bind("inproc://talk")
        theirs.connect("inproc://talk")
        loop.add(ours, lambda _now: heard.append(ours.recv()))
        turn_for(loop, 0.001)
        descriptor = int(ours.get(zmq.FD))
        for number in range(20):
            theirs.send(b"%d" % number)
            until(lambda: select.select([descriptor], [], [], 0)[0], 5, "what came")
            ours.send(b"")
            ours.get(zmq.EVENTS)  # what a send does as well, though not each one
            assert not select.select([descriptor], [], [], 0)[0]
            loop.sent(ours)
            loop._serve(0.0)
            assert len(heard) == number + 1
            loop._serve(0.0)
        loop.remove(ours)
        loop.sent(ours)
        loop._serve(0.0)


def test_a_paused_source_waits_until_it_was_resumed_as_often(pipe: tuple[int, int]) -> None:
    loop, read = Loop(), []
    loop.add(pipe[0], lambda _now: read.append(os.read(pipe[0], 10)))
    os.write(pipe[1], b"x")
    loop.pause(pipe[0])
    loop.pause(pipe[0])
    turn_for(loop, 0.01)
    loop.resume(pipe[0])
    turn_for(loop, 0.01)
    assert read == []
    loop.resume(pipe[0])
    turn_for(loop, 0.01)
    assert read == [b"x"]


def test_a_source_paused_by_another_in_the_same_turn_is_not_called(pipe: tuple[int, int]) -> None:
    loop, read = Loop(), []
    other = os.dup(pipe[0])
    try:
        for first, second in ((pipe[0], other), (other, pipe[0])):

            def take(_now: float, first: int = first, second: int = second) -> None:
                read.append(first)
                loop.pause(second)

            loop.add(first, take)
        os.write(pipe[1], b"x")
        loop._turn()
        assert len(read) == 1
    finally:
        os.close(other)


def test_a_removed_source_is_forgotten_and_may_be_resumed_in_vain(pipe: tuple[int, int]) -> None:
    loop, read = Loop(), list[bytes]()
    loop.add(pipe[0], lambda _now: read.append(b"early"))
    loop.pause(pipe[0])
    loop.remove(pipe[0])
    loop.resume(pipe[0])
    os.write(pipe[1], b"x")
    turn_for(loop, 0.01)
    assert read == []
    loop.remove(pipe[0])  # and again
    loop.add(pipe[0], lambda _now: read.append(os.read(pipe[0], 1)))
    turn_for(loop, 0.01)
    assert read == [b"x"]


def test_a_handler_may_remove_itself_and_others(pipe: tuple[int, int]) -> None:
    loop, read = Loop(), []
    other = os.dup(pipe[0])
    try:

        def take(_now: float) -> None:
            read.append(1)
            loop.remove(pipe[0])
            loop.remove(other)

        loop.add(pipe[0], take)
        loop.add(other, take)
        os.write(pipe[1], b"x")
        turn_for(loop, 0.01)
    finally:
        os.close(other)
    assert read == [1]


def test_a_writer_is_called_while_there_is_room(pipe: tuple[int, int]) -> None:
    loop, written = Loop(), []

    def fill(_now: float) -> None:
        written.append(os.write(pipe[1], bytes(65536)))

    os.set_blocking(pipe[1], False)
    loop.when_writable(pipe[1], fill)
    turn_for(loop, 0.02)
    assert sum(written) == 65536  # a pipe's capacity: not called again, though still asked for
    os.read(pipe[0], 65536)
    turn_for(loop, 0.02)
    assert sum(written) == 2 * 65536
    loop.when_writable(pipe[1], None)
    os.read(pipe[0], 65536)
    turn_for(loop, 0.02)
    assert sum(written) == 2 * 65536


def test_deadlines_are_met_in_time_and_never_early() -> None:
    loop = Loop()
    timed = [Once(loop, after) for after in (0.0, 0.0104, 0.0307)]
    turn_for(loop, 0.05)
    for each in timed:
        assert len(each.met) == 1
        assert each.met[0] >= each.wanted


def test_beside_a_source_that_never_runs_dry_deadlines_are_met_and_looked_at_once_a_millisecond(
    pipe: tuple[int, int],
) -> None:
    loop = Loop()
    loop.add(pipe[0], lambda _now: None)
    os.write(pipe[1], b"never read")
    end, looks = Once(loop, 0.03), 0

    class Looked:
        def next_deadline(self) -> None:
            nonlocal looks
            looks += 1

        def act(self, _now: float) -> None:
            raise AssertionError

    loop.add_timed(Looked())
    begun = boot_time()
    while not end.met:
        loop._turn()
    assert end.met[0] >= end.wanted
    assert looks <= 2 * ((boot_time() - begun) / LOOK_INTERVAL + 2)


def test_what_comes_alone_costs_one_wait_and_one_look_at_the_deadlines(pipe: tuple[int, int]) -> None:
    loop, looks, turns, count = Loop(sleep=lambda _until: None), 0, 0, 10
    taken = threading.Semaphore()

    class Far:
        def next_deadline(self) -> float:
            nonlocal looks
            looks += 1
            return boot_time() + 60

    def take(_now: float) -> None:
        os.read(pipe[0], 1)
        taken.release()

    def give() -> None:
        for _ in range(count):
            taken.acquire()
            time.sleep(5 * LOOK_INTERVAL)
            os.write(pipe[1], b"x")

    loop.add(pipe[0], take)
    loop.add_timed(Far())  # type: ignore[arg-type]  # it is never due
    giver = threading.Thread(target=give)
    giver.start()
    while giver.is_alive():
        loop._turn()
        turns += 1
    giver.join()
    assert turns <= count + 3
    assert looks <= count + 4


def test_a_deadline_that_is_added_between_two_turns_is_met(pipe: tuple[int, int]) -> None:
    loop = Loop(sleep=lambda _until: None)
    loop.add(pipe[0], lambda _now: None)
    Once(loop, 0.01)
    loop._turn()  # it has rested, and found that nothing is due
    end = Once(loop, 0.01)
    while not end.met:
        loop._turn()
    assert end.met[0] < end.wanted + 1


def test_a_wait_is_rounded_up_and_does_not_spin(pipe: tuple[int, int]) -> None:
    """epoll counts in milliseconds: rounded down, the last one would be spent turning."""
    loop, turns = Loop(), 0
    loop.add(pipe[0], lambda _now: None)
    for _ in range(10):
        end = Once(loop, 0.0101)
        while not end.met:
            loop._turn()
            turns += 1
    # One turn for each deadline; a second where epoll's clock and ours disagree.
    assert turns <= 20


def test_only_what_is_no_routine_counts_as_work(pipe: tuple[int, int]) -> None:
    loop = Loop()
    loop.add(pipe[0], lambda _now: None, routine=True)
    os.write(pipe[1], b"a")
    loop._turn()
    assert loop.worked == 0
    loop.remove(pipe[0])
    loop.add(pipe[0], lambda _now: None)
    loop._turn()
    assert loop.worked == 1
    loop.remove(pipe[0])
    loop.add_paced(1000.0, lambda _now: None)
    loop._turn()
    assert loop.worked == 1
    loop.add_timed(Every(1000.0, lambda _now: None))
    loop._turn()
    assert loop.worked == 2


PROGRAM = """
import sys
from stagewire.deadlines import Every
from stagewire.loop import LOOK_INTERVAL, FINISH_WITHIN, Loop
loop = Loop()
loop.add_timed(Every(0.01, lambda now: None))
print("running", flush=True)
loop.run()
print("clean", flush=True)
"""


@pytest.fixture
def program() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        status = Path(f"/proc/{process.pid}/status")

        def handlers_set() -> bool:
            with status.open() as file:
                caught = next(line.split()[1] for line in file if line.startswith("SigCgt"))
            return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)

        until(handlers_set, 5, "the loop to turn")
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(program: "subprocess.Popen[str]", number: signal.Signals) -> None:
    begun = time.monotonic()
    program.send_signal(number)
    assert program.wait(5) == 0
    assert time.monotonic() - begun < 1
    assert program.stdout is not None
    assert program.stdout.read() == "clean\n"


def test_a_storm_of_signals_ends_it_once_and_cleanly(program: "subprocess.Popen[str]") -> None:
    for _ in range(200):
        program.send_signal(signal.SIGTERM)
    # Python, taking itself apart, gives the signal its default meaning back.
    assert program.wait(5) in (0, -signal.SIGTERM)
    assert program.stdout is not None
    assert program.stdout.read() == "clean\n"


def test_stop_from_a_handler_ends_it_after_the_turn(pipe: tuple[int, int]) -> None:
    loop = Loop()
    loop.add(pipe[0], lambda _now: loop.stop())
    writer = threading.Timer(0.02, lambda: os.write(pipe[1], b"x"))
    writer.start()
    loop.run()
    writer.join()
