"""Pipes of trains, ours at one end or at both, and libzmq at the other: what goes through, what waits, what is refused."""

import errno
import os
import socket

import pytest
import zmq
from tests.ipc.pipe import PIPE, Bench

from stagewire.ipc import zmtp
from stagewire.ipc.endpoints import MAX_TRAIN
from stagewire.ipc.inlet import MAX_PUSHERS
from stagewire.ipc.memory import SLOTS

TRAINS = [b"", b"a", bytes(255), os.urandom(256), os.urandom(70_000), os.urandom(MAX_TRAIN), b"the last one"]


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
    reader, line = bench.connected()
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


def test_a_line_that_finds_no_descriptor_tries_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    reader = bench.reader()
    with monkeypatch.context() as out_of_descriptors:
        out_of_descriptors.setattr("stagewire.ipc.line.sockets.socket", refuse)
        line = bench.line()
    bench.send(line, b"train")
    bench.turn(lambda: reader.trains, "the train")


def test_a_train_of_which_the_kernel_took_a_part_is_finished(bench: Bench) -> None:
    reader, line = bench.connected()
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
    reader, line = bench.connected()
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
